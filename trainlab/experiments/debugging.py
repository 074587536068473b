"""debugged: an error is shown with the values around it, and a debugger opens where it was raised."""

import bdb
import contextlib
import pdb
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trainlab.experiments.parameters import looks_secret
from trainlab.launch.worker import environment
from trainlab.runs.masking import MASK
from trainlab.runs.traceback_text import users_frames

if TYPE_CHECKING:
    from rich.pretty import Node
    from rich.traceback import Trace

__all__ = ["debugged"]

_PACKAGE = str(Path(__file__).parents[1])
_TEXT = re.compile(r"b?['\"]")
_CUT = re.compile(r"(['\"]\+\d+)?$")  # how rich ends a text that it has cut
_LONGEST = 200
_MOST_ITEMS = 10
_DEEPEST = 4
# What is shorter is found in any text.
_SHORTEST_SECRET = 4


@contextmanager
def debugged(enabled: bool, secrets: Sequence[str] = ()) -> Iterator[None]:
    """In this block an error is shown with local variables, then pdb opens at it if there is a terminal to type at.

    The error comes out of the block all the same. No progress bar is drawn meanwhile, so that ``breakpoint()`` can be
    talked to.

    Args:
        enabled: whether to; if not, nothing is done.
        secrets: texts that are shown as ``***``, as is text in variables whose names look like those of secrets.

    Yields:
        None.
    """
    if not enabled:
        yield
        return
    has_terminal = sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()
    with contextlib.ExitStack() as bar:
        if has_terminal:
            bar.enter_context(environment({"TERM": "dumb"}))
        try:
            yield
        except bdb.BdbQuit:
            raise  # who leaves the debugger has seen the place
        except Exception as error:
            bar.close()
            place = users_frames(error)
            _show(error, place, [secret for secret in secrets if secret])
            if has_terminal:
                pdb.post_mortem(place)
            raise


def _show(error: Exception, place: TracebackType | None, secrets: list[str]) -> None:
    from rich.console import Console
    from rich.traceback import Traceback

    trace = Traceback.extract(
        type(error), error, place, show_locals=True, locals_max_length=_MOST_ITEMS, locals_max_string=_LONGEST,
        locals_max_depth=_DEEPEST,
    )  # fmt: skip
    _mask_trace(trace, sorted(_forms(secrets), key=len, reverse=True))
    console = Console(stderr=True)
    console.print(Traceback(trace, width=None, show_locals=True, locals_max_string=_LONGEST, suppress=[_PACKAGE]))


def _forms(secrets: list[str]) -> set[str]:
    """Each secret as it is, and as Python writes it inside of quotes."""
    return {form for secret in secrets for form in (secret, repr(secret)[1:-1])}


def _mask_trace(trace: "Trace", secrets: list[str]) -> None:
    for stack in trace.stacks:
        stack.exc_value = _masked(stack.exc_value, secrets)
        stack.notes = [_masked(note, secrets) for note in stack.notes]
        for frame in stack.frames:
            for name, node in (frame.locals or {}).items():
                _mask_node(node, secrets, hidden=looks_secret(name))
        for inner in stack.exceptions:  # of an ExceptionGroup
            _mask_trace(inner, secrets)


def _mask_node(node: "Node", secrets: list[str], *, hidden: bool) -> None:
    """Mask a value and all that is in it; one that cannot be told from a secret is masked whole."""
    node.key_repr = _masked(node.key_repr, secrets)
    if _TEXT.match(node.value_repr) and (hidden or node.value_repr.strip("b'\"") in secrets):
        node.value_repr = repr(MASK)
    node.value_repr = _masked(node.value_repr, secrets)
    if len(node.value_repr) > 2 * _LONGEST:  # of an object with a long repr, which rich leaves whole
        node.value_repr = f"{node.value_repr[:_LONGEST]}…+{len(node.value_repr) - _LONGEST}"
    for child in node.children or []:
        _mask_node(child, secrets, hidden=hidden or _is_secret_key(child.key_repr))


def _is_secret_key(key: str) -> bool:
    name = key.strip("'\"")
    return bool(name) and looks_secret(name)


def _masked(text: str, secrets: list[str]) -> str:
    for secret in secrets:
        if len(secret) < _SHORTEST_SECRET:
            continue
        text = text.replace(secret, MASK)
        end: Any = _CUT.search(text)
        body = text[: end.start()]
        # A text may have been cut in the middle of it.
        kept = next((n for n in range(len(secret) - 1, _SHORTEST_SECRET - 1, -1) if body.endswith(secret[:n])), 0)
        if end[0] and kept:
            text = f"{body[:-kept]}{MASK}{end[0]}"
    return text
