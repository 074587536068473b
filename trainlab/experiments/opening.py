"""Where a run's folder is, who has it open, and which values hold: found out before anything runs."""

import contextlib
import dataclasses
import logging
import os
import pickle
import re
import secrets
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trainlab.errors import DisagreementError, InvalidValueError, RunFolderError, TrainlabError
from trainlab.runs import JoinedFolder, RunFolder
from trainlab.runs.masking import Masking

if TYPE_CHECKING:
    from trainlab.distributed import DistributedContext, Failure, Launched
    from trainlab.experiments.definition import Experiment
    from trainlab.experiments.values import Values

__all__ = ["Opened", "Place", "open_run", "ranks_of_environment", "root_of"]

logger = logging.getLogger("trainlab.experiments")

# Any of them may say that this process is one of several; to ask what they say loads torch.
_OF_RANKS = ("TRAINLAB_RANK", "TRAINLAB_WORLD_SIZE", "RANK", "WORLD_SIZE", "SLURM_PROCID")
_OF_LAUNCHES = ("TRAINLAB_LAUNCH_ID", "SLURM_JOB_ID")
# How long the news of a rank's failure may take.
_HEARING_SECONDS = 2.0
# The parameters that say where a rank runs.
_OF_NODES = ("node_rank", "nproc_per_node", "nnodes", "master_addr", "master_port")
# What pathlib makes of a URL.
_URL_OF_PATH = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


@dataclass(frozen=True)
class Place:
    """Where a run is to be.

    Attributes:
        run_dir: its folder exactly; None for a new one.
        resumes: whether a run that is there already is gone on with, from its newest checkpoint.
        is_callers: whether the folder is the caller's choice, who may keep files of its own there.
    """

    run_dir: str | os.PathLike[str] | None
    resumes: bool
    is_callers: bool

    @classmethod
    def of(cls, run_dir: str | os.PathLike[str] | None, resumes: bool) -> "Place":
        """Take what the caller gave, or else TRAINLAB_RUN_DIR and TRAINLAB_RESUME, which are for this run alone.

        Args:
            run_dir: as given to ``run``.
            resumes: as given to ``run``.

        Returns:
            The place. The variables are taken out of the environment.

        Raises:
            InvalidValueError: TRAINLAB_RESUME is neither 0 nor 1.
        """
        named = os.environ.pop("TRAINLAB_RUN_DIR", None) or None
        switch = os.environ.pop("TRAINLAB_RESUME", None) or "0"
        if switch not in ("0", "1"):
            raise InvalidValueError(f"TRAINLAB_RESUME is 0 or 1. Received: {switch!r}.")
        if run_dir is not None:
            return cls(run_dir, resumes, is_callers=True)
        return cls(named, resumes or switch == "1", is_callers=False)


