"""Kill searches and their trials: ``python -m tests.soak.searches --trials 30 --kills 40 --seed 7``.

Several searchers share a study. In turn one of them, or the process of a trial, is killed at a random instant; killed
searchers are started again. In the end each trial has to have come to its end exactly once, in one folder. The exit
status is 1 if one did not.
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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["SearchSoak", "main"]

_ROOT = Path(__file__).parents[2]
_SCRIPT = Path(__file__).with_name("searched_training.py")
_DEADLINE = 600.0
KINDS = ("searcher", "trial")


@dataclass
class SearchSoak:
    """A search, the kills, and what came of them.

    Attributes:
        folder: where all of it happens.
        trials: how many there are to be.
        kills: how many processes to kill.
        seed: of all choices.
        storage: where the trials are kept; "" for the default.
        searchers: how many share the search.
        killed: how many were killed, by kind.
    """

    folder: Path
    trials: int
    kills: int
    seed: int
    storage: str = ""
    searchers: int = 2
    killed: Counter[str] = field(default_factory=Counter)

    def run(self) -> list[str]:
        """Search and kill to the end; gives what went wrong, a line each."""
        choose = random.Random(self.seed)
        self._begun = time.monotonic()
        self._running = [self._start(number) for number in range(self.searchers)]
        while any(searcher.poll() is None for searcher in self._running):
            if time.monotonic() > self._begun + _DEADLINE:
                return [f"no end after {_DEADLINE:g} s in {self.folder}:\n{self._output()}"]
            if self.killed.total() < self.kills:
                time.sleep(choose.uniform(0.05, 1.5))  # the instant, and no wait
                self._kill(choose, KINDS[self.killed.total() % len(KINDS)])
            else:
                time.sleep(0.1)
        self.seconds = time.monotonic() - self._begun
        statuses = [searcher.returncode for searcher in self._running]
        wrong = [f"a searcher ended with status {status}:\n{self._output()}" for status in statuses if status]
        return wrong + self._wrong()

    def text(self) -> str:
        """All in a line."""
        kills = ", ".join(f"{self.killed[kind]} {kind}s" for kind in KINDS)
        starts = sum(len(record["starts"]) for record in self._records().values())
        return f"{self.trials} trials, {starts} starts, killed: {kills}; {self.seconds:.0f} s"

    def _wrong(self) -> list[str]:
        records = self._records()
        wrong = [] if len(records) == self.trials else [f"{len(records)} folders instead of {self.trials}"]
        for name, record in records.items():
            ends = [start["status"] for start in record["starts"]].count("finished")
            if ends != 1 or record["status"] != "finished":
                wrong.append(f"{name} has ended {ends} times, and is {record['status']}: {record.get('error')}")
        told = self._told()
        if told["states"] != ["finished"] * self.trials or sorted(told["folders"]) != sorted(records):
            wrong.append(f"the search tells of {told}")
        if told["values"] != [records[name]["metrics"]["loss"] for name in told["folders"]]:
            wrong.append(f"the search tells of other values than the runs: {told}")
        return wrong

    def _kill(self, choose: random.Random, kind: str) -> None:
        number = choose.randrange(self.searchers)
        searcher = self._running[number]
        if searcher.poll() is not None:
            return
        children = _children(searcher.pid)
        pid = searcher.pid if kind == "searcher" else choose.choice(children or [0])
        if not pid:
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.killed[kind] += 1
        if kind == "searcher":
            searcher.wait()
            self._running[number] = self._start(number)

    def _start(self, number: int) -> "subprocess.Popen[bytes]":
        with (self.folder / f"output-{number}.txt").open("ab") as output:
            return subprocess.Popen(
                self._command("--max-crashes", "1000"),
                cwd=self.folder,
                env=self._environment(),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def _command(self, *options: str) -> list[str]:
        search = [sys.executable, "-m", "trainlab", "search", str(_SCRIPT), "--metric", "loss"]
        return [*search, "--trials", str(self.trials), "--no-progress", *options]

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TRAINLAB_")}
        return {**kept, "PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "TRAINLAB_STORAGE": self.storage}

    def _records(self) -> dict[str, dict[str, Any]]:
        runs = sorted(self.folder.glob("runs/train/search_loss/trial-*/run.json"))
        return {run.parent.name: json.loads(run.read_text(encoding="utf-8")) for run in runs}

    def _told(self) -> dict[str, list[Any]]:
        """What the same call, once more, says of the search that is done."""
        program = (
            "import json, sys; sys.path.insert(0, sys.argv[1]); import trainlab; from searched_training import train; "
            "found = trainlab.search(train, metric='loss', trials=int(sys.argv[2]), storage=sys.argv[3] or None, "
            "progress=False).trials; print(json.dumps({'states': [one.state for one in found], "
            "'folders': [one.folder.name for one in found], 'values': [one.value for one in found]}))"
        )
        command = [sys.executable, "-c", program, str(_SCRIPT.parent), str(self.trials), self.storage]
        told = subprocess.run(command, cwd=self.folder, env=self._environment(), capture_output=True, check=False)
        if told.returncode:
            return {"states": [told.stderr.decode()], "folders": [], "values": []}
        return dict(json.loads(told.stdout))

    def _output(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("output-*.txt")))


def _children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in path.read_text().split()]
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def main(arguments: list[str]) -> int:
    """Search and kill as the arguments say.

    Args:
        arguments: those of the command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.soak.searches", description=__doc__)
    parser.add_argument("--trials", type=int, default=30, help="how many trials the search has (30)")
    parser.add_argument("--kills", type=int, default=40, help="how many processes are killed (40)")
    parser.add_argument("--searchers", type=int, default=2, help="how many processes share the search (2)")
    parser.add_argument("--storage", default="", help="where the trials are kept (a SQLite file)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (0)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = SearchSoak(Path(folder), options.trials, options.kills, options.seed, options.storage, options.searchers)
        wrong = soak.run()
        print(*wrong, sep="\n")
        print(soak.text())
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
