"""What the main function gets is what pydantic gives for the same inputs."""

import dataclasses
import enum
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import (
    AfterValidator,
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    SecretStr,
    field_validator,
    model_validator,
)
from typing_extensions import TypedDict

from tests.experiments.made import of
from trainlab.errors import InvalidValueError
from trainlab.experiments import Values


def read(model: type[BaseModel], params: Any = None, *argv: str, **environ: str) -> Values:
    """The values for a call and a command line."""
    return of(model).read(params, argv=argv, environ=environ)


def from_file(model: type[BaseModel], text: str, folder: Path) -> Any:
    """The model of a params file."""
    (folder / "p.yaml").write_text(text)
    return of(model).read(argv=["--params-file", str(folder / "p.yaml")], environ={}).model


class Scaled(BaseModel):
    """Changes what it is given."""

    lr: float = 0.1
    batch: int = 512

    @model_validator(mode="after")
    def _scale(self) -> "Scaled":
        self.lr = self.lr * self.batch / 256
        return self


class Part(BaseModel):
    """Changes what it is given, too."""

    drop: Annotated[float, AfterValidator(lambda value: value / 100)] = 0.5
    size: int = 1


class Open(BaseModel):
    """Takes any key."""

    model_config = ConfigDict(extra="allow")

    x: int = 1


class Base(BaseModel):
    """A class."""

    x: int = 1


class Derived(Base):
    """A class that derives from it."""

    y: int = 2


class Empty(BaseModel):
    """Has no field."""


class Aug(BaseModel):
    """Has one."""

    flip: bool = True


class Config(BaseModel):
    """All of them."""

    drop: Annotated[float, AfterValidator(lambda value: value / 100)] = 0.5
    scaled: Scaled = Scaled()
    part: Part = Part(drop=50)
    open: Open = Open(foo=7)  # type: ignore[call-arg]
    base: Base = Derived(x=5, y=6)
    empty: Empty | None = None
    aug: Aug | None = None


def test_defaults_and_models_of_a_call_are_not_validated_twice() -> None:
    """Validators that change a value change it once, and models keep their further keys and their class."""
    given = Config(drop=50, scaled=Scaled(lr=1), open=Open(bar=1), base=Derived(y=9), empty=Empty())  # type: ignore[call-arg]
    assert read(Config).model == Config()
    assert read(Config, given).model == given
    nested = {"scaled": Scaled(lr=1), "open": Open(bar=1), "base": Derived(y=9)}  # type: ignore[call-arg]
    assert read(Config, nested).model == Config(**nested)


def test_a_call_shares_no_model_with_its_run() -> None:
    """What a run does to its model does not change the caller's."""

    class Lists(BaseModel):
        base: Base = Base()
        items: list[int] = []

    for given in (Lists(), {"base": Base()}):
        model: Any = read(Lists, given).model
        model.base.x = 7
        model.items.append(1)
        assert (given if isinstance(given, Lists) else Lists(**given)) == Lists()


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["--scaled.batch=1024"], {"scaled": {"batch": 1024}}),
        (["--part.size=3"], {"part": Part(drop=50, size=3)}),
        (["--base.x=7"], {"base": Derived(x=7, y=6)}),
        (["--open.x=7"], {"open": Open(x=7, foo=7)}),  # type: ignore[call-arg]
    ],
)
def test_an_option_changes_one_field_of_a_default(argv: list[str], values: dict[str, Any]) -> None:
    """The other fields of a default model stay what they are."""
    assert read(Config, None, *argv).model == Config(**values)


def test_a_default_that_would_change_again_is_refused_and_not_changed() -> None:
    """A field of a model whose validators change their own results cannot be changed alone; the error says so."""

    class Local(BaseModel):
        scaled: Scaled = Scaled(lr=1)

    with pytest.raises(InvalidValueError, match="scaled.batch: cannot be changed alone, for the validators of Scaled"):
        read(Local, None, "--scaled.batch=1024")


@pytest.mark.parametrize("given", [{"empty": {}, "aug": {}}, {"empty": Empty(), "aug": Aug()}])
def test_an_empty_dict_is_a_model(given: Any, tmp_path: Path) -> None:
    """A model that may be missing is there where an empty dict or a model without fields is given for it."""
    assert read(Config, given).model == Config(empty=Empty(), aug=Aug())
    assert from_file(Config, "empty: {}\naug: {}\n", tmp_path) == Config(empty=Empty(), aug=Aug())
    with_none = of(Config).read(argv=["--aug=none", "--params-file", str(tmp_path / "p.yaml")], environ={})
    assert with_none.params["aug"] is None


