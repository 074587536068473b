"""ContextObject, ContextDict and ContextList: all that a training loop of one's own holds, saved and moved as one."""

import reprlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, MutableSequence
from typing import Any, TypeVar

import torch

from trainlab.containers.holder import Holder
from trainlab.containers.kinds import holds_object, is_entered
from trainlab.containers.loading import load
from trainlab.containers.moving import Mover
from trainlab.containers.saving import state_of
from trainlab.containers.sharing import Shared
from trainlab.distributed import choose_device
from trainlab.errors import InvalidStateError, InvalidTypeError, InvalidValueError
from trainlab.parallel import DDPOptions
from trainlab.runs.current import current_run

__all__ = ["Container", "ContextDict", "ContextList", "ContextObject"]

_Self = TypeVar("_Self", bound="Container")


class Container(Holder):
    """What the three containers have in common."""

    _shared: Shared | None = None

    def cuda(self: _Self, device: int | str | torch.device | None = None) -> _Self:
        """Move everything to a GPU; see ``to``.

        Args:
            device: Its number or name. Default None: torch's current one.

        Returns:
            This container.

        Raises:
            InvalidValueError: There is no such GPU.
        """
        chosen = _device(f"cuda:{device}" if isinstance(device, int) else "cuda" if device is None else device)
        if chosen.type != "cuda":
            raise InvalidValueError(f"cuda() takes a GPU. Received: {str(device)!r}. Call to({str(device)!r}).")
        return self.to(chosen)

    def cpu(self: _Self) -> _Self:
        """Move everything to the CPU; see ``to``.

        Returns:
            This container.
        """
        return self.to("cpu")

    def to(self: _Self, device: str | torch.device) -> _Self:
        """Move everything that has a ``to``: modules, tensors, your own objects; optimizers follow their parameters.

        Modules and tensors that need a gradient stay the objects that they are. Arrays stay arrays.

        Args:
            device: Where to.

        Returns:
            This container.

        Raises:
            InvalidValueError: There is no such device.
        """
        mover = Mover(_device(device))
        shared, self._shared = self._shared, None
        if shared is not None:
            shared.close()
        mover.move_parts(self)
        mover.finish()
        if shared is not None:
            self._shared = Shared(self, shared.options)
        return self

    def ddp(self: _Self, options: DDPOptions | None = None) -> _Self:
        """Let the ranks train the modules together: gradients are averaged in each backward pass. All ranks call it.

        Each module with a trainable parameter gets rank 0's weights and is called as before; it stays the object that
        it is, with its own attributes and keys.

        Args:
            options: As ``trainlab.init`` has them. Default: those of ``DDPOptions()``.

        Returns:
            This container.

        Raises:
            InvalidStateError: There is no process group, or a module cannot be shared.
            DisagreementError: The ranks have different modules.
        """
        if self._shared is not None:
            self._shared.close()
            self._shared = None
        self._shared = Shared(self, DDPOptions() if options is None else options)
        return self

    def state_dict(self) -> Any:
        """Give the state of everything, by name; tensors in it are the live ones.

        Objects that have a state give it as an ``OrderedDict``; dicts, lists and tuples are gone into; all else that
        a checkpoint can hold is given as it is. Functions, classes and Python modules have no state and are left out.

        Returns:
            What ``load_state_dict`` takes, and ``save_checkpoint`` too.

        Raises:
            InvalidTypeError: Something has no state and is no data; the message names the path to it.
            CheckpointError: A checkpoint cannot hold some data; the message names the path to it.
        """
        return state_of(self)

    def load_state_dict(self, state: Any) -> None:
        """Take a state back: objects load theirs, and data is set.

        Args:
            state: What ``state_dict`` gave.

        Raises:
            CheckpointMismatchError: Names are missing or unknown, or a state does not fit; nothing was changed.
        """
        load(self, state)

    def autotransform(self: _Self) -> _Self:
        """Do what the parameters of the running experiment say: load, move to a GPU, share among ranks, in this order.

        ``checkpoint`` is loaded if it is set, until the run has saved one after it. Else, if the run goes on after an
        earlier start, its newest one that ``save_checkpoint`` has written under a number is. ``cuda`` means a GPU if
        there is one.

        Returns:
            This container.

        Raises:
            InvalidStateError: No experiment is running.
        """
        from trainlab.containers.running import transform

        run = current_run()
        if run is None:
            raise InvalidStateError(
                "autotransform() does what the parameters of an experiment say, and none is running. Call "
                "load_state_dict, cuda and ddp yourself, or call it in the main function of an experiment."
            )
        transform(self, run)
        return self

    def _taken(self, value: Any) -> Any:
        """Make containers of dicts and lists, and of those in tuples that hold more than data."""
        try:
            if type(value) is dict or (type(value) is OrderedDict and holds_object(value)):
                return ContextDict(value)
            if type(value) is list:
                return ContextList(value)
            return tuple(map(self._taken, value)) if is_entered(value) else value
        except RecursionError:
            raise InvalidStateError(
                "What is put into a context is nested too deep, or contains itself. Flatten it."
            ) from None


