"""The language of filters: which runs are meant by "params.lr < 1e-3 and metrics.accuracy > .9".

It is read by Python's parser and by nothing else of Python's: what is not in it is an error, and nothing is executed.
"""

import ast
import operator
import warnings
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Any

from trainlab.errors import InvalidValueError, did_you_mean
from trainlab.runs.listing import RunInfo, number

__all__ = ["MOMENTS", "NAMES", "filter_of", "moment", "value_of"]

# Each name with what it is of a run.
NAMES: dict[str, Callable[[RunInfo], Any]] = {
    "params": lambda run: run.params,
    "metrics": lambda run: run.metrics,
    "status": lambda run: run.status,
    "name": lambda run: run.name,
    "path": lambda run: str(run.path),
    "tags": lambda run: list(run.tags),  # as a filter writes them
    "started": lambda run: run.started,
    "ended": lambda run: run.ended,
    "duration": lambda run: run.duration,
    "git": lambda run: run.record.get("git"),
    "host": lambda run: run.record.get("host"),
    "seed": lambda run: run.record.get("random_seed", run.record.get("seed")),
    "error": lambda run: run.record.get("error"),
    "result": lambda run: number(run.record.get("result")),
    "stop_reason": lambda run: run.record.get("stop_reason"),
    "batches_trained": lambda run: run.record.get("batches_trained"),
}
# The names that have others below them; None: any.
_BELOW: dict[str, set[str] | None] = {"params": None, "metrics": None, "git": {"commit", "dirty"}}
MOMENTS = ("started", "ended")
_LONGEST, _DEEPEST = 4096, 50
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.In: lambda one, many: one in many,
    ast.NotIn: lambda one, many: one not in many,
}
_LANGUAGE = (
    "A filter compares names with values, such as: params.lr < 1e-3 and metrics.accuracy > .9; "
    "there are < <= > >= == != in, not in, and, or, not, and parentheses; texts are in quotes"
)


class _Unknown:
    """The value of a name that a run does not have."""


_UNKNOWN = _Unknown()
_Value = Callable[[RunInfo], Any]
_Test = Callable[[RunInfo], bool]