class Kind(enum.Enum):
    """Kinds."""

    A = "a"
    B = "b"


class KindA(BaseModel):
    """One."""

    kind: Literal[Kind.A] = Kind.A


class KindB(BaseModel):
    """Another."""

    kind: Literal[Kind.B] = Kind.B
    size: int = 1


class One(BaseModel):
    """One."""

    number: Literal[1] = 1


class Two(BaseModel):
    """Another."""

    number: Literal[2] = 2


class Chosen(BaseModel):
    """Unions whose discriminators are no texts."""

    kind: KindA | KindB = Field(KindA(), discriminator="kind")
    number: One | Two = Field(One(), discriminator="number")


def test_a_discriminator_may_be_a_number_or_an_enum(tmp_path: Path) -> None:
    """Models that numbers and members of enums tell apart are chosen by an option, a file and a call."""
    expected = Chosen(kind=KindB(size=3), number=Two())
    assert read(Chosen, None, "--kind.kind=b", "--kind.size=3", "--number.number=2").model == expected
    assert from_file(Chosen, "kind: {kind: b, size: 3}\nnumber: {number: 2}\n", tmp_path) == expected
    assert read(Chosen, {"kind": {"kind": "b", "size": 3}, "number": {"number": 2}}).model == expected
    assert read(Chosen, {"kind.kind": Kind.B, "kind.size": 3, "number": Two()}).model == expected


class Strict(BaseModel):
    """Takes nothing but its types."""

    model_config = ConfigDict(strict=True)

    pair: tuple[int, int] = (1, 2)
    names: set[str] = {"a"}
    path: Path = Path("a")
    day: date = date(2020, 1, 1)
    count: int = 1


def test_strict_models_take_what_a_line_and_a_file_can_write(tmp_path: Path) -> None:
    """A tuple, a set, a path and a date of a strict model are given by options and files; a text is no number."""
    expected = Strict(pair=(3, 4), names={"b"}, path=Path("q"), day=date(2021, 2, 3))
    argv = ["--pair", "3", "4", "--names", "b", "--path=q", "--day=2021-02-03"]
    assert read(Strict, None, *argv).model == expected
    assert from_file(Strict, "pair: [3, 4]\nnames: [b]\npath: q\nday: '2021-02-03'\n", tmp_path) == expected
    assert read(Strict, {"pair": (3, 4), "names": {"b"}}).params["pair"] == (3, 4)
    for wrong in ({"count": "4"}, {"pair": [1, 2]}):
        with pytest.raises(InvalidValueError):
            read(Strict, wrong)
    with pytest.raises(InvalidValueError, match=r"count in .*p.yaml: must be a whole number. Received: '4'"):
        from_file(Strict, "count: '4'\n", tmp_path)


def test_defaults_are_of_their_types() -> None:
    """A default that pydantic would hand on as another type is an error, also where a factory makes it."""

    class Text(BaseModel):
        number: int = "3"  # type: ignore[assignment]

    class Factory(BaseModel):
        number: int = Field(default_factory=lambda: "abc")  # type: ignore[assignment]

    class Validated(BaseModel):
        number: int = Field("3", validate_default=True)  # type: ignore[assignment]
        one: float = 1

    with pytest.raises(InvalidValueError, match="default of 'number' is not of its type.*whole number. Received: '3'"):
        of(Text)
    with pytest.raises(InvalidValueError, match="default of 'number' cannot be used: must be a whole number"):
        read(Factory)
    assert read(Validated).params["number"] == 3


def test_a_field_may_be_looked_for_in_nested_data() -> None:
    """A field with a path for an alias has the option of its own name."""

    class Local(BaseModel):
        first: int = Field(1, validation_alias=AliasPath("deep", "items", 1))
        second: int = Field(1, validation_alias=AliasChoices("other", "more"))

    model: Any = read(Local, None, "--first=3", "--second=4").model
    assert (model.first, model.second) == (3, 4)
    with pytest.raises(InvalidValueError, match="--first: must be a whole number. Received: 'x'"):
        read(Local, None, "--first=x")


