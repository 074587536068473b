"""Search: the values of a parameter that a search may try."""

import math
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any

from trainlab.errors import InvalidTypeError, InvalidValueError

__all__ = ["Search"]


@dataclass(frozen=True)
class Search:
    """The space of one parameter: a range of numbers, or a choice; declared beside the parameter.

    ``Search(1e-5, 1e-1, log=True)``, ``Search(1, 8)``, ``Search(0, 1, step=0.1)``, ``Search(choices=["a", "b"])``.

    Args:
        low: the smallest value.
        high: the largest value, itself in the range.
        log: whether values are drawn evenly on a logarithmic scale. Default False.
        step: the distance between the values that can be drawn, from ``low`` on. Default: 1 for ints, none for floats.
        choices: the values instead of a range, at least one; kept as a tuple.

    Raises:
        InvalidTypeError: a bound is no number, or both a range and choices are given, or neither.
        InvalidValueError: the range is empty or cannot be drawn from.
    """

    low: float | None = None
    high: float | None = None
    _: KW_ONLY
    log: bool = False
    step: float | None = None
    choices: tuple[Any, ...] | None = None

    def __post_init__(self) -> None:
        has_range = self.low is not None or self.high is not None
        if self.choices is not None:
            if has_range or self.log or self.step is not None:
                raise InvalidTypeError(
                    f"A Search is over a range or over choices, not both. Received: {self._given()}."
                )
            object.__setattr__(self, "choices", _as_choices(self.choices))
            return
        if self.low is None or self.high is None:
            raise InvalidTypeError(
                f"A Search needs low and high, or choices, as in Search(1e-5, 1e-1). Received: {self._given()}."
            )
        numbers: list[tuple[str, Any]] = [("low", self.low), ("high", self.high)]
        for name, number in [*numbers, *([] if self.step is None else [("step", self.step)])]:
            if isinstance(number, bool) or not isinstance(number, Real) or not math.isfinite(number):
                raise InvalidTypeError(f"{name} of a Search is a finite number. Received: {number!r}.")
        self._check_range(self.low, self.high)

    def _check_range(self, low: float, high: float) -> None:
        if low >= high:
            raise InvalidValueError(f"low of a Search is below high. Received: {self._given()}.")
        if self.log and low <= 0:
            raise InvalidValueError(f"A logarithmic Search is over numbers above 0. Received: {self._given()}.")
        if self.step is not None and (self.step <= 0 or self.log):
            raise InvalidValueError(
                f"step of a Search is above 0, and not together with log=True. Received: {self._given()}."
            )

    def _given(self) -> str:
        given = {"low": self.low, "high": self.high, "step": self.step, "choices": self.choices}
        shown = [f"{name}={value!r}" for name, value in given.items() if value is not None]
        return f"Search({', '.join([*shown, *(['log=True'] if self.log else [])])})"


def _as_choices(choices: Any) -> tuple[Any, ...]:
    if isinstance(choices, (str, bytes)) or not hasattr(choices, "__iter__"):
        raise InvalidTypeError(f"choices of a Search are a list of values. Received: {choices!r}.")
    found = tuple(choices)
    if not found:
        raise InvalidValueError("choices of a Search are at least one. Received: none.")
    return found