@dataclass(frozen=True)
class Opened:
    """A run whose folder is open.

    Attributes:
        folder: the folder; joined on the other ranks than the chief.
        values: of the parameters, with the seed that holds; the chief's on all ranks.
        ranks: the ranks; None for a process alone.
    """

    folder: RunFolder
    values: "Values"
    ranks: "DistributedContext | None"

    @property
    def rank(self) -> int:
        """The number of this process."""
        return 0 if self.ranks is None else self.ranks.rank

    @property
    def is_chief(self) -> bool:
        """Whether this process writes what a run writes once."""
        return self.rank == 0

    @contextlib.contextmanager
    def guard(self) -> Iterator[None]:
        """Let the ranks know of each other's failures, and the chief write down the first of them at once.

        Yields:
            None.
        """
        if self.ranks is None:
            yield
            return
        self.ranks.watchdog.on_failure(self._note_failure)
        self.ranks.phase("the main function")
        with self.ranks.guard():
            yield

    def _note_failure(self, failure: "Failure") -> None:
        if not self.is_chief or self.ranks is None:
            return
        try:
            self.folder.note_failure(failure.headline(self.ranks.size))
        except (OSError, TrainlabError) as error:  # what went wrong is told elsewhere, too
            logger.info("The run's record could not be written: %s", error)

    def failure_behind(self, error: BaseException | None) -> str | None:
        """Tell what a signal follows from by which the launcher ends this rank: the failure of another one.

        Args:
            error: what ended the run on this rank.

        Returns:
            The failure, in a sentence; None if there is none.
        """
        if self.ranks is None or not isinstance(error, SystemExit) or error.code != 128 + signal.SIGTERM:
            return None
        # The launcher may have seen a rank end before the ranks have heard of it.
        end = time.monotonic() + (_HEARING_SECONDS if "TRAINLAB_AGENT_PID" in os.environ else 0.0)
        while (failure := self.ranks.watchdog.failure) is None and time.monotonic() < end:
            time.sleep(0.05)
        return None if failure is None else failure.headline(self.ranks.size)

    def end_together(self, seeds_drawn: int) -> None:
        """Wait until all ranks have come to the end of the run, and see that they have drawn as many seeds.

        Args:
            seeds_drawn: how many this rank has.

        Raises:
            PeerFailedError: another rank has failed.
            DisagreementError: they have drawn different numbers of seeds.
        """
        if self.ranks is None:
            return
        drawn = [int(told) for told in self.ranks.channel("run end").allgather(b"%d" % seeds_drawn)]
        if len(set(drawn)) > 1:
            raise DisagreementError(
                "The ranks of a run must draw as many seeds, each the same, and they have not. Received, as numbers of "
                f"new_seed() calls by rank: {drawn}. Call new_seed() on all ranks or on none; for a seed of one rank's "
                "own add its rank to a seed that all of them have drawn."
            )


@contextlib.contextmanager
def ranks_of_environment(values: "Values") -> "Iterator[DistributedContext | None]":
    """Find the other processes of this run, if the environment says that there are some.

    Args:
        values: of the parameters.

    Yields:
        The ranks; None for a process alone.
    """
    if not any(os.environ.get(name) for name in _OF_RANKS) and not _is_group_open():
        yield None
        return
    from trainlab.distributed import choose_device, open_ranks

    with open_ranks(None if values.params["cuda"] else choose_device("cpu")) as ranks:
        yield ranks if ranks.size > 1 else None


def open_run(experiment: "Experiment", values: "Values", place: Place, ranks: "DistributedContext | None") -> Opened:
    """Open the folder on the chief, and join it on the other ranks, which take the chief's values.

    Args:
        experiment: what is to be run.
        values: of the parameters, as this rank has read them.
        place: where the run is to be.
        ranks: all ranks; None for a process alone.

    Returns:
        The run.

    Raises:
        RunFolderError: the folder cannot be used.
        DisagreementError: the ranks were given different values.
    """
    if ranks is None:
        folder = _open_folder(experiment, values, place)
        _tell_launcher(folder)
        return Opened(folder, _with_seed_of(folder, values), None)
    opened: list[RunFolder] = []

    def on_chief() -> dict[str, Any]:
        folder = _open_folder(experiment, values, place)
        try:
            _tell_launcher(folder)
            chosen = pickle.dumps(_with_seed_of(folder, values))
        except BaseException:
            folder.close()
            raise
        opened.append(folder)
        return {"folder": folder.told, "values": chosen, "given": _given(values)}

    told = ranks.on_chief(on_chief)
    if ranks.is_chief:
        return Opened(opened[0], pickle.loads(told["values"]), ranks)
    _check_same(_given(values), told["given"], ranks.rank)
    return Opened(JoinedFolder(told["folder"], ranks.rank), pickle.loads(told["values"]), ranks)


