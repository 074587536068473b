"""What is recorded of a run is read back to its values; or is left out, or told of."""

import dataclasses
import enum
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    Base64Bytes,
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
from trainlab.experiments import Experiment
from trainlab.experiments.read_back import recorded
from trainlab.runs.yaml_text import to_yaml


class Level(enum.IntEnum):
    """Numbers."""

    LOW = 1
    HIGH = 2


class Act(enum.Enum):
    """Names."""

    RELU = "relu"
    GELU = "gelu"


class Layer(BaseModel):
    """With an alias, and one that is read from nested data."""

    width: int = Field(8, alias="w")
    act: Act = Act.RELU
    name: str = Field("", validation_alias="called", serialization_alias="shown")


class Block(BaseModel):
    """With further keys."""

    model_config = ConfigDict(extra="allow")

    kind: str = "x"


@dataclasses.dataclass
class Point:
    """A dataclass."""

    x: float = 0.0
    names: tuple[str, ...] = ()


class Typed(TypedDict, total=False):
    """A TypedDict."""

    lr: float
    steps: list[int]


class Pair(NamedTuple):
    """A named tuple."""

    one: int = 0
    other: str = ""


class Strict(BaseModel):
    """Takes nothing but its types."""

    model_config = ConfigDict(strict=True)

    sizes: tuple[int, int] = (1, 2)
    path: Path = Path("a")
    names: frozenset[str] = frozenset()


class Empty(BaseModel):
    """Has no field."""


class Sorted(BaseModel):
    """Changes what it is given, once."""

    items: list[int] = []
    low: float = 0.0
    high: float = 1.0

    @field_validator("items")
    @classmethod
    def _sort(cls, items: list[int]) -> list[int]:
        return sorted(items)

    @model_validator(mode="after")
    def _order(self) -> "Sorted":
        self.low, self.high = min(self.low, self.high), max(self.low, self.high)
        return self


class Small(BaseModel):
    """A variant that a number tells."""

    kind: Literal[Level.LOW] = Level.LOW
    layers: list[Layer] = []


class Large(BaseModel):
    """Its alternative."""

    kind: Literal[Level.HIGH] = Level.HIGH
    sorted: Sorted = Sorted(items=[2, 1])


class Config(BaseModel):
    """All of it."""

    layers: list[Layer] = []
    blocks: list[Block] = []
    point: Point = Point()
    points: dict[str, Point] = {}
    typed: Typed = {}
    pair: Pair = Pair()
    strict: Strict = Strict()
    stricts: list[Strict] = []
    empty: Empty | None = None
    sorted: Sorted = Sorted()
    one: Small | Large = Field(Small(), discriminator="kind")
    levels: dict[Level, float] = {}
    by_pair: dict[tuple[int, int], str] = {}
    by_choice: dict[Literal[1, 2], float] = {}
    root: RootModel[dict[str, int]] = RootModel[dict[str, int]]({})
    data: Base64Bytes = b"YWFhYQ=="
    rate: float = 1
    renamed: int = Field(1, alias="other")


