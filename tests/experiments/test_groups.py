"""Groups of experiments, nested, with parameters that all inside share."""

from pathlib import Path
from typing import Any

import pytest

import trainlab
from trainlab.errors import InvalidValueError


@pytest.fixture
def outer(tmp_path: Path) -> Any:
    """outer/{first, inner/{second, innermost/third, alone}}; each gives its path and the values of its own names."""

    @trainlab.parameter("a", int, 1)
    @trainlab.group(name="outer")
    def outer() -> None:
        """All of them."""

    @trainlab.parameter("b", int, 2)
    @outer.experiment
    def first(params: dict[str, Any]) -> Any:
        """The first one."""
        return "first", params["a"], params["b"]

    @outer.group
    @trainlab.param_group("more", trainlab.parameter("c", int, 3))
    def inner() -> None:
        """Further ones."""

    @inner.experiment(defaults={"a": 10})
    def second(params: dict[str, Any]) -> Any:
        return "second", params["a"], params["c"]

    @inner.group
    def innermost() -> None: ...

    @innermost.experiment
    def third(params: dict[str, Any]) -> Any:
        return "third", params["a"], params["c"]

    @inner.experiment(inherit_params_from_group=False, name="alone")
    def by_itself(params: dict[str, Any]) -> Any:
        return "alone", "a" in params, "c" in params

    return outer


@pytest.mark.parametrize(
    ("words", "expected", "path"),
    [
        (["first", "--a", "5", "--b=6"], ("first", 5, 6), "first"),
        (["inner", "second"], ("second", 10, 3), "inner/second"),
        (["inner", "innermost", "third", "--c", "-7"], ("third", 1, -7), "inner/innermost/third"),
        (["inner", "alone"], ("alone", False, False), "inner/alone"),
    ],
)
def test_names_come_first_then_options(outer: Any, words: list[str], expected: Any, path: str, tmp_path: Path) -> None:
    """Group by group the names lead to an experiment, which has the parameters of all groups around it, and a run."""
    assert outer.cli([*words, "--output-dir", str(tmp_path)]) == expected
    (folder,) = (tmp_path / "outer" / path).iterdir()
    assert (folder / "run.json").exists()


def test_help_shows_the_tree(outer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """-h on a group lists all experiments inside, as a tree; on an experiment its options under their headings."""
    with pytest.raises(SystemExit) as ended:
        outer.cli(["-h"])
    assert ended.value.code == 0
    tree = capsys.readouterr().out.splitlines()
    start = tree.index("experiments:") + 1
    assert [line.rstrip() for line in tree[start : start + 7]] == [
        "  first                       The first one.",
        "  inner                       Further ones.",
        "    second",
        "    innermost",
        "      third",
        "    alone",
        "",
    ]
    assert "All of them." in tree
    with pytest.raises(SystemExit):
        outer.cli(["inner", "second", "--help"])
    told = capsys.readouterr().out
    assert "inner second [OPTIONS]" in told
    assert told.index("more:") < told.index("--c INT")


def test_an_unknown_name_is_told_at_its_place(outer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing or wrong name ends with status 1, with the names that there are."""
    for words, problem in [
        ([], "Which experiment? There are: first, inner."),
        (["inner"], "Which experiment? There are: second, innermost, alone."),
        (["inner", "secnd"], "There is no experiment 'secnd'. Did you mean second?"),
        (["--a", "3", "first"], "There is no experiment '--a'."),
    ]:
        with pytest.raises(SystemExit) as ended:
            outer.cli(words)
        assert ended.value.code == 1
        assert problem in capsys.readouterr().err


def test_names_inside_a_group_are_checked_when_they_are_defined(outer: Any) -> None:
    """A parameter of a group around, and a second experiment of one name, are refused at once."""

    @trainlab.parameter("a")
    def with_a(params: dict[str, Any]) -> None: ...

    def again(params: dict[str, Any]) -> None: ...

    with pytest.raises(InvalidValueError, match="declares the parameter 'a', which it inherits"):
        outer.experiment(with_a)
    with pytest.raises(InvalidValueError, match="has 'first' already"):
        outer.experiment(name="first")(again)


def test_a_later_parameter_of_a_group_is_checked_too(outer: Any) -> None:
    """A parameter that a group gets after its experiments may not be one of theirs; refused, it is in none of them."""
    for taken in ("b", "c"):
        with pytest.raises(InvalidValueError, match=f"declares the parameter '{taken}', which it inherits"):
            trainlab.parameter(taken, int)(outer)
    assert outer.children["first"].read(environ={}).params["b"] == 2
    assert [parameter.name for parameter in outer.children["inner"].children["second"].parameters][:2] == ["a", "c"]


def test_a_group_can_be_inherited_from(outer: Any) -> None:
    """inherit_params takes a group too."""

    @trainlab.experiment(inherit_params=outer)
    def train(params: dict[str, Any]) -> None: ...

    assert train.read(environ={}).params["a"] == 1
    assert outer.children["inner"].children["second"].path == "outer/inner/second"
