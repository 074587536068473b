import math
import operator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainlab.errors import InvalidValueError
from trainlab.runs.listing import RunInfo
from trainlab.runs.where import filter_of, value_of

RUN = RunInfo(
    path=Path("/runs/digits/a"),
    name="digits",
    status="finished",
    params={"lr": 1e-3, "optimizer": {"name": "adam", "beta.2": 0.9}, "a-b": 3, "debug": False, "none": None, "if": 1},
    metrics={"accuracy": 0.95, "val/loss": 0.25, "nan": math.nan},
    started="2026-05-01T12:00:00+00:00",
    tags=("best", "paper"),
    record={
        "git": {"commit": "abcdef", "dirty": True},
        "starts": [{"started": "2026-05-01T12:00:00+00:00", "ended": "2026-05-01T12:01:30+00:00"}],
        "random_seed": 7,
    },
)


@pytest.mark.parametrize(
    "text",
    [
        "params.lr < 1e-2 and metrics.accuracy > .9",
        "params.optimizer.name == 'adam'",
        'params["a-b"] == 3 and params["if"] == 1',
        "metrics['val/loss'] <= .25",
        "params.optimizer['beta.2'] == .9",
        "0 < params.lr < metrics.accuracy < 1",
        "status in ('finished', 'failed') and status not in ['failed']",
        "'best' in tags and 'worse' not in tags",
        "tags == ['best', 'paper'] and tags == ('best', 'paper')",
        "not params.debug and not (params.lr > 1 or metrics.accuracy < .5)",
        "name == 'digits' and 'digits/a' in path",
        "started > '2026-04-30' and started < '2026-05-01 12:00:01+00:00'",
        "'2026-05-01T11:59Z' <= started",
        "started > '0001-01-01' and started < '9999-12-31'",
        "duration == 90",
        "git.commit == 'abcdef' and 'abc' in git.commit and git.dirty",
        "seed == 7 and params.none == None",
        "metrics.accuracy > -1 and params.lr != +1",
        "  (status\n == 'finished')  ".replace("\n", " "),
    ],
)
def test_a_filter_means_what_it_says(text: str) -> None:
    """Parameters, metrics, status, tags, dates and commits are compared as a reader of the filter expects."""
    assert filter_of(text)(RUN) is True
    assert filter_of(f"not ({text})")(RUN) is False


@pytest.mark.parametrize(
    "text",
    [
        "params.unknown < 1",
        "params.unknown >= 1",
        "params.unknown == None",
        "params.unknown != 3",
        "params.lr.below == 1",
        "params.unknown",
        "ended > '2026-05-01'",
        "error == None",
        "result != 3",
        "metrics.accuracy < params.unknown",
        "params.lr < 'a'",
        "params.optimizer < 1",
        "status < 1",
        "1 in params.lr",
        "1 in status",
        "metrics.nan < 1",
        "metrics.nan == metrics.nan",
        "duration > '2026-05-01'",
    ],
)
def test_what_cannot_be_compared_is_not_meant(text: str) -> None:
    """A comparison with what a run does not have, or with a value of another kind, is false and never an error."""
    assert filter_of(text)(RUN) is False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "invalid syntax"),
        ("params.lr <", "invalid syntax"),
        ("params.lr = 3", "=="),
        ("param.lr < 3", "Did you mean params?"),
        ("status == finished", "If it is a text, put it into quotes."),
        ("git.comit == 'a'", "it has commit, dirty"),
        ("status.a == 1", "nothing is below it"),
        ("git.commit.a == 1", "no run has 'git.commit.a'"),
        ("__import__('os').system('true')", "is not part of it"),
        ("params.__class__()", "is not part of it"),
        ("params.lr + 1 < 3", "'params.lr + 1' is not part of it"),
        ("[x for x in tags]", "is not part of it"),
        ("(lambda: 1)()", "is not part of it"),
        ("f'{status}' == 'a'", "is not part of it"),
        ("b'a' in tags", "is not part of it"),
        ("params[0:1] == 1", "is not part of it"),
        ("params[status] == 1", "is not part of it"),
        ("(status == 'a') == True", "is not part of it"),
        ("params.lr if status else 1", "is not part of it"),
        ("(status := 'a')", "is not part of it"),
        ("-status == 1", "is not part of it"),
        ("...", "is not part of it"),
        ("status is 'finished'", "write == or !="),
        ("started > 'yesterday'", "'yesterday' is no date"),
        ("a" * 5000, "at most 4096 characters"),
        ("not " * 60 + "status", "nested too deeply"),
        ("1+" * 2000 + "1 < 2", "not part of it|nested|recursion|no filter"),
        ("-" * 3000 + "1 < 2", "nested|recursion|no filter"),
        ("-" * 1000 + "1 < 2", "nested"),
        ("acc > .9", "A parameter is params.acc, a metric metrics.acc."),
        ("[" * 180 + "]" * 180 + " == 1", "nested|no filter"),
        ("status\0", "no filter"),
        ("params" + ".a" * 1500 + "(", "no filter"),
    ],
)
def test_what_is_no_filter_is_told(text: str, told: str) -> None:
    """Whatever is not in the language is one clear error before any run is read, never executed and never a crash."""
    with pytest.raises(InvalidValueError, match="This is no filter|A filter has at most") as raised:
        filter_of(text)
    assert any(part in str(raised.value) for part in told.split("|"))
    assert "Received: " in str(raised.value)


