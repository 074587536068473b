"""Files of parameters: YAML, JSON and TOML, what is wrong with them, and that a run's own gives the run again."""

import enum
import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, Field

import trainlab
from trainlab.errors import InvalidValueError
from trainlab.experiments.params_file import parse_yaml, read_params_file
from trainlab.runs.yaml_text import to_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5E+3", 1500.0),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("+.INF", float("inf")),
        ("12", 12),
        ("-3", -3),
        ("0o17", 15),
        ("0x1F", 31),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("y", "y"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("null", None),
        ("", None),
        ("1_000", "1_000"),
        ("12:30:45", "12:30:45"),
        ("2024-01-02", "2024-01-02"),
        (".", "."),
        ("e3", "e3"),
        ("1e", "1e"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text: str, value: Any) -> None:
    """A number may be written as 1e-3, and no, on and dates are texts."""
    found = parse_yaml(f"x: {text}")["x"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.yaml", "lr: 1e-3\nxs:\n- 1\n- 2\ninner: {a: b}\n"),
        ("p.txt", "lr: 1e-3\nxs: [1, 2]\ninner:\n  a: b\n"),
        ("p.json", '{"lr": 1e-3, "xs": [1, 2], "inner": {"a": "b"}}'),
        ("p.toml", 'lr = 1e-3\nxs = [1, 2]\n[inner]\na = "b"\n'),
    ],
)
def test_three_formats_hold_the_same(name: str, text: str, tmp_path: Path) -> None:
    """YAML, JSON and TOML are told apart by the file's ending."""
    (tmp_path / name).write_text(text)
    assert read_params_file(tmp_path / name) == {"lr": 1e-3, "xs": [1, 2], "inner": {"a": "b"}}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("p.yaml", "a: 1\nb: 2\na: 3\n", "'a' stands there twice; take one of them out in line 3, column 1."),
        ("p.yaml", "a:\n  b: 1\n  b: 2\n", "'b' stands there twice; take one of them out in line 3, column 3."),
        ("p.yaml", "a: [1, 2\nb: 3\n", "in line 2"),
        ("p.yaml", "a: !!python/object/apply:os.getcwd []\n", "in line 1"),
        ("p.yaml", "a: 1\n---\nb: 2\n", "in line 2"),
        ("p.yaml", f"a: {'9' * 5000}\n", "value has 5000 digits"),
        ("p.yaml", "- 1\n- 2\n", "`name: value` lines. Received: a list"),
        ("p.yaml", "a: &x [*x]\n", ""),
        ("p.json", '{"a": 1, "a": 2}', "'a' stands there twice."),
        ("p.json", "{", "line 1 column 2"),
        ("p.toml", "a = 1\na = 2\n", "line 2"),
    ],
)
def test_a_wrong_file_is_told_with_its_place(name: str, text: str, problem: str, tmp_path: Path) -> None:
    """What is wrong with a file is told with its name, and the line where there is one; no code in it runs."""
    (tmp_path / name).write_text(text)
    if not problem:  # it holds itself, which Python can have
        assert read_params_file(tmp_path / name)["a"][0] is not None
        return
    with pytest.raises(InvalidValueError) as caught:
        read_params_file(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert problem in str(caught.value)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    """A missing file, a folder and bytes are no params files; an empty file is one without values."""
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    (tmp_path / "marked.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    for name, problem in [("none.yaml", "No such file"), ("", "Is a directory"), ("bytes.yaml", "no text in UTF-8")]:
        with pytest.raises(InvalidValueError, match=problem):
            read_params_file(tmp_path / name)
    assert read_params_file(tmp_path / "empty.yaml") == {}
    assert read_params_file(tmp_path / "marked.json") == {"a": 1}


class Mode(enum.Enum):
    """With values that YAML knows, and one that it does not."""

    FAST = "fast"
    SLOW = 2
    BOTH = ("a", 1)


class Inner(BaseModel):
    """A nested model."""

    kind: Literal["inner"] = "inner"
    number: float = 0.0
    path: Path | None = None


class Other(BaseModel):
    """Its alternative."""

    kind: Literal["other"] = "other"
    names: tuple[str, ...] = ()


class Everything(BaseModel):
    """A field of each type."""

    text: str = ""
    number: float = 0.0
    count: int = 0
    either: int | str = 0
    flag: bool = False
    maybe: bool | None = None
    choice: Literal["a", 1, "none"] = "a"
    mode: Mode = Mode.FAST
    path: Path = Path(".")
    numbers: list[float] = []
    texts: list[str] = []
    names: set[str] = set()
    pair: tuple[int, str] = (0, "")
    modes: list[Mode] = []
    table: dict[str, int] = {}
    deep: dict[str, list[dict[str, int | str | None]]] = {}
    free: Any = None
    when: datetime | None = None
    wait: timedelta | None = None
    inner: Inner | Other = Field(Inner(), discriminator="kind")
    other: Other | None = None
    rest: list[Inner] = []


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8) | st.sampled_from(
    ["no", "1e-3", "null", "none", "~", "true", "-", "--x", "a: b", "[1]", "{}", "#", "'", '"', " x ", "\n", "=", "-1"]
)
NUMBERS = st.floats(allow_nan=False)
PATHS = st.from_regex(r"[a-z~./ -]{0,8}", fullmatch=True).map(Path)
INNERS = st.builds(Inner, number=NUMBERS, path=st.none() | PATHS)
OTHERS = st.builds(Other, names=st.lists(TEXTS, max_size=3).map(tuple))
KEYS = st.from_regex(r"[a-z][a-z_]{0,5}", fullmatch=True).filter(lambda key: "key" not in key and "token" not in key)
FREE = st.recursive(
    st.none() | st.booleans() | st.integers() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=2),
    max_leaves=5,
)
CONFIGS = st.builds(
    Everything,
    text=TEXTS,
    number=NUMBERS,
    count=st.integers(),
    either=st.integers() | TEXTS,
    flag=st.booleans(),
    maybe=st.none() | st.booleans(),
    choice=st.sampled_from(["a", 1, "none"]),
    mode=st.sampled_from(Mode),
    path=PATHS,
    numbers=st.lists(NUMBERS, max_size=3),
    texts=st.lists(TEXTS, max_size=3),
    names=st.sets(TEXTS, max_size=3),
    pair=st.tuples(st.integers(), TEXTS),
    modes=st.lists(st.sampled_from(Mode), max_size=3),
    table=st.dictionaries(KEYS, st.integers(), max_size=3),
    deep=st.dictionaries(
        KEYS, st.lists(st.dictionaries(KEYS, st.none() | st.integers() | TEXTS, max_size=2), max_size=2)
    ),
    free=FREE,
    when=st.none() | st.datetimes(),
    wait=st.none() | st.timedeltas(min_value=timedelta(days=-9999), max_value=timedelta(days=9999)),
    inner=INNERS | OTHERS,
    other=st.none() | OTHERS,
    rest=st.lists(INNERS, max_size=2),
)


