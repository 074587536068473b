"""Parameters that decorators declare: what they take, what they give, and what is wrong before anything runs."""

import enum
import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from typing_extensions import TypedDict

import trainlab
from tests.experiments.made import read
from trainlab.errors import InvalidTypeError, InvalidValueError, TrainlabError
from trainlab.experiments import Values
from trainlab.experiments.help_text import help_of

DEFAULTS = {
    "output_dir": Path("runs"),
    "params_file": None,
    "checkpoint": None,
    "cuda": True,
    "deterministic": False,
    "debug": False,
    "distributed": False,
    "nproc_per_node": 1,
    "nnodes": 1,
    "node_rank": 0,
    "master_addr": "127.0.0.1",
    "master_port": 29500,
}


class Sizes(TypedDict):
    """What is written as YAML."""

    width: int


class Activation(enum.Enum):
    """A choice whose members are known by name and by value."""

    RELU = "relu"
    GELU = (1, 2)


def one(**options: Any) -> trainlab.Experiment:
    """An experiment with one parameter, x."""

    @trainlab.parameter("x", **options)
    @trainlab.experiment
    def train(params: dict[str, Any]) -> None: ...

    return train


def test_every_parameter_has_a_value() -> None:
    """The dict has the user's parameters as they stand in the source, then the default ones; None is no value."""

    @trainlab.parameter("first", int, 3)
    @trainlab.parameter("second")
    @trainlab.experiment
    @trainlab.parameter("third", float, required=True)
    @trainlab.parameter("flag", is_flag=True)
    def train(params: dict[str, Any]) -> None: ...

    params = read(train, "--third", "0.5").params
    seed = params.pop("random_seed")
    assert list(params.items()) == [
        ("first", 3),
        ("second", None),
        ("third", 0.5),
        ("flag", False),
        *DEFAULTS.items(),
    ]
    assert 0 <= seed < 2**32
    assert seed != read(train, "--third", "0.5").params["random_seed"]