NUMBERS = st.floats(allow_nan=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
NAMES = st.sampled_from(["a", "b", "zeta"])
LAYERS = st.lists(
    st.builds(lambda w, act, name: Layer(w=w, act=act, called=name), st.integers(), st.sampled_from(Act), TEXTS),
    max_size=2,
)
POINTS = st.builds(Point, x=NUMBERS, names=st.lists(TEXTS, max_size=2).map(tuple))
STRICTS = st.builds(
    Strict,
    sizes=st.tuples(st.integers(), st.integers()),
    path=st.sampled_from([Path("a"), Path("/b c")]),
    names=st.frozensets(TEXTS, max_size=2),
)
SORTED = st.builds(Sorted, items=st.lists(st.integers(), max_size=3), low=NUMBERS, high=NUMBERS)
FIELDS: dict[str, Any] = {
    "layers": LAYERS,
    "blocks": st.lists(
        st.dictionaries(NAMES, st.integers() | TEXTS, max_size=2).map(lambda extra: Block(**extra)), max_size=2
    ),
    "point": POINTS,
    "points": st.dictionaries(NAMES, POINTS, max_size=2),
    "typed": st.fixed_dictionaries({}, optional={"lr": NUMBERS, "steps": st.lists(st.integers(), max_size=2)}),
    "pair": st.builds(Pair, one=st.integers(), other=TEXTS),
    "strict": STRICTS,
    "stricts": st.lists(STRICTS, max_size=2),
    "empty": st.none() | st.builds(Empty),
    "sorted": SORTED,
    "one": st.builds(Small, layers=LAYERS) | st.builds(Large, sorted=SORTED),
    "levels": st.dictionaries(st.sampled_from(Level), NUMBERS, max_size=2),
    "by_pair": st.dictionaries(st.tuples(st.integers(), st.integers()), TEXTS, max_size=2),
    "by_choice": st.dictionaries(st.sampled_from([1, 2]), NUMBERS, max_size=2),
    "root": st.dictionaries(NAMES, st.integers(), max_size=2).map(RootModel[dict[str, int]]),
    "rate": NUMBERS,
}


def again(experiment: Experiment, params: dict[str, Any], folder: Path) -> list[Any]:
    """The models that a run's params.yaml and the same as JSON give."""
    (folder / "params.yaml").write_text(to_yaml(params), encoding="utf-8")
    (folder / "params.json").write_text(json.dumps(params), encoding="utf-8")
    return [
        experiment.read(argv=["--params-file", str(folder / name)], environ={}).model
        for name in ("params.yaml", "params.json")
    ]


@given(fields=st.fixed_dictionaries({}, optional=FIELDS), is_whole=st.booleans())
@settings(max_examples=60, deadline=None)
def test_whatever_was_given_is_read_back(
    fields: dict[str, Any], is_whole: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Fields with aliases, further keys, dataclasses, enums, strict and empty models are recorded so."""
    experiment = of(Config)
    values = experiment.read(Config(**fields) if is_whole else fields, environ={})
    assert values.model == Config(**fields)
    found = recorded(experiment, values)
    assert (found.differing, found.left_out) == ([], {})
    for model in again(experiment, found.params, tmp_path_factory.mktemp("params")):
        assert model == values.model


class Scaled(BaseModel):
    """Changes its own results."""

    lr: float = 0.1
    batch: int = 512

    @model_validator(mode="after")
    def _scale(self) -> "Scaled":
        self.lr = self.lr * self.batch / 256
        return self


class Changing(BaseModel):
    """What is not read back as it is."""

    scaled: Scaled = Scaled()
    drop: Annotated[float, AfterValidator(lambda value: value / 100)] = 0.5
    act: Callable[..., Any] = print
    data: bytes = b"\xff"
    other: int = 1


def test_inputs_are_recorded_where_validators_change_their_results(tmp_path: Path) -> None:
    """A value that a validator would change again is recorded as it was given, and gives the run again."""
    experiment = of(Changing)
    values = experiment.read(argv=["--scaled.lr=0.1", "--drop=50", "--other=3"], environ={})
    found = recorded(experiment, values)
    assert (found.params["scaled"], found.params["drop"], found.differing) == ({"lr": 0.1, "batch": 512}, 50.0, [])
    for model in again(experiment, found.params, tmp_path):
        assert model == values.model


def test_defaults_that_would_be_read_as_others_are_left_out(tmp_path: Path) -> None:
    """A default that has no plain form, or that a validator would change, is not in the file and stays the default."""
    experiment = of(Changing)
    values = experiment.read(environ={})
    found = recorded(experiment, values)
    assert found.left_out == {"scaled.lr": 0.2, "drop": 0.5, "act": "<built-in function print>", "data": "\\xff"}
    assert found.differing == []
    for model in again(experiment, found.params, tmp_path):
        assert model == Changing()


def test_what_cannot_be_recorded_is_told_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where params.yaml gives other values, a warning and the record name the parameters, and the run goes on."""
    experiment = of(Changing)
    with caplog.at_level(logging.WARNING, "trainlab.experiments"):
        experiment({"scaled": Scaled(lr=1), "output_dir": tmp_path})
    assert "The parameters scaled.lr" in caplog.text
    (file,) = tmp_path.rglob("run.json")
    record = json.loads(file.read_text())
    assert "scaled.lr" in record["experiment"]["not_read_back"]
    assert record["experiment"]["left_out"]["drop"] == 0.5


def test_a_run_without_such_parameters_has_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run whose values are read back as they are says nothing of it."""

    class Fine(BaseModel):
        token: SecretStr = SecretStr("sekret-default")
        logins: list[SecretStr] = []
        layers: list[Layer] = [Layer(w=3)]
        fixed: int = Field(1, json_schema_extra={"allow_from_file": False})
        rate: float = 1

    with caplog.at_level(logging.WARNING, "trainlab.experiments"):
        of(Fine)({"token": "sekret01", "logins": ["sekret02"], "fixed": 3, "output_dir": tmp_path})
    assert caplog.text == ""
    (file,) = tmp_path.rglob("run.json")
    assert "not_read_back" not in file.read_text()
    assert "sekret" not in file.read_text()


@pytest.mark.parametrize(
    ("argv", "kept"),
    [
        (["--url", "postgresql://u:sekret10@host/db"], "postgresql://u:***@host/db"),
        (["--hosts", "a", "mysql://u:sekret10@h/x"], "mysql://u:***@h/x"),
        (["--checkpoint", "s3://u:sekret10@host/c"], "s3://u:***@host/c"),
        (["--pair", "[u, sekret10]"], 'password: "***"'),
    ],
)
def test_passwords_of_urls_and_named_tuples_are_in_no_file(argv: list[str], kept: str, tmp_path: Path) -> None:
    """The password of a URL, and a field of a named tuple that is one, are masked in all that a run writes."""

    class Login(NamedTuple):
        user: str = ""
        password: str = ""

    class Local(BaseModel):
        url: str = ""
        hosts: list[str] = []
        pair: Login = Login()

    experiment = of(Local)
    experiment.cli([*argv, "--output-dir", str(tmp_path)], exit_on_error=False)
    texts = [file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file()]
    assert not any("sekret10" in text for text in texts)
    assert any(kept in text for text in texts)


@pytest.mark.parametrize("text", ["/data/***/x", "***", "postgresql://u:***@host/db"])
def test_a_text_with_a_mask_in_it_is_not_used(text: str, tmp_path: Path) -> None:
    """A value of a file that a secret was taken out of is refused, and not run with."""

    class Local(BaseModel):
        root: str = ""

    (tmp_path / "p.yaml").write_text(f"root: '{text}'\n")
    with pytest.raises(InvalidValueError, match="root is a secret that was not recorded.*give --root as a whole"):
        of(Local).read(argv=["--params-file", str(tmp_path / "p.yaml")], environ={})


def test_bytes_that_are_no_text_can_be_a_default() -> None:
    """Help and the plain values of bytes that are not UTF-8 show them escaped."""
    from trainlab.experiments.help_text import help_of

    experiment = of(Changing)
    assert "\\xff" in help_of(experiment, "train.py")
    assert experiment.read(environ={}).plain()["data"] == "\\xff"