class ContextObject(Container):
    """All that a training loop needs, as attributes: set them, and they are registered.

    Dicts and lists become ``ContextDict`` and ``ContextList``. Whatever is registered is moved (``cuda``, ``cpu``),
    shared among ranks (``ddp``), saved (``state_dict``) and restored (``load_state_dict``) together. An attribute
    whose name begins with an underscore cannot be set.

    Args:
        **parts: Attributes to begin with.

    Source: ``pystematic.torch.ContextObject``.
    """

    _grows = False

    def __init__(self, **parts: Any) -> None:
        self._parts = {}
        for name, value in parts.items():
            setattr(self, name, value)

    def has(self, name: str) -> bool:
        """Tell whether an attribute is registered.

        Args:
            name: Its name.
        """
        return name in self._parts

    def leave_out(self, *names: str) -> None:
        """Leave attributes out of the state: a data set, a tokenizer, what the program makes anew at each start.

        Args:
            *names: Of attributes that are there, or will be.

        Raises:
            InvalidTypeError: A name is no text.
        """
        for name in names:
            if not isinstance(name, str):
                raise InvalidTypeError(f"leave_out takes names of attributes. Received: {name!r}.")
        self._left_out = self._left_out | frozenset(names)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._parts:
            return self._parts[name]
        raise AttributeError(
            f"The context has no {name!r}. It has: {', '.join(map(str, self._parts)) or 'nothing yet'}."
            if not name.startswith("_")
            else name
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_parts", "_left_out", "_shared"):
            object.__setattr__(self, name, value)
            return
        if name.startswith("_") or hasattr(type(self), name):
            why = "begins with an underscore" if name.startswith("_") else "is a method of the context"
            raise InvalidValueError(f"An attribute of a context cannot have this name, which {why}: {name!r}.")
        self._parts[name] = self._taken(value)

    def __delattr__(self, name: str) -> None:
        if name not in self._parts:
            raise AttributeError(f"The context has no {name!r}.")
        del self._parts[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self._parts})

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        return f"ContextObject({', '.join(f'{name}={_short(value)}' for name, value in self._parts.items())})"


class ContextDict(Container, MutableMapping[Any, Any]):
    """A dict in a context; what is in it is moved, shared and saved with the rest.

    Args:
        parts: What to begin with; it is copied.

    Source: ``pystematic.torch.ContextDict``.
    """

    def __init__(self, parts: Mapping[Any, Any] | Iterable[tuple[Any, Any]] = ()) -> None:
        self._parts = {}
        self.update(parts)

    def __getitem__(self, key: Any) -> Any:
        return self._parts[key]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._parts[key] = self._taken(value)

    def __delitem__(self, key: Any) -> None:
        del self._parts[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Give what is under a key; put something there first if there is nothing.

        Args:
            key: The key.
            default: That. Default None.

        Returns:
            What is there now: of a dict or list the container that was made of it.
        """
        if key not in self._parts:
            self[key] = default
        return self._parts[key]

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        return f"ContextDict({{{', '.join(f'{key!r}: {_short(value)}' for key, value in self._parts.items())}}})"


class ContextList(Container, MutableSequence[Any]):
    """A list in a context; what is in it is moved, shared and saved with the rest.

    Args:
        parts: What to begin with; it is copied.

    Source: ``pystematic.torch.ContextList``.
    """

    def __init__(self, parts: Iterable[Any] = ()) -> None:
        self._parts = []
        self.extend(parts)

    def insert(self, index: int, value: Any) -> None:
        """Put a value in front of another one.

        Args:
            index: The number of that one.
            value: The value.
        """
        self._parts.insert(index, self._taken(value))

    def __getitem__(self, index: Any) -> Any:
        return self._parts[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        self._parts[index] = map(self._taken, value) if isinstance(index, slice) else self._taken(value)

    def __delitem__(self, index: Any) -> None:
        del self._parts[index]

    def __len__(self) -> int:
        return len(self._parts)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, ContextList):
            return bool(self._parts == other._parts)
        return bool(self._parts == other) if isinstance(other, list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def sort(self, *, key: Callable[[Any], Any] | None = None, reverse: bool = False) -> None:
        """Sort in place, as a list does.

        Args:
            key: Gives what is compared. Default None: the values.
            reverse: Whether the largest comes first. Default not.
        """
        self._parts.sort(key=key, reverse=reverse)

    @reprlib.recursive_repr()
    def __repr__(self) -> str:
        return f"ContextList([{', '.join(map(_short, self._parts))}])"


def _device(name: str | torch.device) -> torch.device:
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise InvalidValueError(
            f"A context is moved to a device, such as 'cpu', 'cuda' or 'cuda:1'. Received: {name!r}. The dtype of a "
            "module is changed by the module itself: context.model.to(dtype)."
        ) from error
    if device.type in ("cuda", "mps"):
        choose_device(device)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InvalidValueError(
            f"There is no such GPU. Received: {str(device)!r}. The first is 'cuda:0', and there are "
            f"{torch.cuda.device_count()}."
        )
    return device


def _short(value: Any) -> str:
    return repr(value) if isinstance(value, Container | bool | int | float | str | None) else type(value).__name__
