"""CurrentRun: the experiment's run that this process is in the middle of, for whatever needs to know of it."""

import os
import random
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trainlab.errors import InvalidStateError, InvalidValueError
from trainlab.runs.masking import Masking
from trainlab.runs.run_folder import RunFolder
from trainlab.runs.sent_run import VARIABLE, sent

if TYPE_CHECKING:
    from trainlab.schedule import TrainUnit

__all__ = [
    "CurrentRun",
    "SearchedTrial",
    "Seeds",
    "begin_run",
    "current_run",
    "end_run",
    "only_run",
    "refuse_second_run",
]


class SearchedTrial(Protocol):
    """What a search asks of a run that is one of its trials.

    Attributes:
        metric: the name of the metric that the search looks at.
        smaller_is_better: whether a smaller value of it is better.
        max_length: how long to train where the program does not say; None if the search does not either.
        prunes: whether the search may end the trial early, by what it reports.
    """

    metric: str
    smaller_is_better: bool
    max_length: "TrainUnit | None"
    prunes: bool

    def report(self, value: float, step: int) -> bool:
        """Tell the search how far the trial is; the chief alone calls this.

        Args:
            value: the metric's.
            step: how much is trained: epochs where ``max_length`` is in epochs, else batches; grows from call to call.

        Returns:
            Whether the trial is to be pruned.
        """


class Seeds:
    """The seeds of a run, all from one: the n-th is the same on every rank and in every replay.

    Args:
        random_seed: the run's seed, an int of at least 0.

    Attributes:
        count: how many were drawn.
    """

    def __init__(self, random_seed: int) -> None:
        self._generator = random.Random(random_seed)
        self._lock = threading.Lock()
        self.count = 0

    def next(self, nbits: int = 32) -> int:
        """Draw the next seed.

        Args:
            nbits: how many random bits it has, at least 1. Default 32.

        Returns:
            An int from 0 to 2**nbits - 1.

        Raises:
            InvalidValueError: ``nbits`` is no int of at least 1.
        """
        if isinstance(nbits, bool) or not isinstance(nbits, int) or nbits < 1:
            raise InvalidValueError(f"nbits is an int of at least 1. Received: {nbits!r}.")
        with self._lock:
            self.count += 1
            return self._generator.getrandbits(nbits)


@dataclass
class CurrentRun:
    """A run of an experiment in this process, or as a child process or another rank knows it.

    Attributes:
        experiment: the experiment's name, with those of its groups: "group/train".
        output_dir: the run's folder, absolute.
        params: all parameters by name, the default ones among them.
        random_seed: the run's seed.
        seeds: what ``new_seed`` draws from.
        folder: the run's open folder; None in a process that only knows of it (a subprocess of the run).
        is_subprocess: whether ``launch_subprocess`` started this process.
        local_rank: 0, or the number of the subprocess, from 1.
        searched: the search that the run is a trial of, if it is one.
        hparams: the parameters as ``trainlab.init`` takes them, plain and without secrets; None where it is given none.
        uses_gpus: whether a GPU may be used, if there is one.
        context: the ContextObject of the run, once it was asked for.
        is_trained: whether ``trainlab.init`` has opened the run's own training; a second one gets another folder.
        pid: the process that began it.
        masking: what keeps the run's secrets out of what is written; those of other runs that it starts are added.
        at_end: closed when the main function has ended, with its error, before the folder is.
        outer: the run that this process, a forked child, was in the middle of before.
    """

    experiment: str
    output_dir: Path
    params: Mapping[str, Any]
    random_seed: int
    seeds: Seeds
    folder: RunFolder | None = None
    is_subprocess: bool = False
    local_rank: int = 0
    searched: SearchedTrial | None = None
    hparams: Mapping[str, Any] | None = None
    uses_gpus: bool = True
    context: Any = None
    is_trained: bool = False
    pid: int = field(default_factory=os.getpid)
    masking: Masking = field(default_factory=Masking)
    at_end: ExitStack = field(default_factory=ExitStack)
    outer: "CurrentRun | None" = None

    @property
    def can_lend_folder(self) -> bool:
        """Whether ``trainlab.init`` in this process may use the run's own folder."""
        return self.folder is not None and not self.is_trained and self.pid == os.getpid()


_current: CurrentRun | None = None
# Which process opens a run, of which experiment; a forked child's is not its parent's.
_opening: tuple[int, str] | None = None
_opening_lock = threading.Lock()
# What the environment told last, and the run that it stands for.
_sent: tuple[str, CurrentRun] | None = None


def current_run() -> CurrentRun | None:
    """Return the run that this process is in the middle of, or is a child of; None if there is none.

    Raises:
        InvalidStateError: the environment names a run in a way that no run does.
    """
    return _current or _run_of_environment()


@contextmanager
def only_run(experiment: str) -> Iterator[None]:
    """A block in which a run is opened and goes on, and no other thread of this process begins one.

    Args:
        experiment: the name of what is to be run.

    Yields:
        None.

    Raises:
        InvalidStateError: one is running, or about to.
    """
    global _opening  # noqa: PLW0603  # as in begin_run
    with _opening_lock:
        refuse_second_run(experiment)
        before, _opening = _opening, (os.getpid(), experiment)
    try:
        yield
    finally:
        _opening = before


def refuse_second_run(experiment: str) -> None:
    """Refuse to begin a run in the middle of another one of this process.

    Args:
        experiment: the name of what is to be run.

    Raises:
        InvalidStateError: one is running already.
    """
    running = None
    if _current is not None and _current.pid == os.getpid():
        running = f"{_current.experiment!r}, in {_current.output_dir}"
    elif _opening is not None and _opening[0] == os.getpid():
        running = repr(_opening[1])
    if running is not None:
        raise InvalidStateError(
            f"An experiment runs in this process already: {running}. Received: "
            f"{experiment!r}. Run it in a process of its own, with trainlab.run_experiment(...); or, for a helper "
            "of the same run, call trainlab.launch_subprocess()."
        )


def begin_run(run: CurrentRun) -> None:
    """Note that a run begins, for all threads of this process, and for its children.

    Args:
        run: it.

    Raises:
        InvalidStateError: one is running already.
    """
    global _current  # noqa: PLW0603  # one run at a time in a process is the rule, and it is kept here
    if _current is not None and _current.pid == os.getpid():
        refuse_second_run(run.experiment)
    run.outer = _current
    _current = run


def end_run(run: CurrentRun) -> None:
    """Note that a run has ended.

    Args:
        run: it.
    """
    global _current  # noqa: PLW0603  # as in begin_run
    if _current is run:
        _current = run.outer


def _run_of_environment() -> CurrentRun | None:
    global _sent  # noqa: PLW0603  # what was read is kept
    text = os.environ.get(VARIABLE)
    if not text:
        return None
    if _sent is None or _sent[0] != text:
        fields = sent(text)
        _sent = (text, CurrentRun(**fields, seeds=Seeds(fields["random_seed"])))
    return _sent[1]
