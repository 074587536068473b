"""How the processes that a run starts know of it: by one variable of their environment."""

import base64
import contextlib
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidStateError

if TYPE_CHECKING:
    from trainlab.runs.current import CurrentRun

__all__ = ["VARIABLE", "SentParams", "sent", "sent_to_children"]

VARIABLE = "TRAINLAB_EXPERIMENT"
# Linux takes 128 KiB for one variable, with its name.
_MOST_BYTES = 120_000


@contextlib.contextmanager
def sent_to_children(run: "CurrentRun") -> Iterator[None]:
    """Let the processes that are started in this block know of the run.

    Args:
        run: it.

    Yields:
        None.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = _told(run)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def sent(text: str) -> dict[str, Any]:
    """Read what the variable holds.

    Args:
        text: its value.

    Returns:
        The fields of a CurrentRun, but for its seeds.

    Raises:
        InvalidStateError: it is not what a run has put there.
    """
    try:
        told = json.loads(text)
        return {
            "experiment": str(told["experiment"]),
            "output_dir": Path(told["output_dir"]),
            "random_seed": int(told["random_seed"]),
            "pid": int(told["pid"]),
            "params": SentParams(told["params"], told["reason"]),
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidStateError(
            f"The environment variable {VARIABLE} is set by a run for the processes that it starts, and this is no "
            f"such value. Received: {text[:100]!r}. Take it out of the environment."
        ) from error


class SentParams(Mapping[str, Any]):
    """The parameters of the run that this process is a child of; read when they are first asked for.

    Args:
        content: them, as text; None where they could not be sent.
        reason: why not.
    """

    def __init__(self, content: str | None, reason: str) -> None:
        self._content, self._reason = content, reason
        self._params: Mapping[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        return self._read()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._read())

    def __len__(self) -> int:
        return len(self._read())

    def _read(self) -> Mapping[str, Any]:
        if self._params is None:
            if self._content is None:
                raise InvalidStateError(
                    f"This process does not have the run's parameters: {self._reason}. Hand it what it needs when it "
                    "is started; output_dir is known here."
                )
            try:
                self._params = pickle.loads(base64.b64decode(self._content))
            except Exception as error:  # whatever a class may raise when its object is made again
                raise InvalidStateError(
                    f"The run's parameters cannot be read in this process: {type(error).__name__}: {error}. Their "
                    "classes must be defined in a module that it can import."
                ) from error
        return self._params


def _told(run: "CurrentRun") -> str:
    told = {
        "experiment": run.experiment,
        "output_dir": str(run.output_dir),
        "random_seed": run.random_seed,
        "pid": run.pid,
        "params": None,
        "reason": "",
    }
    try:
        content = base64.b64encode(pickle.dumps(dict(run.params))).decode("ascii")
    except Exception as error:  # whatever a class may raise when its object is pickled
        return json.dumps({**told, "reason": f"they cannot be pickled ({type(error).__name__}: {error})"[:500]})
    if len(content) > _MOST_BYTES:
        return json.dumps({**told, "reason": f"with {len(content)} bytes they are too large for the environment"})
    return json.dumps({**told, "params": content})
