"""Call: what each rank is to run, and how it gets to another process."""

import functools
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

from trainlab.errors import InvalidTypeError, LaunchError

__all__ = ["Call", "can_import_main"]

T = TypeVar("T")


class Call(Generic[T]):
    """A function with its arguments.

    Args:
        function: what is called; it gets nothing but these arguments.
        args: positional ones.
        kwargs: named ones.

    Raises:
        InvalidTypeError: the function cannot be called.
    """

    def __init__(
        self, function: Callable[..., T], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> None:
        if not callable(function):
            raise InvalidTypeError(f"launch runs a function. Received: {function!r} ({type(function).__name__}).")
        self.function, self.args, self.kwargs = function, args, kwargs or {}

    @property
    def name(self) -> str:
        """The function's name, for people and folders.

        Returns:
            Such as "train".
        """
        inner: Any = self.function
        while isinstance(inner, functools.partial):
            inner = inner.func
        return getattr(inner, "__name__", type(inner).__name__).replace("<lambda>", "lambda")

    def __call__(self) -> T:
        """Call the function.

        Returns:
            What it returns.
        """
        return self.function(*self.args, **self.kwargs)

    def to_bytes(self) -> bytes:
        """The call as a process that is started anew can read it.

        Returns:
            A pickle; by cloudpickle where the function exists nowhere but in this process (a notebook, a lambda).

        Raises:
            LaunchError: it cannot be written.
        """
        try:
            content = pickle.dumps(self)
        except (pickle.PicklingError, AttributeError, TypeError, ValueError, RecursionError) as error:
            return self._by_value(f"{type(error).__name__}: {error}", error)
        if b"__main__" in content and not can_import_main():
            return self._by_value("it is defined in a notebook or at a prompt, where no new process can find it", None)
        return content

    def _by_value(self, why: str, error: BaseException | None) -> bytes:
        todo = (
            "Define it, and what it is given, at the top level of a module or a script; or install the package that "
            "can send it: pip install 'trainlab[notebook]'."
        )
        try:
            import cloudpickle
        except ImportError:
            raise LaunchError(f"{self.name} cannot be sent to other processes: {why}. {todo}") from error
        try:
            return bytes(cloudpickle.dumps(self))
        except Exception as problem:
            raise LaunchError(
                f"{self.name} cannot be sent to other processes: {type(problem).__name__}: {problem}. Pass what can be "
                "pickled, and open files, locks and connections inside the function."
            ) from problem


def can_import_main() -> bool:
    """Tell whether a new process can import what this one runs as its program.

    Returns:
        False in a notebook and at a prompt.
    """
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return True
    path = getattr(main, "__file__", None)
    return path is not None and Path(path).exists()