NUMBERS = st.integers(-5, 5) | st.floats(-5, 5) | st.booleans()
VALUES = NUMBERS | st.sampled_from(["", "a", "b", "adam"])
OPERATORS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@st.composite
def comparisons(draw: st.DrawFn) -> str:
    """A comparison of two to four of the parameters a, b, c and constants."""
    operands = draw(
        st.lists(st.sampled_from(["params.a", "params.b", "params.c"]) | VALUES.map(repr), min_size=2, max_size=4)
    )
    signs = draw(st.lists(st.sampled_from([*OPERATORS]), min_size=len(operands) - 1, max_size=len(operands) - 1))
    return operands[0] + "".join(f" {sign} {other}" for sign, other in zip(signs, operands[1:], strict=True))


def combined(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Filters of filters."""
    pairs = st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: f"({' '.join(parts)})")
    return pairs | inner.map(lambda text: f"not ({text})")


class Params:
    """The parameters as Python's own evaluation has them."""

    def __init__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)


@given(text=st.recursive(comparisons(), combined, max_leaves=6), a=NUMBERS, b=NUMBERS, c=NUMBERS)
def test_a_filter_of_numbers_agrees_with_python(text: str, a: Any, b: Any, c: Any) -> None:
    """Comparisons of numbers, chains of them, and, or and not mean what they mean in Python."""
    values = {"a": a, "b": b, "c": c}
    try:
        expected = bool(eval(text, {"__builtins__": {}}, {"params": Params(values)}))
    except TypeError:  # of a text and a number, of which only we make something
        return
    assert filter_of(text)(RunInfo("x", "", "finished", params=values)) is expected


@given(st.text(max_size=60) | st.text(alphabet="params.lr()[]<>=!'\" andornoti0123456789_:,{}+-*@", max_size=60))
def test_any_text_is_a_filter_or_an_error_of_ours(text: str) -> None:
    """Whatever is typed in, it is answered by runs or by one sentence."""
    try:
        meant = filter_of(text)
    except InvalidValueError:
        return
    assert meant(RUN) in (True, False)


def test_a_value_is_looked_up_by_its_name() -> None:
    """A column or a sort key is written like a name of a filter, and may have a slash in it."""
    names = {
        "params.optimizer.name": "adam",
        "params.optimizer.beta.2": 0.9,
        "metrics.val/loss": 0.25,
        "tags": list(RUN.tags),
    }
    names |= {"status": "finished", "params.unknown": None, "result": None, "params": RUN.params, "git.dirty": True}
    assert {name: value_of(name)(RUN) for name in names} == names
    with pytest.raises(InvalidValueError, match="Did you mean metrics"):
        value_of("metric.loss")
