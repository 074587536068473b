"""RankTask: what submitit runs as one rank of a job, and puts back into the queue when the job is to be requeued."""

import os
import pickle
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainlab.distributed.launched import launched, note
from trainlab.launch.job import NOTES
from trainlab.launch.platform import Platform
from trainlab.launch.worker import environment, note_error, pickled, run_rank, variables_of

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

__all__ = ["RankTask"]


@dataclass
class RankTask:
    """A call as a rank of a job makes it.

    Args:
        content: the pickled call.
        platform: as given to ``launch``.
        folder: the job's, which is the run's too.
        path: where the submitting process found its modules.
        launch_id: a name of this submission, where there is no SLURM that gives it a number.
        port: where ranks of this machine find each other; None under SLURM, which tells its ranks.
        gpus: CUDA_VISIBLE_DEVICES of the submitting process; None where it is not set.
        attempt: how often the job was put back into the queue; counted here where there is no SLURM that does.
    """

    content: bytes
    platform: Platform
    folder: Path
    path: tuple[str, ...]
    launch_id: str
    port: int | None
    gpus: str | None
    attempt: int = 0

    def __call__(self) -> bytes:
        """Run the call.

        Returns:
            What it returned, pickled.

        Raises:
            LaunchError: what it returned cannot be pickled.
        """
        with environment(self._variables()):
            if self.platform.executor != "debug":
                self._prepare()
            try:
                result = self._run()
            except SystemExit as error:
                if error.code not in {None, 0}:
                    _note_exit(error.code)
                    raise
                result = pickle.dumps(None)
            except BaseException as error:
                note_error(error)
                if isinstance(error, Exception):  # of a signal that requeues the job it is a SystemExit
                    self._remove_call(is_shared=True)
                raise
            self._remove_call(is_shared=False)
            return result

    def checkpoint(self) -> "DelayedSubmission | None":
        """Tell submitit how to go on after the job was requeued.

        Returns:
            The same again: training finds its checkpoint in the job's folder. None if the job is not to be requeued.
        """
        from submitit.helpers import DelayedSubmission

        most = self.platform.max_requeues
        if not self.platform.requeue or (most is not None and self._attempt_now() >= most):
            sys.stderr.write(f"Not requeued: requeue={self.platform.requeue}, max_requeues={most}.\n")
            told = f"max_requeues={most} is used up" if self.platform.requeue else "requeue=False"
            note("not_requeued", {"told": told})
            return None
        self.attempt += 1
        return DelayedSubmission(self)

    def _remove_call(self, *, is_shared: bool) -> None:
        """Remove this task from the disk, for its arguments may be secret, unless other ranks may have to read it."""
        if self.platform.executor == "debug":
            return
        from submitit import JobEnvironment

        job = JobEnvironment()
        if job.global_rank == 0 and (job.num_tasks == 1 or not is_shared):
            job.paths.submitted_pickle.unlink(missing_ok=True)

    def _run(self) -> bytes:
        sys.path.extend(entry for entry in self.path if entry not in sys.path)
        return pickled(run_rank(pickle.loads(self.content), self.platform))

    def _variables(self) -> dict[str, str]:
        platform = self.platform
        found = variables_of(platform, None) | {
            "TRAINLAB_LAUNCH_RUN": str(self.folder),
            "TRAINLAB_REQUEUE": str(int(platform.requeue)),
        }
        if platform.max_requeues is not None:
            found["TRAINLAB_MAX_REQUEUES"] = str(platform.max_requeues)
        if platform.executor == "slurm":
            return found
        # Whatever the submitting process is one rank of is not meant here.
        found |= {
            "TRAINLAB_LAUNCH_ID": self.launch_id,
            "TRAINLAB_ATTEMPT": str(self.attempt),
        }
        return found | self._place()

    def _place(self) -> dict[str, str]:
        """The variables that tell a rank of this machine its place; none for one that is alone."""
        if self.platform.executor == "debug":
            return {}
        from submitit import JobEnvironment

        job = JobEnvironment()
        rank, size = str(job.global_rank), str(job.num_tasks)
        found = {
            "TRAINLAB_RANK": rank,
            "TRAINLAB_WORLD_SIZE": size,
            "TRAINLAB_LOCAL_RANK": rank,
            "TRAINLAB_LOCAL_WORLD_SIZE": size,
            "TRAINLAB_NODE_RANK": "0",
            "TRAINLAB_NODES": "1",
            "TRAINLAB_MASTER_ADDR": "127.0.0.1",
            "TRAINLAB_MASTER_PORT": str(self.port),
        }
        return found if job.num_tasks > 1 else {}

    def _attempt_now(self) -> int:
        here = launched()
        return self.attempt if here is None else here.attempt

    def _prepare(self) -> None:
        """Clear away what an earlier attempt of this rank left, and mend what submitit has set up."""
        from submitit import JobEnvironment

        job = JobEnvironment()
        result = job.paths.result_pickle
        for path in (result, *result.parent.glob(f"{result.name}.save_tmp")):
            path.unlink(missing_ok=True)  # submitit stops at the latter
        notes = job.paths.folder / f"{job.job_id}_{NOTES}" / str(self._attempt_now())
        notes.mkdir(parents=True, exist_ok=True)
        os.environ["TRAINLAB_LAUNCH_DIR"] = str(notes)
        if self.platform.executor == "local" and self.platform.gpus_per_node is None:
            _set("CUDA_VISIBLE_DEVICES", self.gpus)  # submitit hides all GPUs that it is not asked for
        if self.platform.time is None:
            _forget_limit()


def _forget_limit() -> None:
    """Without a time limit of ours submitit's handler has none that it could have run into."""
    from submitit import JobEnvironment

    handler = signal.getsignal(getattr(signal, f"SIG{JobEnvironment.USR_SIG}"))
    submission: Any = getattr(getattr(handler, "__self__", None), "_delayed", None)
    if submission is not None:
        submission.set_timeout(0, submission._timeout_countdown)


def _set(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


def _note_exit(code: Any) -> None:
    if isinstance(code, str):
        sys.stderr.write(f"{code}\n")
        note_error(SystemExit(code))
    note("exit", {"code": code & 0xFF if isinstance(code, int) else 1})