class Layer(BaseModel):
    """Takes no field name."""

    width: int = Field(8, alias="w")


class ByName(BaseModel):
    """Takes it."""

    model_config = ConfigDict(populate_by_name=True)

    width: int = Field(8, alias="w")


@dataclasses.dataclass
class Plain:
    """A dataclass."""

    lr: float = 0.1


class Typed(TypedDict, total=False):
    """A TypedDict."""

    lr: float


class Several(BaseModel):
    """Values that have keys."""

    layers: list[Layer] = []
    named: list[ByName] = []
    plain: Plain = Plain()
    typed: Typed = {}
    table: dict[int, int] = {}
    root: RootModel[dict[str, int]] = RootModel[dict[str, int]]({})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("--layers=[{width: 9}]", "layers[0] has no 'width'. It can have: w."),
        ("--plain={learning_rate: 5}", "plain has no 'learning_rate'. It can have: lr."),
        ("--typed={lr: 5, rate: 5}", "typed has no 'rate'. It can have: lr."),
    ],
)
def test_a_key_that_pydantic_would_drop_is_an_error(line: str, told: str) -> None:
    """The name of a field that has an alias, and unknown keys of dataclasses and TypedDicts, are no values."""
    with pytest.raises(InvalidValueError) as caught:
        read(Several, None, line)
    assert str(caught.value) == told


def test_keys_that_pydantic_takes_are_no_errors() -> None:
    """Field names where a model takes them, and all keys of a dict, can be given."""
    model: Any = read(Several, None, "--named=[{width: 9}]", "--table", "1=2", "--root={a: 1}").model
    assert (model.named[0].width, model.table, model.root.root) == (9, {1: 2}, {"a": 1})


def test_a_variable_of_a_field_has_the_name_that_is_declared() -> None:
    """`envvar: True` is the field's own name in capitals, and no variable called True."""

    class Local(BaseModel):
        rate: int = Field(1, json_schema_extra={"envvar": True})
        base: Base = Base()

    assert read(Local, None, RATE="3", True_="4", **{"True": "5"}).params["rate"] == 3

    class Wrong(BaseModel):
        rate: int = Field(1, json_schema_extra={"envvar": 3})

    with pytest.raises(InvalidValueError, match="envvar of 'rate' is the name of a variable, or True. Received: 3"):
        of(Wrong)


def test_a_secret_that_a_factory_makes_is_in_no_error() -> None:
    """A validator that tells a secret default does not show it."""

    class Local(BaseModel):
        token: str = Field(default_factory=lambda: "sekret-of-a-factory")
        pin: SecretStr = SecretStr("sekret-default")
        n: int = 1

        @model_validator(mode="after")
        def _refuse(self) -> "Local":
            if self.n == 5:
                raise ValueError(f"refuses {self.token} {self.pin.get_secret_value()}")
            return self

    with pytest.raises(InvalidValueError, match=r"refuses \*\*\* \*\*\*") as caught:
        read(Local, None, "--n=5")
    assert "sekret" not in str(caught.value)


def test_a_field_is_secret_by_its_alias() -> None:
    """A field whose alias is the name of a secret is masked."""

    class Local(BaseModel):
        k: str = Field("", alias="api_key")

    values = read(Local, None, "--k=sekret01")
    assert values.plain()["k"] == "***"
    assert "sekret01" in values.secrets


def test_each_given_value_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many words cost no more than validating them: a type's validator is made once."""
    from trainlab.experiments import text_values

    made: list[Any] = []
    real = text_values.TypeAdapter
    monkeypatch.setattr(text_values, "TypeAdapter", lambda annotation: made.append(annotation) or real(annotation))

    class Local(BaseModel):
        items: list[int | str] = []

    read(Local, None, "--items", *map(str, range(100)))
    assert len(made) < 10


def test_field_validators_run_once() -> None:
    """A validator of a field that counts its calls counts one for a value that was given."""
    seen: list[int] = []

    class Local(BaseModel):
        rate: int = 1

        @field_validator("rate")
        @classmethod
        def _count(cls, value: int) -> int:
            seen.append(value)
            return value

    read(Local, None, "--rate=7")
    assert seen == [7]
