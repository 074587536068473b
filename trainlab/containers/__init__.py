"""What a training loop of one's own holds, moved, shared, saved and restored as one; and its progress bar."""

from trainlab.containers.container import ContextDict, ContextList, ContextObject
from trainlab.containers.iterating import iterate
from trainlab.containers.running import context, place_on_correct_device, run_context

__all__ = [
    "ContextDict",
    "ContextList",
    "ContextObject",
    "context",
    "iterate",
    "place_on_correct_device",
    "run_context",
]