@pytest.mark.parametrize(
    ("options", "words", "value"),
    [
        ({}, ["--x", "text"], "text"),
        ({}, ["--x="], ""),
        ({"type": int}, ["--x=3"], 3),
        ({"type": float}, ["--x", "-1e-3"], -0.001),
        ({"type": float}, ["--x", "-.5"], -0.5),
        ({"type": float}, ["--x", "-inf"], float("-inf")),
        ({"type": float}, ["--x", "1", "--x", "2"], 2.0),
        ({"type": bool}, ["--x", "Yes"], True),
        ({"type": bool}, ["--x", "f"], False),
        ({"type": Path}, ["--x", "a/b"], Path("a/b")),
        ({"type": Activation}, ["--x", "relu"], Activation.RELU),
        ({"type": Activation}, ["--x", "gelu"], Activation.GELU),
        ({"type": Literal[1, 2]}, ["--x", "2"], 2),
        ({"type": int | str}, ["--x", "3"], 3),
        ({"type": str | int}, ["--x", "3"], 3),
        ({"type": int | str}, ["--x", "3a"], "3a"),
        ({"type": int | None, "default": 3}, ["--x", "none"], None),
        ({"type": str | None}, ["--x", "none"], "none"),
        ({"type": lambda text: text[::-1]}, ["--x", "abc"], "cba"),
        ({"is_flag": True}, ["--x"], True),
        ({"is_flag": True, "default": True}, ["--no-x"], False),
        ({"is_flag": True}, ["--x", "--no-x"], False),
        ({"is_flag": True}, ["--no-x", "--x"], True),
        ({"type": int, "multiple": True}, ["--x", "1", "-2", "3"], [1, -2, 3]),
        ({"type": int, "multiple": True}, ["--x", "1", "--x=2"], [1, 2]),
        ({"type": int, "multiple": True}, ["--x"], []),
        ({"type": int, "multiple": True, "default": [7]}, [], [7]),
        ({"type": tuple[int, str]}, ["--x", "1", "a"], (1, "a")),
        ({"type": set[int]}, ["--x", "1", "1", "2"], {1, 2}),
        ({"type": dict[str, float]}, ["--x", "a=1", "b=1e-3"], {"a": 1.0, "b": 1e-3}),
        ({"type": dict[str, float]}, ["--x", "{a: 1}"], {"a": 1.0}),
        ({"type": list[list[int]]}, ["--x", "[[1], [2, 3]]"], [[1], [2, 3]]),
        ({"type": Any}, ["--x", "{a: [1, b]}"], {"a": [1, "b"]}),
        ({"type": Sizes}, ["--x", "{width: 3}"], {"width": 3}),
        ({"type": Sizes | None}, ["--x", "none"], None),
        ({"type": int, "allowed_values": [1, 2]}, ["--x", "2"], 2),
        ({"type": float, "allowed_values": [1, 2]}, ["--x", "2"], 2.0),
        ({"type": Path, "allowed_values": ["a", "b"]}, ["--x", "b"], Path("b")),
        ({"type": Activation, "allowed_values": ["RELU"]}, ["--x", "relu"], Activation.RELU),
        ({"type": tuple[int, ...], "allowed_values": ["1", 2]}, ["--x", "2", "1"], (2, 1)),
        ({"type": set[str], "allowed_values": ["A", "B"]}, ["--x", "a"], {"A"}),
        ({"type": deque[int]}, ["--x", "1", "2"], deque([1, 2])),
        ({"type": defaultdict[str, int]}, ["--x", "a=1"], defaultdict(int, {"a": 1})),
        ({"type": OrderedDict[str, int]}, ["--x", "a=1"], OrderedDict(a=1)),
        ({"type": Counter[str]}, ["--x", "{a: 2}"], Counter("aa")),
        ({"type": float}, ["--x", "-Infinity"], float("-inf")),
        ({"allowed_values": ["Adam", "SGD"]}, ["--x", "adam"], "Adam"),
        ({"allowed_values": [1, "all"]}, ["--x", "1"], 1),
        ({"allowed_values": ["A", "B"], "multiple": True}, ["--x", "b", "a"], ["B", "A"]),
        ({"default": lambda: "made"}, [], "made"),
        ({"required": True, "default": "there"}, [], "there"),
    ],
)
def test_a_line_gives_typed_values(options: dict[str, Any], words: list[str], value: Any) -> None:
    """What stands on a command line arrives as a value of the parameter's type."""
    found = read(one(**options), *words).params["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("options", "words", "problem"),
    [
        ({"type": int}, ["--x", "a"], "--x: must be a whole number. Received: 'a'."),
        ({"type": bool}, ["--x", "maybe"], "--x: must be yes or no. Received: 'maybe'."),
        ({"type": Annotated[float, Field(gt=0)]}, ["--x", "0"], "--x: must be above 0.0. Received: '0'."),
        ({"type": int}, ["--x"], "--x needs a value."),
        ({"type": int}, ["--x", "--cuda"], "--x needs a value. Received: '--cuda'. A value that begins with a dash"),
        ({"type": int}, ["--x", "1", "2"], "--x takes one value. Received: '2'."),
        ({}, ["3"], "A value stands after its option, as in --name VALUE. Received: '3'."),
        ({}, ["--", "--x"], "Received: '--x'."),
        ({"is_flag": True}, ["--x", "3"], "--x takes no value. Received: '3'."),
        ({"is_flag": True}, ["--x=3"], "--x takes no value: it is --x or --no-x. Received: --x=3."),
        ({"is_flag": True}, ["--no-x=3"], "--no-x takes no value: it is --x or --no-x. Received: --no-x=3."),
        ({"allowed_values": ["adam", "sgd"]}, ["--x", "lamb"], "--x: must be one of adam, sgd. Received: 'lamb'."),
        ({"type": Literal["adam", "sgd"]}, ["--x", "adm"], "must be one of adam, sgd (Did you mean adam?). Received"),
        ({"type": json.loads}, ["--x", "{"], "--x: Expecting property name"),
        ({"type": {"cpu": 1}.__getitem__}, ["--x", "gpu"], "--x: KeyError: 'gpu'. Received: 'gpu'."),
        (
            {"type": int, "multiple": True},
            ["--x=1", "2"],
            "Several values are given as --x A B or as --x=A --x=B. Recei",
        ),
        ({"type": dict[str, int] | dict[str, str]}, ["--x", "a=b"], "must be a dict; in YAML {key: value}"),
        (
            {"type": dict[str, dict[str, int]]},
            ["--x", "a=1"],
            "--x: must be a dict; in YAML {key: value}. Received: 'a=",
        ),
        ({"type": int, "multiple": True}, ["--x", "1", "b"], "--x: item 2 must be a whole number."),
        ({"type": tuple[int, int]}, ["--x", "1"], "--x: item 2 "),
        ({"type": dict[str, int]}, ["--x", "a"], "--x takes key=value pairs"),
        ({"required": True}, [], "--x is needed: give it, or x in a params file or a call."),
        ({"required": True, "envvar": "X"}, [], "--x is needed: give it, or the environment variable X, or x in"),
        ({}, ["--random-sed", "3"], "There is no option --random-sed. Did you mean --random-seed?"),
        ({}, ["--rand", "3"], "There is no option --rand."),
        ({}, ["-x", "3"], "There is no option -x. Did you mean --x?"),
        ({}, ["--nnodes", "0"], "--nnodes: must be at least 1. Received: '0'."),
    ],
)
def test_a_wrong_line_is_told_in_a_persons_words(options: dict[str, Any], words: list[str], problem: str) -> None:
    """Of a wrong line one learns the option, what was given, what is allowed, and what was meant."""
    with pytest.raises(InvalidValueError) as caught:
        read(one(**options), *words)
    assert problem in str(caught.value)
    assert "pydantic" not in str(caught.value)