def _open_folder(experiment: "Experiment", values: "Values", place: Place) -> RunFolder:
    # The launch's folder is for its first run, and not for those of the programs that this one may start.
    of_launch = os.environ.pop("TRAINLAB_LAUNCH_RUN", None) if place.run_dir is None else None
    launch = _launched()
    root = root_of(values.params["output_dir"])
    run_dir = place.run_dir or of_launch
    if run_dir is None and "://" in root:
        run_dir = f"{root.rstrip('/')}/{experiment.path}/{_new_name(launch)}"
    folder = RunFolder.open(
        name=experiment.path,
        run_dir=run_dir,
        root=root,
        launch_id=None if launch is None else launch.id,
        attempt=0 if launch is None else launch.attempt,
        is_launchers=bool(of_launch) or place.is_callers,
        masking=Masking(values.secrets),
    )
    folder.resumes = folder.resumes or (place.resumes and folder.continues)
    _refuse_another(experiment, folder)
    return folder


def _tell_launcher(folder: RunFolder) -> None:
    """Let what launched this process know where its run is, if something did."""
    if "TRAINLAB_LAUNCH_DIR" in os.environ:
        from trainlab.distributed import note  # which loads torch

        note("run", {"folder": str(folder.place)})


def root_of(output_dir: object) -> str:
    """The folder, or URL, that new runs are made in.

    Args:
        output_dir: as the parameter has it: a URL that went through pathlib has lost a slash.

    Returns:
        It as text.
    """
    text = str(output_dir)
    found = _URL_OF_PATH.match(text)
    if found is None:
        return text
    return f"{found[1]}:{'///' if found[1] in ('file', 'local') else '//'}{text[found.end() :]}"


def _refuse_another(experiment: "Experiment", folder: RunFolder) -> None:
    """Refuse to go on with the run of another experiment."""
    begun = (folder.record.get("experiment") or {}).get("path")
    if begun not in (None, experiment.path):
        folder.close()
        raise RunFolderError(
            f"This folder holds a run of another experiment, {begun!r}. Received: {folder.place} for "
            f"{experiment.path!r}. Name a new folder, or the experiment whose run it is."
        )


def _new_name(launch: "Launched | None") -> str:
    # On a store nothing tells which folder an earlier attempt of the launch had, but its name.
    if launch is not None:
        return f"launch_{launch.id}"
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}_{secrets.token_hex(3)}"


def _with_seed_of(folder: RunFolder, values: "Values") -> "Values":
    """The values, with the seed of the run that is gone on with where nobody gave one."""
    begun_with = folder.record.get("random_seed")
    if not isinstance(begun_with, int) or values.origins.get("random_seed", "default") != "default":
        return values
    return dataclasses.replace(values, params={**values.params, "random_seed": begun_with})


def _given(values: "Values") -> dict[str, str]:
    """What was given on purpose, as text; what defaults make up, such as a time, the chief alone decides."""
    plain = values.plain()
    given = {name for name, origin in values.origins.items() if origin != "default"}
    return {name: repr(_inside(plain, name)) for name in sorted(given.difference(_OF_NODES))}


def _inside(plain: Any, name: str) -> Any:
    if isinstance(plain, Mapping) and name in plain:
        return plain[name]
    above, _, rest = name.partition(".")
    return _inside(plain[above], rest) if rest and isinstance(plain, Mapping) and above in plain else None


def _check_same(mine: Mapping[str, str], of_chief: Mapping[str, str], rank: int) -> None:
    for name in sorted({*mine, *of_chief}):
        if mine.get(name) != of_chief.get(name):
            raise DisagreementError(
                f"The ranks of a run must be given the same parameters. They differ in: {name}. Received: "
                f"{mine.get(name, 'nothing')} on rank {rank}, {of_chief.get(name, 'nothing')} on rank 0. Start all "
                "ranks with one command line and one environment."
            )


def _is_group_open() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def _launched() -> "Launched | None":
    if not any(os.environ.get(name) for name in _OF_LAUNCHES):
        return None
    from trainlab.distributed import launched

    return launched()
