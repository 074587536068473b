"""What a training loop of one's own holds, moved, shared, saved and restored as one; and its progress bar."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainlab.containers.container import ContextDict as ContextDict
    from trainlab.containers.container import ContextList as ContextList
    from trainlab.containers.container import ContextObject as ContextObject
    from trainlab.containers.iterating import iterate as iterate
    from trainlab.containers.running import place_on_correct_device as place_on_correct_device
    from trainlab.containers.running import run_context as run_context
    from trainlab.containers.running_context import context as context

# Where each name lives, loaded when it is first touched: the context can be imported without torch.
_HOMES = {
    "ContextDict": "container",
    "ContextList": "container",
    "ContextObject": "container",
    "context": "running_context",
    "iterate": "iterating",
    "place_on_correct_device": "running",
    "run_context": "running",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value