def test_all_that_is_wrong_is_told_at_once() -> None:
    """Whoever mends a line need not find its errors one after the other."""
    with pytest.raises(InvalidValueError) as caught:
        read(
            one(type=int, required=True),
            "--y",
            "1",
            "--nnodes",
            "x",
            "--seed=1",
            "--x",
            "a",
            environ={"NODE_RANK": "b"},
        )
    told = str(caught.value).splitlines()
    assert [line.split(":")[0].split(".")[0] for line in told] == [
        "There is no option --y",
        "There is no option --seed",
        "--x",
        "--nnodes",
        "the environment variable NODE_RANK",
    ]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"name": "a-b"}, "a Python name"),
        ({"name": "class"}, "a Python name"),
        ({"name": "_x"}, "a Python name"),
        ({"name": 3}, "a Python name"),
        ({"name": "help"}, "--help has a meaning of its own"),
        ({"name": "x", "is_flag": True, "multiple": True}, "has no value"),
        ({"name": "x", "is_flag": True, "allowed_values": [1]}, "has no value"),
        ({"name": "x", "allowed_values": []}, "empty"),
        ({"name": "x", "allowed_values": "ab"}, "a list"),
        ({"name": "x", "type": 3}, "a type, or a function"),
        ({"name": "x", "type": int, "default": "a"}, "'x' cannot be used: must be a whole number. Received: 'a'."),
        (
            {"name": "x", "default": "c", "allowed_values": ["a", "b"]},
            "'x' cannot be used: must be one of a, b. Received",
        ),
        (
            {"name": "x", "type": int, "allowed_values": [1, "b"]},
            "of 'x' cannot be used: must be a whole number. Received",
        ),
        ({"name": "x", "envvar": ""}, "name of a variable"),
        ({"name": "x", "search": 3}, "trainlab.Search"),
        ({"name": "password", "type": int, "default": "abc"}, "Received: ***."),
    ],
)
def test_a_wrong_declaration_is_an_error_at_once(options: dict[str, Any], problem: str) -> None:
    """A parameter that could never be given is refused where it is declared."""
    with pytest.raises(TrainlabError) as caught:
        trainlab.parameter(**options)
    assert problem in str(caught.value)


def _above_and_below(decorate: Callable[[Any], Any], other: Callable[[Any], Any]) -> list[Callable[[], Any]]:
    """Two declarations, in all places where they can stand around ``@experiment``."""

    def function() -> Any:
        def train(params: dict[str, Any]) -> None: ...

        return train

    return [
        lambda: decorate(other(trainlab.experiment(function()))),
        lambda: decorate(trainlab.experiment(other(function()))),
        lambda: trainlab.experiment(decorate(other(function()))),
        lambda: other(trainlab.experiment(decorate(function()))),
    ]


@pytest.mark.parametrize("place", range(4))
def test_a_name_twice_is_an_error_wherever_it_stands(place: int) -> None:
    """No parameter is declared twice, above or below @experiment, in a group or alone."""
    alone = trainlab.parameter("x")
    grouped = trainlab.param_group("group", trainlab.parameter("x"))
    for pair in [(alone, alone), (alone, grouped), (grouped, alone)]:
        with pytest.raises(InvalidValueError, match="declares the parameter 'x' twice"):
            _above_and_below(*pair)[place]()


