"""The classes whose members a checkpoint may hold: registered ones, and those found in live objects.

A checkpoint names its enums, named tuples and dataclasses. Such a name is looked up here and nowhere else: reading
neither imports a module nor searches those that are imported.
"""

import contextlib
import dataclasses
import enum
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from trainlab.errors import InvalidTypeError

__all__ = [
    "class_name",
    "classes_in",
    "field_names",
    "kind_of",
    "known_class",
    "parts_of",
    "register_class",
    "what_is_not_kept",
]

_Class = TypeVar("_Class", bound=type)

_DEEPEST = 100
_MAPPINGS = (dict, OrderedDict, defaultdict, Counter)
_SEQUENCES = (list, tuple, set, frozenset, deque)
_registered: dict[str, type] = {}


def register_class(cls: _Class) -> _Class:
    """Let checkpoints hold members of a class, and restore them. Usable as a decorator.

    Args:
        cls: An enum, a named tuple or a dataclass. It takes the place of one that was registered under the same
            module and name, as a notebook defines classes again.

    Returns:
        ``cls``.

    Raises:
        InvalidTypeError: It is none of these, or has content that its fields do not hold.
    """
    if not isinstance(cls, type) or kind_of(cls) is None:
        raise InvalidTypeError(
            f"Only enums, named tuples and dataclasses can be registered. Received: {cls!r}. "
            "For objects of another class return plain data from state_dict()."
        )
    reason = what_is_not_kept(cls)
    if reason:
        raise InvalidTypeError(
            f"This class cannot be registered: {reason}. Received: {cls!r}. Keep all of its content in fields."
        )
    _registered[class_name(cls)] = cls
    return cls


def classes_in(tree: Any) -> dict[str, type]:
    """Find the enums, named tuples and dataclasses of which a tree has members.

    Args:
        tree: Anything. Built-in containers, named tuples and dataclasses are entered, 100 deep at most; whatever
            else it holds is passed over.

    Returns:
        The classes by ``module:qualname``. Of several with the same name the one nearest to the top is there.
    """
    found: dict[str, type] = {}
    seen: set[int] = set()
    waiting = deque([(tree, 0)])
    while waiting:
        value, depth = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        # Whatever a strange object does when it is looked at: it is no member of such a class.
        with contextlib.suppress(Exception):
            cls = type(value)
            if cls not in _MAPPINGS and cls not in _SEQUENCES and kind_of(cls) is not None:
                found.setdefault(class_name(cls), cls)
            if depth < _DEEPEST:
                waiting.extend((part, depth + 1) for part in parts_of(value))
    return found


def known_class(name: str, classes: Mapping[str, type]) -> type | None:
    """The class of a name.

    Args:
        name: ``module:qualname``.
        classes: Classes that come before the registered ones.

    Returns:
        The class, or None.
    """
    return classes[name] if name in classes else _registered.get(name)


def class_name(cls: type) -> str:
    """The name under which a class is known: ``module:qualname``.

    Args:
        cls: The class.

    Returns:
        The name. The program's module is ``__main__`` in every process of it.
    """
    module = "__main__" if cls.__module__ == "__mp_main__" else cls.__module__
    return f"{module}:{cls.__qualname__}"


def kind_of(cls: type) -> str | None:
    """What kind of class it is.

    Args:
        cls: Any class.

    Returns:
        ``enum``, ``namedtuple``, ``dataclass`` or None.
    """
    if issubclass(cls, enum.Enum):
        return "enum"
    if issubclass(cls, tuple):
        fields = getattr(cls, "_fields", None)
        return "namedtuple" if type(fields) is tuple and all(type(name) is str for name in fields) else None
    return "dataclass" if dataclasses.is_dataclass(cls) else None


def field_names(cls: type) -> tuple[str, ...]:
    """The fields of a named tuple or a dataclass, in their order.

    Args:
        cls: The class.

    Returns:
        Their names.
    """
    if issubclass(cls, tuple):
        return tuple(cls._fields)  # type: ignore[attr-defined]  # kind_of saw that it is there
    return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]  # it is a dataclass


def what_is_not_kept(cls: type) -> str:
    """Why the fields of a class cannot be all that its members hold.

    Args:
        cls: An enum, a named tuple or a dataclass.

    Returns:
        The reason; empty if there is none.
    """
    if kind_of(cls) != "dataclass":
        return ""
    try:
        object.__new__(cls)
    except TypeError as error:
        return f"it derives from a built-in class or is abstract ({error})"
    slots = {name for base in cls.__mro__ for name in _slots(base)} - set(field_names(cls))
    return f"it has slots that are no fields, {', '.join(sorted(slots))}" if slots else ""


def _slots(base: type) -> Iterable[str]:
    slots = vars(base).get("__slots__", ())
    return {slots} if isinstance(slots, str) else set(slots) - {"__dict__", "__weakref__"}


def parts_of(value: Any) -> Iterable[Any]:
    """What a container, a named tuple or a dataclass holds.

    Args:
        value: Anything.

    Returns:
        Its parts; none of what is entered by nobody.
    """
    cls = type(value)
    if cls in _MAPPINGS:
        return [*value.keys(), *value.values()]
    if cls in _SEQUENCES:
        return list(value)
    if cls is slice:
        return [value.start, value.stop, value.step]
    kind = kind_of(cls)
    if kind == "namedtuple":
        return list(tuple.__iter__(value))
    if kind == "dataclass":
        return [object.__getattribute__(value, name) for name in field_names(cls)]
    return []
