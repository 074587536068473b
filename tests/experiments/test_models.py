"""Experiments whose parameters are the fields of a pydantic model."""

import enum
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    SecretStr,
    StrictInt,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

import trainlab
from tests.experiments.made import read
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.experiments import Search
from trainlab.experiments.help_text import help_of


class Color(enum.Enum):
    """A choice."""

    RED = 1
    BLUE = 2


class SGD(BaseModel):
    """Plain gradient descent."""

    kind: Literal["sgd"] = "sgd"
    lr: Annotated[float, Search(1e-4, 1.0, log=True)] = 0.1
    momentum: float = Field(0.9, ge=0, lt=1, description="how much of the last step is kept")


class Adam(BaseModel):
    """Adam."""

    kind: Literal["adam"] = "adam"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)


class Data(BaseModel):
    """What is learnt."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    root: Path = Path("data")
    """where the images lie"""
    size: PositiveInt = 10


class Config(BaseModel):
    """All of it."""

    epochs: int
    """how long
    to train"""
    optimizer: SGD | Adam = Field(Adam(lr=5.0), discriminator="kind")
    data: Data = Data(size=3)
    extra: SGD | None = None
    flag: bool = False
    maybe: bool | None = None
    color: Color = Color.RED
    layers: list[int] = Field(default_factory=lambda: [1, 2])
    names: set[str] = set()
    limits: dict[str, float] = {}
    when: datetime | None = None
    wait: timedelta = timedelta(seconds=3)
    price: Decimal = Decimal("1.5")
    key: SecretStr | None = Field(None, json_schema_extra={"envvar": "MY_KEY"})
    hidden: int = Field(0, json_schema_extra={"hidden": True, "allow_from_file": False})
    stages: list[Data] = []

    @model_validator(mode="after")
    def _enough_epochs(self) -> "Config":
        if self.epochs < self.data.size:
            raise ValueError("fewer epochs than data")
        return self

    @field_validator("price")
    @classmethod
    def _cheap(cls, price: Decimal) -> Decimal:
        if price > 100:
            raise ValueError("too dear")
        return price


@pytest.fixture
def train() -> trainlab.Experiment:
    """An experiment that takes the model."""

    @trainlab.experiment
    def train(config: Config) -> None: ...

    return train


def config(made: trainlab.Experiment, *words: str, **others: Any) -> Any:
    """The model of a command line that is right but for some words."""
    return read(made, "--epochs", "20", *words, **others).model


def test_the_defaults_are_the_models(train: trainlab.Experiment) -> None:
    """Where nothing is given, the main function gets what the model's class makes."""
    assert config(train) == Config(epochs=20)
    values = read(train, "--epochs", "20")
    assert list(values.params)[: len(Config.model_fields)] == [*Config.model_fields]
    assert values.params["data"] == Data(size=3)
    assert values.origins["data.size"] == "default"
    assert values.origins["epochs"] == "command line"


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (["--data.size", "4"], {"data": Data(size=4)}),
        (["--data.root=/a"], {"data": Data(root=Path("/a"), size=3)}),
        (["--optimizer.lr", "-1e-3"], {"optimizer": Adam(lr=-0.001)}),
        (["--optimizer.betas", "0", "1"], {"optimizer": Adam(lr=5.0, betas=(0.0, 1.0))}),
        (["--optimizer.kind", "sgd"], {"optimizer": SGD()}),
        (["--optimizer.kind", "SGD", "--optimizer.lr", "2"], {"optimizer": SGD(lr=2)}),
        (["--optimizer.momentum", "0.5", "--optimizer.kind", "sgd"], {"optimizer": SGD(momentum=0.5)}),
        (["--extra.lr", "3"], {"extra": SGD(lr=3)}),
        (["--extra", "none"], {"extra": None}),
        (["--extra", "None"], {"extra": None}),
        (["--flag"], {"flag": True}),
        (["--flag", "--no-flag"], {"flag": False}),
        (["--maybe"], {"maybe": True}),
        (["--no-maybe"], {"maybe": False}),
        (["--maybe=none"], {"maybe": None}),
        (["--color", "blue"], {"color": Color.BLUE}),
        (["--color", "2"], {"color": Color.BLUE}),
        (["--layers", "3", "-4"], {"layers": [3, -4]}),
        (["--layers"], {"layers": []}),
        (["--names", "a", "b", "a"], {"names": {"a", "b"}}),
        (["--limits", "a=1", "b=-2e-3"], {"limits": {"a": 1.0, "b": -0.002}}),
        (["--when", "2024-01-02T03:04:05"], {"when": datetime(2024, 1, 2, 3, 4, 5)}),
        (["--when", "none"], {"when": None}),
        (["--wait", "PT1H"], {"wait": timedelta(hours=1)}),
        (["--price", "2.5"], {"price": Decimal("2.5")}),
        (["--key", "hidden"], {"key": SecretStr("hidden")}),
        (["--stages", "[{root: a}, {size: 7}]"], {"stages": [Data(root=Path("a")), Data(size=7)]}),
    ],
)
def test_an_option_for_each_field(train: trainlab.Experiment, words: list[str], values: dict[str, Any]) -> None:
    """Each field of each model is an option, whatever its type."""
    assert config(train, *words) == Config(epochs=20, **values)


