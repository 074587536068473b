"""Kill sweeps and their runs: ``python -m tests.soak.sweeps --runs 20 --kills 40 --seed 7``.

In turn the sweep's process or that of a run is killed at a random instant, and the same sweep is started again as soon
as it has ended, until it ends well. Each run has to come to its end exactly once, in the folder that it was begun in,
and no process may be left. The exit status is 1 if that is not so.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

__all__ = ["SweepSoak", "main"]

_ROOT = Path(__file__).parents[2]
_DEADLINE = 300.0
# A kill comes at most so much later than the one before or, for so many of them, than a step that a run has made.
_LONGEST, _OF_RUNS = 1.0, 0.8


@dataclass
class SweepSoak:
    """One sweep, its kills, and what came of them.

    Attributes:
        folder: where the sweep is made.
        runs: how many runs it has.
        kills: how many processes to kill at most.
        seed: of all choices.
        killed: how many were killed, by kind.
        calls: how often the sweep was started.
        wrong: what went wrong, a line each.
    """

    folder: Path
    runs: int
    kills: int
    seed: int
    killed: Counter[str] = field(default_factory=Counter)
    calls: int = 0
    wrong: list[str] = field(default_factory=list)

    def run(self) -> None:
        """Kill, and start again, until the sweep ends well; then look at what there is."""
        choose = random.Random(self.seed)
        end = time.monotonic() + _DEADLINE
        while not self._call(choose):
            if time.monotonic() > end:
                self.wrong.append(f"the sweep did not end within {_DEADLINE:g} s")
                return
        self._check()

    def text(self) -> str:
        """All in a line."""
        kinds = ", ".join(f"{count} of a {kind}" for kind, count in sorted(self.killed.items()))
        return f"{self.runs} runs, {self.calls} calls, kills: {kinds or 'none'}; {len(self.wrong)} wrong"

    @property
    def _sweep(self) -> Path:
        return self.folder / "count" / "sweep_soak"

    def _call(self, choose: random.Random) -> bool:
        """Start the sweep, and kill it or its runs; tell whether it has ended well."""
        self.calls += 1
        with (self.folder / "output.txt").open("ab") as output:
            sweep = psutil.Popen(
                [sys.executable, "-m", "tests.soak.swept", str(self.folder), str(self.runs)],
                env={**os.environ, "PYTHONPATH": str(_ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while self.killed.total() < self.kills:
            if choose.random() < _OF_RUNS:
                self._until_runs(sweep)
            with suppress(psutil.TimeoutExpired):
                sweep.wait(choose.uniform(0, _LONGEST))  # the instant
                break
            children = sweep.children(recursive=True)
            kind = choose.choice(["sweep", "run"]) if children else "sweep"
            victim = sweep if kind == "sweep" else choose.choice(children)
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                victim.send_signal(signal.SIGKILL)
                self.killed[kind] += 1
            if kind == "sweep":
                sweep.wait(_DEADLINE)
                self._check_gone(children)
                return False
        return bool(sweep.wait(_DEADLINE) == 0)

    def _until_runs(self, sweep: psutil.Popen) -> None:
        """Wait until a run has come to its main function, or the sweep has ended."""
        before = {path: path.stat().st_mtime_ns for path in self._sweep.glob("*/steps")}
        while sweep.poll() is None:
            now = {path: path.stat().st_mtime_ns for path in self._sweep.glob("*/steps")}
            if now != before:
                return
            time.sleep(0.01)

    def _check_gone(self, children: list[psutil.Process]) -> None:
        _, left = psutil.wait_procs(children, 60.0)
        self.wrong.extend(f"{process} lives on after its sweep was killed" for process in left)

    def _check(self) -> None:
        noted = json.loads((self._sweep / "sweep.json").read_text())["runs"]
        folders = sorted(path.parent for path in self._sweep.glob("*/run.json"))
        if len(folders) != self.runs or {one["folder"] for one in noted} != {folder.name for folder in folders}:
            self.wrong.append(f"{len(folders)} run folders, of which {len(noted)} are noted")
        numbers = []
        for folder in folders:
            record: dict[str, Any] = json.loads((folder / "run.json").read_text())
            statuses = Counter(start["status"] for start in record["starts"])
            numbers.append(record["params"]["number"])
            if statuses["finished"] != 1 or set(statuses) - {"finished", "crashed"}:
                self.wrong.append(f"{folder.name} was started so: {dict(statuses)}")
            if record["result"] != record["params"]["number"]:
                self.wrong.append(f"{folder.name} has the result {record['result']}")
        if sorted(numbers) != list(range(self.runs)):
            self.wrong.append(f"runs were made of {sorted(numbers)}")


def main(arguments: list[str]) -> int:
    """Make a sweep as the arguments say.

    Args:
        arguments: those of the command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.soak.sweeps", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="how many runs the sweep has (20)")
    parser.add_argument("--kills", type=int, default=40, help="how many processes are killed at most (40)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (0)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = SweepSoak(Path(folder), options.runs, options.kills, options.seed)
        soak.run()
        if soak.wrong:
            print(*soak.wrong, (Path(folder) / "output.txt").read_text(errors="replace")[-4000:], sep="\n")
    print(soak.text())
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
