"""trainlab.context: the context of the running experiment, which can be imported before it runs, without torch."""

from typing import TYPE_CHECKING, Any, cast

from trainlab.runs.current import current_run

if TYPE_CHECKING:
    from trainlab.containers.container import ContextObject

__all__ = ["context"]


class _RunningContext:
    """The context of the running experiment: everything that is set on it is moved, saved and restored together.

    It can be imported before a run; using it then is an error.
    """

    @property
    def __class__(self) -> type:
        from trainlab.containers.container import ContextObject

        return ContextObject

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise TypeError("The class of trainlab.context cannot be changed.")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_context(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_context(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_context(), name)

    def __dir__(self) -> list[str]:
        return dir(_context()) if current_run() is not None else dir(self.__class__)

    def __repr__(self) -> str:
        return repr(_context()) if current_run() is not None else "<the context of no running experiment>"


context = cast("ContextObject", _RunningContext())


def _context() -> "ContextObject":
    from trainlab.containers.running import run_context

    return run_context()