@pytest.mark.parametrize(
    ("words", "problems"),
    [
        (["--epochs", "x"], ["--epochs: must be a whole number. Received: 'x'."]),
        ([], ["--epochs is needed: give it, or epochs in a params file or a call."]),
        (["--epochs", "1"], ["fewer epochs than data."]),
        (["--epochs", "9", "--price", "101"], ["--price: too dear. Received: '101'."]),
        (["--epochs", "9", "--data.size", "0"], ["--data.size: must be above 0. Received: '0'."]),
        (["--epochs", "9", "--data.sise", "1"], ["There is no option --data.sise. Did you mean --data.size?"]),
        (["--epochs", "9", "--layers", "1", "b"], ["--layers, item 2: must be a whole number. Received: '1' 'b'."]),
        (["--epochs", "9", "--color", "bleu"], ["--color: must be one of 1, 2"]),
        (
            ["--epochs", "9", "--optimizer.kind", "adm"],
            ["--optimizer.kind: must be one of sgd, adam. Received: 'adm'."],
        ),
        (
            ["--epochs", "9", "--optimizer.momentum", "0.5"],
            ["--optimizer.momentum belongs to optimizer.kind sgd, and adam is chosen (its default)."],
        ),
        (
            ["--epochs", "x", "--optimizer.kind", "sgd", "--optimizer.betas", "0", "1", "--data.size", "b"],
            [
                "--optimizer.betas belongs to optimizer.kind adam, and sgd is chosen (command line).",
                "--epochs: must be a whole number. Received: 'x'.",
                "--data.size: must be a whole number. Received: 'b'.",
            ],
        ),
        (
            ["--optimizer.kind", "sgd", "--optimizer.momentum", "1"],
            ["--epochs is needed", "--optimizer.momentum: must be"],
        ),
        (["--epochs", "9", "--extra", "{lr: 3}"], ["--extra takes none, or its own parameters: extra.kind"]),
        (["--epochs", "9", "--flag=maybe"], ["--flag: must be yes or no. Received: 'maybe'."]),
    ],
)
def test_a_wrong_line_is_told_by_option(train: trainlab.Experiment, words: list[str], problems: list[str]) -> None:
    """What pydantic finds wrong in a field is told of its option, all at once."""
    with pytest.raises(InvalidValueError) as caught:
        read(train, *words)
    told = str(caught.value).splitlines()
    assert len(told) == len(problems)
    for line, problem in zip(told, problems, strict=True):
        assert line.startswith(problem)


def test_a_call_takes_nested_and_dotted_names(train: trainlab.Experiment) -> None:
    """A dict may be nested as the model is, or have the names of the options; the model itself will do too."""
    expected = Config(epochs=20, optimizer=SGD(lr=2), data=Data(size=4))
    nested = {"epochs": 20, "optimizer": {"kind": "sgd", "lr": 2}, "data": {"size": 4}}
    dotted = {"epochs": 20, "optimizer.kind": "sgd", "optimizer.lr": 2, "data.size": 4}
    mixed = {"epochs": 20, "optimizer": SGD(lr=2), "data": {"size": 4}}
    for params in (nested, dotted, mixed, expected):
        assert train.read(params, environ={}).model == expected
    assert config(train, "--data.size", "5", params=dotted).data.size == 5
    for wrong, problem in [
        ({"epochs": 20, "data": {"sise": 3}}, r"no parameter 'data.sise', in the call. Did you mean data.size\?"),
        ({"epochs": 20, "data": 3}, "data takes its own parameters: data.root, data.size. Received: 3."),
        ({"epochs": 20, "data": {"size": 3}, "data.size": 4}, "data.size is given twice, in the call."),
    ]:
        with pytest.raises(InvalidValueError, match=problem):
            train.read(wrong, environ={})
    with pytest.raises(InvalidTypeError, match="takes a dict or a Config"):
        train.read(Data())