@given(config=CONFIGS, seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_a_runs_own_file_gives_its_values_again(
    config: Everything, seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever the values of a run were, its params.yaml given back as --params-file makes the same; as JSON too."""

    @trainlab.experiment
    def train(config: Everything) -> None: ...

    values = train.read(config, environ={}, argv=["--random-seed", str(seed)])
    assert values.model == config
    folder = tmp_path_factory.mktemp("params")
    (folder / "params.yaml").write_text(to_yaml(values.plain()), encoding="utf-8")
    (folder / "params.json").write_text(json.dumps(values.plain()), encoding="utf-8")
    for name in ("params.yaml", "params.json"):
        again = train.read(environ={}, argv=["--params-file", str(folder / name)])
        assert again.model == config
        assert again.params["random_seed"] == seed
        assert again.plain() | {"params_file": None} == values.plain()


def test_a_file_is_read_as_the_parameters_say(tmp_path: Path) -> None:
    """What a params file may not set is ignored there, a masked secret is not given, and unknown names are errors."""

    @trainlab.parameter("lr", float)
    @trainlab.parameter("mode", Mode)
    @trainlab.parameter("pair", tuple[Mode, int])
    @trainlab.parameter("modes", dict[str, Mode])
    @trainlab.parameter("fixed", int, 1, allow_from_file=False)
    @trainlab.parameter("password", required=True)
    @trainlab.parameter("kind", allowed_values=["Adam"])
    @trainlab.parameter("parsed", lambda text: text.split("+"))
    @trainlab.experiment
    def train(params: dict[str, Any]) -> None: ...

    file = tmp_path / "params.yaml"
    file.write_text(
        "lr: 1e-3\nmode: BOTH\npair: [SLOW, 3]\nmodes: {a: FAST, b: 2}\nfixed: 7\nkind: adam\nparsed: a+b\n"
        "params_file: /nowhere.yaml\npassword: '***'\n"
    )
    values = train.read({"password": "hunter2"}, argv=["--params-file", str(file)], environ={})
    assert [values.params[name] for name in ("lr", "mode", "fixed", "kind", "parsed")] == [
        1e-3,
        Mode.BOTH,
        1,
        "Adam",
        ["a", "b"],
    ]
    assert values.params["pair"] == (Mode.SLOW, 3)
    assert values.params["modes"] == {"a": Mode.FAST, "b": Mode.SLOW}
    assert values.params["params_file"] == file
    assert values.origins["fixed"] == "default"
    with pytest.raises(InvalidValueError, match="--password is needed"):
        train.read(argv=["--params-file", str(file)], environ={})
    file.write_text("lr: fast\nlrr: 3\nrandom_seed: -1\n")
    with pytest.raises(InvalidValueError) as caught:
        train.read({"password": "hunter2"}, argv=["--params-file", str(file)], environ={})
    assert str(caught.value).splitlines() == [
        f"There is no parameter 'lrr', in the params file {file}. Did you mean lr?",
        f"lr in {file}: must be a number. Received: 'fast'.",
        f"random_seed in {file}: must be at least 0. Received: -1.",
    ]
    with pytest.raises(InvalidValueError, match="cannot be read: No such file"):
        train.read(argv=["--params-file", str(tmp_path / "none.yaml"), "--password=x"], environ={})
