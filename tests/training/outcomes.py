"""How a job of several ranks ended: their exit statuses, what they printed, and what the run's folder holds."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.distributed.ranks import Ranks, start_ranks
from tests.training import faults
from trainlab.checkpoint import Checkpoint, list_checkpoints
from trainlab.checkpoint.manifest import UNFINISHED
from trainlab.storage import open_store

# Nobody is to come to these where the cause itself is told; where they are what is tried, they are short.
PATIENT = {"TRAINLAB_TIMEOUT": "250", "TRAINLAB_HEARTBEAT_TIMEOUT": "250"}
LIMIT = 120.0


class Outcome:
    """The end of a job.

    Args:
        ranks: its processes; waited for, and each ends within the limit or the test fails.
        run_dir: the run's folder.
    """

    def __init__(self, ranks: Ranks, run_dir: Path) -> None:
        try:
            self.statuses = ranks.wait(LIMIT)
        except AssertionError:
            ranks.dump()
            raise AssertionError(f"the ranks hang:\n{ranks.outputs()}") from None
        self.outputs = [rank.output() for rank in ranks]
        self.results = [] if any(self.statuses) else [rank.result() for rank in ranks if rank.returned()]
        self.run_dir = run_dir

    def checkpoints(self) -> list[int]:
        """The batches of the checkpoints, each of which is whole; anything else there is marked as unfinished."""
        folder = self.run_dir / "checkpoints"
        store = open_store(folder)
        names = list_checkpoints(store) if folder.exists() else []
        others = {path.name for path in folder.glob("*")} - set(names)
        assert all((folder / other / UNFINISHED).exists() for other in others), others
        for name in names:
            with Checkpoint.open(store.location(name)) as checkpoint:
                checkpoint.verify()
        return sorted(int(name.removeprefix("batch-")) for name in names)

    def log(self) -> str:
        """What log.txt says."""
        return (self.run_dir / "log.txt").read_text(encoding="utf-8")

    def status(self) -> str:
        """How run.json says that the last start ended."""
        return str(json.loads((self.run_dir / "run.json").read_text())["starts"][-1]["status"])

    def stopped_at(self) -> list[int]:
        """Up to which batch each rank trained."""
        return [int(re.findall(r"^trained up to (\d+)$", output, re.MULTILINE)[-1]) for output in self.outputs]

    def check_failed(self, rank: int, cause: str, phase: str) -> None:
        """Hold that all ranks failed, and that the first cause is told once on the console and once in the log.

        Args:
            rank: whose error it is.
            cause: the last line of its traceback.
            phase: that it was in.
        """
        told = "\n".join(self.outputs) + "\n" + self.log()
        assert all(self.statuses), f"{self.statuses}\n{told}"
        counts = [len(re.findall(f"^{re.escape(cause)}$", output, re.MULTILINE)) for output in self.outputs]
        assert counts == [int(one == rank) for one in range(len(self.outputs))], told
        assert len(re.findall(f"^{re.escape(cause)}$", self.log(), re.MULTILINE)) == 1, told
        headline = f"Rank {rank} of {len(self.outputs)} failed in {phase}"
        assert self.log().count(headline) == 1, told
        assert self.outputs[0].count(headline) == int(rank != 0), told
        for other in set(range(1, len(self.outputs))) - {rank}:
            assert "Traceback" not in self.outputs[other], told
        assert self.status() == "failed", told


def outcome(
    run_dir: Path,
    *args: Any,
    function: Callable[..., Any] = faults.train,
    size: int = 2,
    env: Mapping[str, str] | None = None,
) -> Outcome:
    """Run a job to its end.

    Args:
        run_dir: the run's folder.
        args: of the function, behind the folder.
        function: what each rank calls. Default: ``faults.train``, whose arguments are faults.
        size: how many ranks. Default 2.
        env: limits other than the patient ones.

    Returns:
        How it ended.
    """
    with start_ranks(function, size, str(run_dir), *args, env={**PATIENT, **(env or {})}) as ranks:
        return Outcome(ranks, run_dir)
