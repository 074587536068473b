"""What was given for a parameter, and the values of nested dicts by the names of the parameters."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from pydantic import BaseModel

from trainlab.errors import did_you_mean
from trainlab.experiments.model_fields import Branch, Node
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.text_values import from_environment, from_json, from_words, with_members
from trainlab.experiments.values import MASK

__all__ = ["PRESENT", "Given", "Rank", "flatten", "shortened", "taken_apart"]


class _Present:
    """Stands for a nested model that was given as a dict, be it an empty one."""

    def __repr__(self) -> str:
        return "{}"


PRESENT = _Present()


class Rank(IntEnum):
    """The sources of values; a greater one counts before a smaller one."""

    DEFAULT = 0
    FILE = 1
    ENVIRONMENT = 2
    CALL = 3
    COMMAND_LINE = 4


@dataclass(frozen=True)
class Given:
    """A value that was given for a parameter.

    Attributes:
        value: words of a command line, the text of a variable, or a value of a call or a file.
        rank: its source.
        origin: the source as the record of a run has it.
        subject: what stood there, an option, a variable or a key.
        is_made: whether it is a value that was validated already.
    """

    value: Any
    rank: Rank
    origin: str
    subject: str
    is_made: bool = False

    def value_for(self, parameter: Parameter) -> Any:
        """What it is for a parameter of a certain type, not validated yet.

        Args:
            parameter: the parameter.

        Returns:
            The value.

        Raises:
            InvalidValueError: the words cannot be read.
        """
        if self.rank is Rank.COMMAND_LINE:
            return self.value if isinstance(self.value, bool) else from_words(parameter, self.value)
        if self.rank is Rank.ENVIRONMENT:
            return from_environment(parameter, self.value)
        return self.value if self.is_made else with_members(parameter.annotation, self.value)

    def input_for(self, parameter: Parameter, value: Any) -> Any:
        """What pydantic is given.

        Args:
            parameter: the parameter.
            value: what ``value_for`` gave.

        Returns:
            It, or what it stands for in JSON if it is of a file, a variable or a command line.
        """
        if self.rank in {Rank.CALL, Rank.DEFAULT}:
            return value
        return from_json(parameter, value, is_text=self.rank is not Rank.FILE)

    def received(self, parameter: Parameter, hide: Callable[[str], str]) -> str:
        """How it was given, for a message; a secret is not shown.

        Args:
            parameter: the parameter.
            hide: takes the secrets out of a text.

        Returns:
            A text.
        """
        if parameter.is_secret:
            return MASK
        if self.rank is Rank.COMMAND_LINE and isinstance(self.value, list):
            return hide(" ".join(map(repr, self.value))) or "nothing"
        return shortened(self.value, hide)


def shortened(value: Any, hide: Callable[[str], str]) -> str:
    """A value for a message, in at most some hundred characters.

    Args:
        value: it.
        hide: takes the secrets out of a text; before it is cut, for a part of a secret would not be known.

    Returns:
        Its ``repr``.
    """
    text = hide(repr(value))
    return text if len(text) <= 200 else f"{text[:200]}..."


def flatten(
    nodes: Mapping[str, Node], values: Mapping[Any, Any] | BaseModel, problems: list[str], where: str
) -> Iterator[tuple[str, Any]]:
    """The values of a nested dict by the names of the parameters.

    Args:
        nodes: the parameters and models by name.
        values: nested, or with names such as "optimizer.lr", or both; or a model.
        problems: is added to, a sentence for each name that is not known.
        where: what the values stand in, for the problems.

    Yields:
        Pairs of a name and its value: of a nested dict its own ``PRESENT``, and what is in it; of a model itself, and
        with the name "" the model of the main function.
    """
    if isinstance(values, BaseModel):
        yield "", values
        return
    known = _names(nodes)
    for name, value in _flat(nodes, values.items(), ""):
        if name in known:
            yield name, value
            continue
        meant = did_you_mean(name, known) or f" It can have: {', '.join(sorted(known, key=len)[:20])}."
        problems.append(f"There is no parameter {name!r}, {where}.{meant}")


def taken_apart(nodes: Mapping[str, Node], name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The values of the fields of a nested model.

    Args:
        nodes: the parameters and models by name.
        name: of what has the value.
        value: its value.

    Yields:
        Pairs of a name and its value; where it is no nested model one pair.
    """
    node: Any = None
    for step in name.split("."):
        node = nodes.get(step)
        nodes = _inside(node) if isinstance(node, Branch) else {}
    if not isinstance(node, Branch) or not isinstance(value, BaseModel):
        yield name, value
        return
    for key in nodes:
        if hasattr(value, key):
            for below, inner in taken_apart(nodes, key, getattr(value, key)):
                yield f"{name}.{below}", inner


def _flat(nodes: Mapping[str, Node], items: Iterable[tuple[Any, Any]], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in items:
        head, _, rest = str(key).partition(".")
        node = nodes.get(head)
        if not isinstance(node, Branch):
            yield f"{prefix}{key}", value
        elif rest:
            yield from _flat(_inside(node), [(rest, value)], f"{prefix}{head}.")
        elif isinstance(value, Mapping):
            yield f"{prefix}{head}", PRESENT
            yield from _flat(_inside(node), value.items(), f"{prefix}{head}.")
        else:
            yield f"{prefix}{head}", value


def _inside(branch: Branch) -> dict[str, Node]:
    found: dict[str, Node] = {}
    for part in (*branch.variants.values(), branch):
        found.update(part.children)
    return found


def _names(nodes: Mapping[str, Node]) -> list[str]:
    """All names that can have a value; of a model itself too, which may be None."""
    found: list[str] = []
    for node in nodes.values():
        found.append(node.name)
        if isinstance(node, Branch):
            found += _names(_inside(node))
    return found
