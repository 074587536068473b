"""Searcher: makes the trials of a search, alone or beside others on the same study."""

import hashlib
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.errors import StorageError
from trainlab.experiments.searched import ASKED_TO_STOP, SEARCH, SearchedBy, told_by_driver
from trainlab.runs.masking import mask_passwords
from trainlab.runs.names import RECORD
from trainlab.sweeps.liveness import Watch
from trainlab.sweeps.methods import make_sampler
from trainlab.sweeps.outcome import Outcome, outcome_of
from trainlab.sweeps.pool import Finished, Job, Pool, refuse_unguarded
from trainlab.sweeps.same_search import claim, refuse_another
from trainlab.sweeps.search_result import folder_name
from trainlab.sweeps.search_table import SearchTable
from trainlab.sweeps.space import Space
from trainlab.sweeps.trials import SearchTrial, Trials

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from trainlab.experiments.definition import Experiment

__all__ = ["Searcher", "Wanted"]

_LOOK_SECONDS = 1.0
# A database's server that starts again is waited for.
_PATIENCE_SECONDS = 60.0
# If so many trials fail and none ends well, it is the program that is wrong.
_FAILURES_AT_THE_BEGINNING = 3


@dataclass(frozen=True)
class Wanted:
    """What is searched, and how.

    Attributes:
        experiment: what runs.
        fixed: the parameters that are given.
        space: what the search chooses.
        grid: all points of a grid, by the trial's position; None for another sampler.
        sampler: a name, or Optuna's.
        pruner: Optuna's.
        seed: of the sampler.
        trials: how many there are to be.
        told: what each trial's process is told; of its number nothing yet.
        folder: the search's.
        begun: what tells the search from another one.
        keep_going: whether the search goes on where trials fail.
        max_crashes: how often a trial is repeated whose process ends without a word.
        grace: seconds that trials have to come to an end.
    """

    experiment: "Experiment"
    fixed: Mapping[str, Any]
    space: Space
    grid: list[dict[str, Any]] | None
    sampler: Any
    pruner: Any
    seed: int
    trials: int
    told: SearchedBy
    folder: Path
    begun: Mapping[str, Any]
    keep_going: bool
    max_crashes: int
    grace: float