def filter_of(text: str) -> Callable[[RunInfo], bool]:
    """Read a filter.

    A comparison with a name that a run does not have is false, and so is one of values that cannot be compared.

    Args:
        text: It.

    Returns:
        What tells of a run whether it is meant.

    Raises:
        InvalidValueError: The text is no filter, or has a name that no run has.
    """
    if len(text) > _LONGEST:
        raise InvalidValueError(f"A filter has at most {_LONGEST} characters. Received: {len(text)}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what Python code would do
            tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or "it is nested too deeply"
        raise InvalidValueError(f"This is no filter: {reason}. Received: {text!r}. {_LANGUAGE}.") from None
    return _Reader(text).test(tree.body, 0)


def value_of(name: str) -> Callable[[RunInfo], Any]:
    """Read the name of a value, such as ``params.optimizer.lr``.

    Args:
        name: It. What comes after the first dot may hold anything.

    Returns:
        What tells the value of a run; None for a run without it.

    Raises:
        InvalidValueError: No run has such a name.
    """
    top, _, rest = name.partition(".")
    parts = rest.split(".") if rest else []
    _Reader(name, is_name=True).check(top, parts)
    of_run, places = NAMES[top], _places(parts)

    def told(run: RunInfo) -> Any:
        value = _below(of_run(run), places)
        return None if value is _UNKNOWN else value

    return told


class _Reader:
    """Turns the tree of a filter into functions."""

    def __init__(self, text: str, *, is_name: bool = False) -> None:
        self._text, self._is_name = text.strip(), is_name

    def _shown(self, node: ast.expr) -> str:
        return ast.get_source_segment(self._text, node) or type(node).__name__

    def test(self, node: ast.expr, depth: int) -> _Test:
        """What is true or false of a run."""
        if depth > _DEEPEST:
            raise self._wrong("it is nested too deeply")
        if isinstance(node, ast.BoolOp):
            tests = [self.test(value, depth + 1) for value in node.values]
            decide = all if isinstance(node.op, ast.And) else any
            return lambda run: decide(test(run) for test in tests)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            negated = self.test(node.operand, depth + 1)
            return lambda run: not negated(run)
        if isinstance(node, ast.Compare):
            return self._comparison(node, depth + 1)
        value = self._value(node, depth + 1)
        return lambda run: (found := value(run)) is not _UNKNOWN and bool(found)

    def check(self, top: str, parts: list[str]) -> None:
        """Refuse a name that no run has."""
        if top not in NAMES:
            quoted = "" if self._is_name else " If it is a text, put it into quotes."
            meant = did_you_mean(top, NAMES) or quoted
            if not parts:
                meant += f" A parameter is params.{top}, a metric metrics.{top}."
            raise self._wrong(f"no run has {top!r}.{meant} There are: {', '.join(NAMES)}")
        below = _BELOW.get(top, set())
        if parts and below is not None and (len(parts) > 1 or parts[0] not in below):
            known = f"it has {', '.join(sorted(below))}" if below else "nothing is below it"
            raise self._wrong(f"no run has {'.'.join([top, *parts])!r}: {known}")

    def _comparison(self, node: ast.Compare, depth: int) -> _Test:
        operands = [node.left, *node.comparators]
        is_of_time = any(isinstance(operand, ast.Name) and operand.id in MOMENTS for operand in operands)
        values = [self._value(operand, depth, is_of_time=is_of_time) for operand in operands]
        compare = [self._operator(each) for each in node.ops]

        def test(run: RunInfo) -> bool:
            left = values[0](run)
            for holds, value in zip(compare, values[1:], strict=True):
                right = value(run)
                if not _compared(holds, left, right):
                    return False
                left = right
            return True

        return test

    def _operator(self, node: ast.cmpop) -> Callable[[Any, Any], Any]:
        found = _COMPARISONS.get(type(node))
        if found is None:
            raise self._wrong("'is' is not part of it: write == or !=")
        return found

    def _value(self, node: ast.expr, depth: int, *, is_of_time: bool = False) -> _Value:
        """What a run has, or what stands in the filter."""
        if depth > _DEEPEST:
            raise self._wrong("it is nested too deeply")
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            many = [self._value(item, depth + 1, is_of_time=is_of_time) for item in node.elts]
            return lambda run: [value(run) for value in many]
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript):
            return self._named(node)
        constant = self._constant(node, depth)
        if is_of_time and isinstance(constant, str):
            constant = self._moment(constant)
        return lambda run: constant

    def _constant(self, node: ast.expr, depth: int) -> Any:
        if depth > _DEEPEST:
            raise self._wrong("it is nested too deeply")
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
            number = self._constant(node.operand, depth + 1)
            if isinstance(number, int | float):
                return -number if isinstance(node.op, ast.USub) else +number
        elif isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
            return node.value
        raise self._wrong(f"{self._shown(node)!r} is not part of it")

    def _named(self, node: ast.expr) -> _Value:
        parts: list[str] = []
        while not isinstance(node, ast.Name):
            if isinstance(node, ast.Attribute):
                parts.insert(0, node.attr)
                node = node.value
            elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
                parts.insert(0, str(node.slice.value))
                node = node.value
            else:
                raise self._wrong(f"{self._shown(node)!r} is not part of it")
        self.check(node.id, parts)
        top = NAMES[node.id]
        if node.id in MOMENTS:
            return lambda run: _UNKNOWN if (found := moment(top(run))) is None else found
        places = _places(parts)
        return lambda run: _below(top(run), places)

    def _moment(self, text: str) -> datetime:
        found = moment(text)
        if found is None:
            raise self._wrong(f"{text!r} is no date such as '2026-05-01' or '2026-05-01 12:30'")
        return found

    def _wrong(self, reason: str) -> InvalidValueError:
        if self._is_name:
            return InvalidValueError(f"This names nothing of a run: {reason}. Received: {self._text!r}.")
        return InvalidValueError(f"This is no filter: {reason}. Received: {self._text!r}. {_LANGUAGE}.")


def _compared(holds: Callable[[Any, Any], Any], left: Any, right: Any) -> bool:
    if left is _UNKNOWN or right is _UNKNOWN:
        return False
    try:
        return bool(holds(left, right))
    except TypeError:
        return False


def _places(parts: list[str]) -> list[tuple[str, str]]:
    """Each part of a dotted name, after all that is left from it on: keys may have dots in them."""
    return [(".".join(parts[index:]), part) for index, part in enumerate(parts)]


def _below(value: Any, places: list[tuple[str, str]]) -> Any:
    """What is at a place in nested mappings."""
    for rest, part in places:
        if type(value) is not dict and not isinstance(value, Mapping):  # the first is quick, and nearly always so
            return _UNKNOWN
        if rest in value:
            return value[rest]
        if part not in value:
            return _UNKNOWN
        value = value[part]
    return _UNKNOWN if value is None and not places else value


def moment(text: str | None) -> datetime | None:
    """Read a moment.

    Args:
        text: ISO 8601; where it names no time zone, it is of this machine's.

    Returns:
        It, with its time zone; None if the text is none.
    """
    try:
        found = datetime.fromisoformat((text or "").replace("Z", "+00:00"))
    except ValueError:
        return None
    if found.tzinfo is not None:
        return found
    try:
        return found.astimezone()
    except (ValueError, OverflowError, OSError):
        return found.replace(tzinfo=timezone.utc)  # at an end of the calendar, of which no clock knows the zone