def test_a_file_of_one_variant_and_an_option_for_another(train: trainlab.Experiment, tmp_path: Path) -> None:
    """With a run's params file, --optimizer.kind alone chooses another variant; what only the old one had is left."""
    file = tmp_path / "params.yaml"
    file.write_text("epochs: 20\noptimizer:\n  kind: sgd\n  lr: 0.5\n  momentum: 0.1\nhidden: 7\n")
    chosen = read(train, "--params-file", str(file), "--optimizer.kind", "adam")
    assert chosen.params["optimizer"] == Adam(lr=0.5)
    assert chosen.params["hidden"] == 0
    assert chosen.origins["optimizer.kind"] == "command line"
    assert "optimizer.momentum" not in chosen.origins
    file.write_text("epochs: 20\nextra: {lr: 2}\n")
    assert read(train, "--params-file", str(file)).params["extra"] == SGD(lr=2)
    assert read(train, "--params-file", str(file), "--extra", "none").params["extra"] is None
    file.write_text("epochs: 20\nextra: null\n")
    assert read(train, "--params-file", str(file)).params["extra"] is None
    assert read(train, "--params-file", str(file), "--extra.lr", "4").params["extra"] == SGD(lr=4)


def test_the_plain_values_nest_as_the_model_does(train: trainlab.Experiment) -> None:
    """What goes into params.yaml is plain data, with secrets masked."""
    values = read(train, "--epochs", "20", "--color", "blue", environ={"MY_KEY": "hunter22"})
    plain = values.plain()
    assert plain["optimizer"] == {"kind": "adam", "lr": 5.0, "betas": [0.9, 0.999]}
    assert (plain["data"], plain["color"], plain["wait"]) == ({"root": "data", "size": 3}, 2, "PT3S")
    assert plain["key"] == "***"
    assert values.secrets == ("hunter22",)
    assert read(train, "--epochs", "20").plain()["key"] is None
    assert values.origins["key"] == "environment variable MY_KEY"
    assert isinstance(values.model, Config)
    assert values.model.key is not None
    assert values.model.key.get_secret_value() == "hunter22"


def test_a_field_brings_its_facts(train: trainlab.Experiment) -> None:
    """Help, search space, variable and visibility of a field are those that the class declares."""
    of_name = {parameter.name: parameter for parameter in train.get_parameters()}
    assert of_name["epochs"].help == "how long\nto train"
    assert of_name["data.root"].help == "where the images lie"
    assert of_name["optimizer.momentum"].help == "how much of the last step is kept"
    assert of_name["optimizer.momentum"].only_with == ("optimizer.kind=sgd",)
    assert of_name["optimizer.lr"].only_with == ()
    assert of_name["optimizer.lr"].default == 5.0
    assert of_name["optimizer.lr"].search == Search(1e-4, 1.0, log=True)
    assert (of_name["key"].envvar, of_name["key"].is_secret, of_name["hidden"].hidden) == ("MY_KEY", True, True)
    assert of_name["epochs"].required
    assert of_name["data.size"].option == "--data.size"
    assert (of_name["data.size"].default, of_name["data.size"].group) == (3, "data")


def test_annotations_may_be_texts() -> None:
    """A model is found also where annotations are not evaluated, inside a function too."""

    class Local(BaseModel):
        lr: float = 1.0

    @trainlab.experiment
    def train(config: "Local", context: "Any") -> Any:
        return train  # a name that has no value yet where the types are looked up

    assert train.model is Local
    assert train.takes_context

    def of_nothing(config: "Missing") -> None: ...  # type: ignore[name-defined]  # noqa: F821

    with pytest.raises(InvalidTypeError, match="cannot be found where the function is defined"):
        trainlab.experiment(of_nothing)

    def of_a_number(config: int) -> None: ...

    with pytest.raises(InvalidTypeError, match="one pydantic model"):
        trainlab.experiment(of_a_number)