class Searcher:
    """Makes trials until there are enough.

    Args:
        wanted: what is searched.
        storage: the study's storage.
        trials: what it holds.
        watch: tells which other searchers live.
        token: what this one is known by.
        pool: makes the runs.
        table: shows the search.

    Attributes:
        problem: why the search was ended before there were enough trials; "" if it was not.
    """

    def __init__(
        self,
        wanted: Wanted,
        storage: "BaseStorage",
        trials: Trials,
        watch: Watch,
        token: str,
        pool: Pool,
        table: SearchTable,
    ) -> None:
        self._wanted, self._storage, self._trials = wanted, storage, trials
        self._watch, self._token, self._pool, self._table = watch, token, pool, table
        self._mine: dict[str, SearchTrial] = {}
        self._unreachable_since: float | None = None
        # What the search is known by, once it has a trial.
        self._search = ""
        self.problem = ""

    def check(self) -> None:
        """See that the search is the one that was begun under this name, if one was.

        Raises:
            InvalidValueError: it is another.
            RunFolderError: its folder cannot be used.
        """
        self._agree(self._trials.read())

    def run(self) -> list[SearchTrial]:
        """Make trials, and repeat those of dead searchers, until all are done, here or elsewhere, or it is stopped.

        Returns:
            All trials.

        Raises:
            StorageError: the storage could not be reached for a minute.
        """
        from optuna.exceptions import StorageInternalError

        while True:
            try:
                found = self._step()
            except StorageInternalError as error:
                self._bear(error)
                continue
            self._unreachable_since = None
            if found is not None:
                return found

    def _step(self) -> list[SearchTrial] | None:
        """Do what is next, after which this process may be killed at any instant; gives all trials at the end."""
        found = self._look()
        self._table.refresh(found)
        asked = found[: self._wanted.trials]
        enough = len(asked) == self._wanted.trials and all(trial.state != "running" for trial in asked)
        if not self._pool.running and (enough or self.problem or not self._pool.has_room):
            return found
        if self.problem or not self._pool.has_room or not self._start_one(found):
            self._wait()
        return None

    def _bear(self, error: Exception) -> None:
        """Wait for a storage that cannot be reached, as while its server starts again; but not for ever."""
        now = time.monotonic()
        self._unreachable_since = self._unreachable_since or now
        while self._pool.is_stopped and self._pool.running:
            self._pool.wait()
        if self._pool.is_stopped or now - self._unreachable_since > _PATIENCE_SECONDS:
            raise StorageError(
                f"The search's storage cannot be reached, since {now - self._unreachable_since:.0f} s: "
                f"{told_by_driver(error, self._wanted.told.storage)} Received: "
                f"{mask_passwords(self._wanted.told.storage)}. The same call goes on with the search."
            ) from None
        time.sleep(_LOOK_SECONDS)

    def _look(self) -> list[SearchTrial]:
        self._watch.look()
        found = self._trials.read()
        self._agree(found)
        now = {str(trial.number): trial.last.number for trial in found}
        for running in self._pool.running:
            key = running.job.key
            if now.get(key) != self._mine[key].last.number:
                running.child.kill()  # this searcher was taken for dead, and another one repeats the trial
        self._end_if_all_fail(found)
        return found

    def _agree(self, found: list[SearchTrial]) -> None:
        """See that the search, once it has a trial, is this one; and that its folder is its own."""
        if not found or self._search:
            return
        wanted = self._wanted
        search = refuse_another(found[0], wanted.begun, wanted.space, storage=wanted.told.storage, folder=wanted.folder)
        claim(wanted.folder, search)
        self._search = search

    def _end_if_all_fail(self, found: list[SearchTrial]) -> None:
        failed = [trial for trial in found if trial.state == "failed"]
        is_bad = len(failed) >= min(_FAILURES_AT_THE_BEGINNING, self._wanted.trials)
        if not self.problem and is_bad and all(trial.state in ("failed", "running") for trial in found):
            self.problem = f"{len(failed)} trials have failed and none has ended well"

    def _start_one(self, found: list[SearchTrial]) -> bool:
        """Start a trial, or find out how one ended; gives whether there was anything to do."""
        for trial in found[: self._wanted.trials]:
            if trial.state == "running" and self._is_left(trial):
                self._take_over(trial)
                return True
        if len(found) >= self._wanted.trials:
            return False
        begun = None if found else {"id": secrets.token_hex(8), **self._wanted.begun}
        if (mine := self._trials.begin(self._token, self._wanted.trials, begun)) is not None:
            self._agree(self._trials.read())
            self._submit(mine)
        return True

    def _is_left(self, trial: SearchTrial) -> bool:
        """Whether nobody makes a trial any more, this searcher neither, which may have lost it with the storage."""
        if trial.searcher == self._token:
            return str(trial.number) not in self._mine
        return self._watch.is_dead(trial.searcher)

    def _take_over(self, trial: SearchTrial) -> None:
        """Tell how the trial of a dead searcher ended, or repeat it."""
        outcome = self._outcome(trial)
        if outcome is not None:
            self._trials.tell(trial, outcome.state, outcome.value, outcome.reason)
            return
        is_drawn = self._wanted.space.is_whole(trial.params)
        if (mine := self._trials.repeat(trial, self._token, crashed=False, is_drawn=is_drawn)) is not None:
            self._submit(mine)

    def _submit(self, trial: SearchTrial) -> None:
        wanted, key = self._wanted, str(trial.number)
        params = {**wanted.fixed, **self._chosen(trial)}
        told = replace(wanted.told, trial=trial.last.number)
        name = folder_name(trial.number)
        claim(wanted.folder, self._search)  # which another search may have taken meanwhile
        self._mine[key] = trial
        self._pool.submit(
            Job(key, wanted.experiment, params, wanted.folder / name, {SEARCH: told.to_text()}, label=name)
        )

    def _chosen(self, trial: SearchTrial) -> dict[str, Any]:
        """The parameters of a trial; what an attempt before has drawn stays, all else depends on its position."""
        import optuna

        wanted, trial_id = self._wanted, trial.last._trial_id
        if wanted.grid is not None:
            return self._of_grid(trial, wanted.grid[trial.position])
        # A study of its own, for one keeps the trials that it has seen while it drew.
        study = optuna.load_study(
            study_name=wanted.told.study,
            storage=self._storage,
            sampler=make_sampler(wanted.sampler, seed_of(wanted.seed, trial.position)),
            pruner=wanted.pruner,
        )
        study.get_trials(deepcopy=False)  # which lets it know the trial
        return wanted.space.draw(optuna.trial.Trial(study, trial_id))

    def _of_grid(self, trial: SearchTrial, point: dict[str, Any]) -> dict[str, Any]:
        for name, value in point.items():
            if name not in trial.params:
                one = self._wanted.space.distributions[name]
                self._storage.set_trial_param(trial.last._trial_id, name, one.to_internal_repr(value), one)
        return point

    def _wait(self) -> None:
        if not self._pool.running:
            time.sleep(_LOOK_SECONDS)  # other searchers make what is left
            return
        finished = self._pool.wait(_LOOK_SECONDS)
        if finished is not None:
            self._conclude(finished)

    def _conclude(self, finished: Finished) -> None:
        """Tell how a trial of this searcher ended; one whose process died is repeated."""
        refuse_unguarded(finished)
        mine = self._mine.pop(finished.job.key)
        trial = next(one for one in self._trials.read() if one.number == mine.number)
        if trial.last.number != mine.last.number:
            return  # another searcher has it
        outcome = self._outcome(trial) or self._broken_off(trial, finished)
        if outcome is not None:
            self._trials.tell(trial, outcome.state, outcome.value, outcome.reason)
            if outcome.state == "failed" and not self._wanted.keep_going:
                self.problem = self.problem or f"{finished.job.label} has failed"
                self._pool.stop(self._wanted.grace)
        elif self._pool.has_room and not self.problem:
            again = self._trials.repeat(trial, self._token, crashed=True)
            if again is not None:
                self._submit(again)

    def _broken_off(self, trial: SearchTrial, finished: Finished) -> Outcome | None:
        """What a run that did not write its end is taken for; None for one that is to be gone on with."""
        if finished.is_stopped:
            return None
        has_begun = (finished.job.run_dir / RECORD).exists()
        last = finished.error.strip().splitlines()[-1:] or [f"its process ended with status {finished.exitcode}"]
        if not has_begun and finished.exitcode >= 0:
            return Outcome("failed", reason=mask_passwords(last[0]))
        if trial.crashes < self._wanted.max_crashes:
            return None
        return Outcome("failed", reason=mask_passwords(f"broken off {trial.crashes + 1} times; at last: {last[0]}"))

    def _outcome(self, trial: SearchTrial) -> Outcome | None:
        asked = bool(trial.last.system_attrs.get(ASKED_TO_STOP))
        place = self._wanted.folder / folder_name(trial.number)
        return outcome_of(place, self._wanted.told.metric, asked_to_stop=asked)


def seed_of(seed: int, position: int) -> int:
    """The sampler's seed for one trial: of the same for whoever makes it, and however often the search was broken off.

    Args:
        seed: the search's.
        position: the trial's.

    Returns:
        An int of 32 bits.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{position}".encode()).digest()[:4], "big")