@pytest.mark.parametrize("place", range(4))
def test_a_group_twice_is_an_error_wherever_it_stands(place: int) -> None:
    """Two groups of parameters never share a heading."""
    groups = [trainlab.param_group("group", trainlab.parameter(name)) for name in ("x", "y")]
    with pytest.raises(InvalidValueError, match="a group of parameters 'group' already"):
        _above_and_below(groups[0], groups[1])[place]()


def test_names_that_clash_are_errors() -> None:
    """A name of a default parameter, one twice inside a group, and one that is another's --no- are refused."""
    with pytest.raises(InvalidValueError, match="'debug', which every experiment has"):
        trainlab.parameter("debug")(lambda params: None)
    with pytest.raises(InvalidValueError, match="'x' twice"):
        trainlab.param_group("group", trainlab.parameter("x"), trainlab.parameter("x"))
    with pytest.raises(InvalidValueError, match="--no-x would be"):
        trainlab.parameter("no_x")(trainlab.parameter("x", is_flag=True)(lambda params: None))
    with pytest.raises(InvalidTypeError, match="param_group"):
        trainlab.param_group("group")
    with pytest.raises(InvalidTypeError, match="param_group"):
        trainlab.param_group("group", "help", "x")


def test_inherited_parameters_come_first() -> None:
    """An experiment has the parameters of experiments and functions that it inherits from, with defaults of its own."""

    @trainlab.parameter("lr", float, 0.1)
    @trainlab.param_group("data", "What is learnt.", trainlab.parameter("size", int, 10))
    def base(params: dict[str, Any]) -> None: ...

    @trainlab.parameter("depth", int, 2)
    @trainlab.experiment
    def first(params: dict[str, Any]) -> None: ...

    @trainlab.parameter("own")
    @trainlab.experiment(inherit_params=[base, first], defaults={"lr": 0.5, "debug": True})
    def second(params: dict[str, Any]) -> None: ...

    values = read(second)
    assert list(values.params)[:4] == ["lr", "size", "depth", "own"]
    assert (values.params["lr"], values.params["debug"]) == (0.5, True)
    assert values.origins["lr"] == "default"
    assert read(second, "--lr", "1").params["lr"] == 1.0
    assert second.parameters[1].group == "data"
    assert "What is learnt." in second.group_helps["data"]


@pytest.mark.parametrize("is_above", [True, False])
def test_an_inherited_name_cannot_be_declared_again(is_above: bool) -> None:
    """What is inherited stays what it is."""

    @trainlab.parameter("lr", float)
    def base(params: dict[str, Any]) -> None: ...

    def train(params: dict[str, Any]) -> None: ...

    again, make = trainlab.parameter("lr"), trainlab.experiment(inherit_params=base)
    with pytest.raises(InvalidValueError, match="'lr', which it inherits"):
        again(make(train)) if is_above else make(again(train))


def test_parents_may_share_a_single_parameter_and_no_group() -> None:
    """Of two parents with one parameter the first counts; in different groups it is an error."""

    def parent(*decorators: Any) -> Any:
        def base(params: dict[str, Any]) -> None: ...

        for decorate in decorators:
            decorate(base)
        return base

    single = [parent(trainlab.parameter("x", int, default)) for default in (1, 2)]
    grouped = [parent(trainlab.param_group(name, trainlab.parameter("x"))) for name in ("a", "b")]

    def train(params: dict[str, Any]) -> None: ...

    assert read(trainlab.experiment(inherit_params=single)(train)).params["x"] == 1
    with pytest.raises(InvalidValueError, match="'x' twice, in the groups 'a' and 'b'"):
        trainlab.experiment(inherit_params=grouped)(train)


def test_changed_defaults_have_to_fit() -> None:
    """A changed default of an unknown name, or one that cannot be used, is told where the experiment is defined."""

    @trainlab.parameter("color", allowed_values=["red"])
    @trainlab.parameter("password")
    def train(params: dict[str, Any]) -> None: ...

    for defaults, problem in [
        ({"nnode": 3}, "no parameter 'nnode', in defaults=. Did you mean nnodes?"),
        (
            {"nnodes": "a"},
            "The default of 'nnodes' in defaults= cannot be used: must be a whole number. Received: 'a'.",
        ),
        ({"color": "blue"}, "The default of 'color' in defaults= cannot be used: must be one of red."),
        ({"password": 12345}, "Received: ***."),
        (
            {"nnodes": lambda: 3},
            "defaults= takes values; a function that makes one is @trainlab.parameter(default=...)",
        ),
    ]:
        with pytest.raises(InvalidValueError) as caught:
            trainlab.experiment(defaults=defaults)(train)
        assert problem in str(caught.value)
    with pytest.raises(InvalidValueError, match="the default of x: must be a whole number"):
        read(one(type=int, default=lambda: "a"))