def test_a_model_that_cannot_be_options_is_an_error_at_once() -> None:
    """A field with a default parameter's name, a wrong default and a model inside itself are refused before a run."""

    class Clashing(BaseModel):
        debug: bool = False

    class Reserved(BaseModel):
        help: str = ""

    class Wrong(BaseModel):
        lr: float = "much"  # type: ignore[assignment]

    class Many(BaseModel):
        kind: Literal["many"] = "many"
        lr: list[float] = []

    class Mixed(BaseModel):
        optimizer: SGD | Many = Field(SGD(), discriminator="kind")

    class Node(BaseModel):
        child: Optional["Node"] = None

    def takes(model: type[BaseModel]) -> Any:
        def train(config: Any) -> None: ...

        train.__annotations__["config"] = model
        return train

    with pytest.raises(InvalidValueError, match="a field 'debug', a parameter that every experiment has"):
        trainlab.experiment(takes(Clashing))
    with pytest.raises(InvalidValueError, match="a field 'help', whose option has a meaning"):
        trainlab.experiment(takes(Reserved))
    with pytest.raises(InvalidValueError, match="default of 'lr' cannot be used: must be a number. Received: 'much'"):
        trainlab.experiment(takes(Wrong))
    with pytest.raises(InvalidTypeError, match="optimizer.lr is a single value in one variant and a list"):
        trainlab.experiment(takes(Mixed))
    with pytest.raises(InvalidTypeError, match="Node holds itself"):
        trainlab.experiment(takes(Node))


def test_a_parameter_beside_a_model() -> None:
    """An experiment with a model may have single parameters too, which trainlab.params tells."""

    class Local(BaseModel):
        lr: float = 1.0

    def train(config: Local) -> None: ...

    both = trainlab.parameter("extra", int, 3)(trainlab.experiment(train))
    assert read(both, "--lr", "2", "--extra", "4").plain()["extra"] == 4
    with pytest.raises(InvalidValueError, match="a field 'lr', a parameter that it declares"):
        trainlab.parameter("lr")(both)
    with pytest.raises(InvalidTypeError, match="the fields of Local: let this experiment take a subclass"):
        trainlab.experiment(inherit_params=both)(lambda params: None)


def test_a_union_that_may_be_missing_needs_its_kind() -> None:
    """Parameters of a variant without the variant's name, or beside `none`, are not dropped silently."""

    class Local(BaseModel):
        optimizer: Annotated[SGD | Adam, Field(discriminator="kind")] | None = None

    def train(config: Local) -> None: ...

    made = trainlab.experiment(train)
    assert read(made).params["optimizer"] is None
    assert read(made, "--optimizer.kind", "sgd", "--optimizer.lr", "3").params["optimizer"] == SGD(lr=3)
    with pytest.raises(InvalidValueError, match="--optimizer.kind is needed"):
        read(made, "--optimizer.lr", "3")
    with pytest.raises(InvalidValueError, match="--optimizer is given, and so are parameters of its own."):
        read(made, "--optimizer", "none", "--optimizer.lr", "3")


def test_runs_share_no_default_object() -> None:
    """What one run does to a default is not seen by the next."""

    class Holder(BaseModel):
        things: Any = []

    class Local(BaseModel):
        holder: Holder = Holder(things=[1])

    def train(config: Local) -> None: ...

    both = trainlab.parameter("x", Any, [2])(trainlab.experiment(train))
    for _ in range(2):
        params = read(both).params
        assert (params["holder"].things, params["x"]) == ([1], [2])
        params["holder"].things.append(0)
        params["x"].append(0)


def test_defaults_of_nested_fields_can_be_changed() -> None:
    """@experiment(defaults=...) reaches into models, by the name, nested or as a model, and --help tells it."""

    class Local(BaseModel):
        data: Data = Data()
        extra: Data | None = None

    def train(config: Local) -> None: ...

    for defaults in ({"data.size": 7}, {"data": {"size": 7}}, {"data": Data(size=7)}):
        made = trainlab.experiment(defaults={**defaults, "extra.size": 8})(train)
        values = read(made)
        assert (values.params["data"].size, values.params["extra"].size, values.origins["data.size"]) == (
            7,
            8,
            "default",
        )
        told = " ".join(help_of(made, "train.py").split())
        assert "--data.size INT [default: 7]" in told
        assert "--extra none none for none at all [default: set]" in told
    told = " ".join(help_of(trainlab.experiment(train), "train.py").split())
    assert "--extra none none for none at all [default: none]" in told
    with pytest.raises(InvalidValueError, match="default of 'data.size' in defaults= cannot be used: must be above 0"):
        trainlab.experiment(defaults={"data": {"size": 0}})(train)