def test_help_tells_changed_defaults() -> None:
    """What @experiment(defaults=...) changes is the default in --help, and what was needed is so no longer."""

    @trainlab.experiment(defaults={"size": 5, "lr": "3e-1", "output_dir": "results", "seed": 3, "debug": None})
    @trainlab.parameter("size", int, 10, default_help="ten")
    @trainlab.parameter("lr", float, required=True)
    @trainlab.parameter("seed", int, lambda: 4)
    def train(params: dict[str, Any]) -> None: ...

    told = " ".join(help_of(train, "train.py").split())
    assert "--size INT [default: 5] --lr FLOAT [default: 0.3] --seed INT [default: 3]" in told
    assert "made in [default: results]" in told
    assert "is raised [default: no]" in told
    params = read(train).params
    assert (params["size"], params["lr"], params["seed"], params["debug"]) == (5, 0.3, 3, False)


def test_the_stronger_source_counts(tmp_path: Path) -> None:
    """Command line before call, before environment, before file, before default; the record says which it was."""
    file = tmp_path / "params.yaml"
    file.write_text("x: 1\n")
    made, environ = one(type=int, default=0, envvar="MY_X"), {"MY_X": "2"}
    with_file = ["--params-file", str(file)]
    cases: list[tuple[Values, int, str]] = [
        (read(made), 0, "default"),
        (read(made, *with_file), 1, f"params file {file}"),
        (read(made, *with_file, environ=environ), 2, "environment variable MY_X"),
        (read(made, *with_file, environ=environ, params={"x": 3}), 3, "call"),
        (read(made, "--x", "4", *with_file, environ=environ, params={"x": 3}), 4, "command line"),
        (read(made, params={"params_file": file}), 1, f"params file {file}"),
    ]
    for values, expected, origin in cases:
        assert (values.params["x"], values.origins["x"]) == (expected, origin)
        assert set(values.origins) == set(values.params)


def test_only_declared_variables_are_read() -> None:
    """A variable that happens to be called like a parameter changes nothing."""
    assert read(one(), environ={"X": "a", "x": "a", "LR": "a"}).params["x"] is None
    assert read(one(envvar=False), environ={"X": "a"}).params["x"] is None
    assert read(one(envvar=True), environ={"X": "a"}).params["x"] == "a"
    assert read(one(envvar=True), environ={"X": ""}).params["x"] is None
    assert read(one(envvar="Y", multiple=True, type=int), environ={"Y": "1, 2"}).params["x"] == [1, 2]
    assert read(one(envvar="Y", multiple=True, type=int), environ={"Y": "[1, 2]"}).params["x"] == [1, 2]
    assert read(one(envvar="Y", is_flag=True), environ={"Y": "yes"}).params["x"] is True
    assert read(one(envvar="Y", type=dict[str, int]), environ={"Y": "a=1,b=2"}).params["x"] == {"a": 1, "b": 2}
    ports = read(one(), environ={"MASTER_PORT": "1", "NNODES": "2", "NODE_RANK": "1", "NPROC_PER_NODE": "3"}).params
    assert [ports[name] for name in ("master_port", "nnodes", "node_rank", "nproc_per_node")] == [1, 2, 1, 3]


def test_a_replay_reads_no_variables_but_secrets() -> None:
    """With TRAINLAB_IGNORE_ENVIRONMENT=1 only what no file can hold comes from the environment."""

    @trainlab.parameter("lr", float, envvar=True)
    @trainlab.parameter("api_key", envvar=True)
    @trainlab.experiment
    def train(params: dict[str, Any]) -> None: ...

    environ = {"LR": "3", "API_KEY": "hidden", "TRAINLAB_IGNORE_ENVIRONMENT": "1"}
    params = read(train, environ=environ).params
    assert (params["lr"], params["api_key"]) == (None, "hidden")


def test_a_call_with_an_unknown_name_is_an_error() -> None:
    """A misspelt name in a dict of values is told with the one that was meant."""
    with pytest.raises(InvalidValueError, match=r"no parameter 'random_sed', in the call. Did you mean random_seed\?"):
        one().read({"random_sed": 3})
    with pytest.raises(InvalidTypeError, match="as a dict by name. Received: 3"):
        one().read(3)  # type: ignore[arg-type]


def test_values_of_a_call_are_of_the_parameters_type() -> None:
    """A dict of values is validated as a command line is; None means no value."""
    params = one(type=int, default=3).read({"x": "4", "output_dir": "there", "random_seed": None}).params
    assert (params["x"], params["output_dir"]) == (4, Path("there"))
    assert isinstance(params["random_seed"], int)
    assert one(type=int, default=3).read({"x": None}).params["x"] is None


def test_a_line_is_a_list_of_texts() -> None:
    """A program that gives a line as one text, or with numbers in it, is told so."""
    for argv in ("--x 3", ["--x", 3], 3):
        for run in (one().cli, trainlab.group(lambda: None, name="all").cli, trainlab.global_entrypoint):
            with pytest.raises(InvalidTypeError, match="A command line is a list of its words"):
                run(argv)  # type: ignore[operator]


def test_options_may_be_written_with_underscores() -> None:
    """The spelling of torchrun, --nproc_per_node, is taken as well; a hidden parameter is never suggested."""

    @trainlab.parameter("two_words", is_flag=True, default=True)
    @trainlab.parameter("internal", hidden=True)
    @trainlab.experiment
    def train(params: dict[str, Any]) -> None: ...

    params = read(train, "--nproc_per_node", "2", "--master_port=3", "--no-two_words", "--internal", "x").params
    assert [params[name] for name in ("nproc_per_node", "master_port", "two_words", "internal")] == [2, 3, False, "x"]
    with pytest.raises(InvalidValueError, match="no option --internl. --help lists all."):
        read(train, "--internl", "x")


def test_a_checkpoint_may_be_a_path() -> None:
    """What save_checkpoint returned can be given as the checkpoint to begin with, and so can a URL."""
    assert one().read({"checkpoint": Path("a/b")}, environ={}).params["checkpoint"] == "a/b"
    assert read(one(), "--checkpoint", "s3://a/b").params["checkpoint"] == "s3://a/b"


def test_a_text_beside_an_enum_stays_one_in_a_call() -> None:
    """Where a type takes texts too, only a command line's words are looked up among the names of an enum."""
    made = one(type=Activation | str)
    assert made.read({"x": "RELU"}, environ={}).params["x"] == "RELU"
    assert read(made, "--x", "RELU").params["x"] is Activation.RELU


def test_secrets_are_never_shown() -> None:
    """A secret reaches neither the plain values, nor help, nor an error, nor what is printed of the values."""
    secret = "hunter2hunter2"

    @trainlab.parameter("password", default=secret)
    @trainlab.parameter("token", Annotated[str, Field(max_length=3)])
    @trainlab.parameter("num_tokens", int, 5)
    @trainlab.experiment
    def train(params: dict[str, Any]) -> None: ...

    values = read(train)
    assert values.params["password"] == secret
    assert values.secrets == (secret,)
    assert (values.plain()["password"], values.plain()["num_tokens"]) == ("***", 5)
    assert secret not in repr(values)
    with pytest.raises(InvalidValueError) as caught:
        read(train, "--token", secret, secret, "--password")
    assert secret not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: trainlab.Search(1),
        lambda: trainlab.Search(2, 1),
        lambda: trainlab.Search(0, 1, log=True),
        lambda: trainlab.Search(1, 2, step=0.5, log=True),
        lambda: trainlab.Search(1, 2, choices=[1]),
        lambda: trainlab.Search(choices=[]),
        lambda: trainlab.Search(choices="ab"),
        lambda: trainlab.Search(float("nan"), 1),
        lambda: trainlab.Search("a", "b"),
        trainlab.Search,
    ],
)
def test_a_search_over_nothing_is_an_error(make: Callable[[], Any]) -> None:
    """A space that nothing can be drawn from is refused where it is declared."""
    with pytest.raises(TrainlabError, match="Search"):
        make()


def test_a_search_stands_beside_its_parameter() -> None:
    """The space is found on the parameter, be it an argument or part of the type."""
    space = trainlab.Search(1e-5, 1e-1, log=True)
    for options in ({"search": space}, {"type": Annotated[float, space]}):
        found = one(**{"type": float, **options}).parameters[0]
        assert found.search == space
    assert trainlab.Search(choices=["a", "b"]).choices == ("a", "b")