def test_help_of_a_union_inside_a_union_names_both_choices() -> None:
    """A field that two choices lead to is told with both, and none of them twice."""

    class Inner(BaseModel):
        kind: Literal["b", "c"] = "b"
        size: int = 1

    class Other(BaseModel):
        kind: Literal["d"] = "d"

    class Outer(BaseModel):
        kind: Literal["n"] = "n"
        inner: Inner | Other = Field(Inner(), discriminator="kind")

    class Last(BaseModel):
        kind: Literal["z"] = "z"

    class Local(BaseModel):
        o: Outer | Last = Field(Outer(), discriminator="kind")

    @trainlab.experiment
    def train(config: Local) -> None: ...

    told = " ".join(help_of(train, "train.py").split())
    both = "only with o.kind=n and o.inner.kind=b or o.kind=n and o.inner.kind=c"
    assert f"--o.inner.size INT [{both}; default: 1]" in told
    assert "--o.inner.kind {b,c,d} which of them [only with o.kind=n; default: b]" in told


def test_aliases_and_strict_fields_take_options() -> None:
    """A field with an alias has the option of its own name, and one that takes no text takes an option's."""

    class Local(BaseModel):
        model_config = ConfigDict(strict=True)

        lr: float = Field(1.0, alias="learningRate")
        steps: StrictInt = 3
        nested: Data = Field(Data(), validation_alias="inner")

    def train(config: Local) -> None: ...

    found: Any = read(trainlab.experiment(train), "--lr", "2", "--steps", "4", "--nested.size", "5").model
    assert (found.lr, found.steps, found.nested.size) == (2.0, 4, 5)
    with pytest.raises(InvalidValueError, match="--lr: must be a number. Received: 'a'"):
        read(trainlab.experiment(train), "--lr", "a")


def test_factories_of_defaults_run_for_each_run() -> None:
    """A default_factory, of a field or of a nested model, makes a new value for each run."""
    made: list[int] = []

    def count() -> int:
        made.append(0)
        return len(made)

    class Inner(BaseModel):
        number: int = Field(default_factory=count)
        other: int = 0

    class Local(BaseModel):
        inner: Inner = Field(default_factory=Inner)
        own: list[int] = Field(default_factory=list)

    def train(config: Local) -> None: ...

    experiment = trainlab.experiment(train)
    first, second = (read(experiment, "--inner.other", "1").params for _ in range(2))
    assert first["inner"].number != second["inner"].number
    assert first["inner"].other == 1
    assert first["own"] is not second["own"]


@pytest.mark.skipif(not hasattr(FieldInfo, "default_factory_takes_validated_data"), reason="pydantic 2.10 has it")
def test_a_factory_that_looks_at_other_fields_is_pydantics() -> None:
    """A default made of other fields is there, and no error of its own beside theirs."""

    class Local(BaseModel):
        lr: float = 2.0
        twice: float = Field(default_factory=lambda data: 2 * data["lr"])

    def train(config: Local) -> None: ...

    made = trainlab.experiment(train)
    assert read(made, "--lr", "3").params["twice"] == 6.0
    with pytest.raises(InvalidValueError) as caught:
        read(made, "--lr", "a")
    assert str(caught.value) == "--lr: must be a number. Received: 'a'."


def test_a_secret_of_a_model_is_in_no_error() -> None:
    """An error that pydantic raises with the whole input shows no secret."""

    class Local(BaseModel):
        api_key: SecretStr = SecretStr("")
        lr: float = 1.0

        @model_validator(mode="before")
        @classmethod
        def _refuse(cls, values: Any) -> Any:
            raise ValueError(f"cannot use {values}")

    def train(config: Local) -> None: ...

    with pytest.raises(InvalidValueError, match="cannot use") as caught:
        read(trainlab.experiment(train), "--api-key", "hunter2hunter2", "--lr", "3")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__context__ is None
