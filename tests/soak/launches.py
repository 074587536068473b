"""Kill ranks, agents and nodes of launched trainings: ``python -m tests.soak.launches --kills 100 --seed 7``.

In turn a rank, the agent of a machine's ranks, or one of two nodes is killed at a random instant; agents and nodes are
started again, ranks come back by themselves. Each run has to end with the weights and the series of one that nobody
killed. The exit status is 1 if one did not.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.distributed.ranks import free_port
from tests.launch.launchers import is_gone

__all__ = ["LaunchSoak", "main"]

_ROOT = Path(__file__).parents[2]
_SCRIPT = Path(__file__).with_name("launched_training.py")
_BATCHES, _SECONDS = 120, 0.03
_DEADLINE = 180.0
_KILLS_OF_A_RUN = 4
KINDS = ("rank", "agent", "node")


@dataclass
class LaunchSoak:
    """The kills, and what came of them.

    Attributes:
        folder: where the runs are made.
        kills: how many processes to kill.
        seed: of all choices.
        seconds: by kind, from each kill to a batch that was trained again.
        wrong: what went wrong, a line each.
        killed: how many were killed so far.
    """

    folder: Path
    kills: int
    seed: int
    seconds: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS})
    wrong: list[str] = field(default_factory=list)
    killed: int = 0

    def run(self) -> None:
        """Kill until there were enough."""
        expected = Run(self.folder / "whole", "rank").end()
        number = 0
        while self.killed < self.kills:
            kind = KINDS[number % len(KINDS)]
            choose = random.Random(f"{self.seed}/{number}")
            run = Run(self.folder / f"run-{number}", kind)
            killed = 0
            while killed < _KILLS_OF_A_RUN and self.killed < self.kills:
                at = run.kill(choose)
                if at is None:
                    break
                killed, self.killed = killed + 1, self.killed + 1
                self.seconds[kind].append(run.training_since(at) - at)
            found = run.end()
            if found != expected:
                self.wrong.append(f"run {number} ({kind}, {killed} kills) ended otherwise: {run.folder}")
            number += 1
            print(self.text(), flush=True)

    def text(self) -> str:
        """All in a line."""
        times = "; ".join(
            f"{kind}: {len(found)} kills, median {statistics.median(found):.1f} s, longest {max(found):.1f} s"
            for kind, found in self.seconds.items()
            if found
        )
        return f"{self.killed} kills, {len(self.wrong)} wrong ends. From kill to training again: {times}"


class Run:
    """One training, under one agent with two ranks or under two nodes with one each.

    Args:
        folder: where all of it happens.
        kind: what is killed: "rank", "agent" or "node".
    """

    def __init__(self, folder: Path, kind: str) -> None:
        self.folder, self._kind = folder, kind
        folder.mkdir()
        self._agents: list[subprocess.Popen[bytes]] = []
        self._start()

    def kill(self, choose: random.Random) -> float | None:
        """Kill something at a random instant of the training; gives when, None if the run had ended by then."""
        self._until(lambda: self._is_training() or self._has_ended())
        time.sleep(choose.uniform(0, 2.0))  # the instant, and no wait
        at = time.time()  # before it is asked, so that an end of the run comes later than this
        if self._has_ended():
            return None
        if self._kind == "rank":
            pid = choose.choice([mark["pid"] for mark in self._marks("training")[-2:]])
        else:
            pid = choose.choice(self._agents).pid
        with _gone_is_fine():
            os.kill(pid, signal.SIGKILL)
        if self._kind != "rank":
            killed = [agent.pid for agent in self._agents].index(pid)
            # The other node waits for one that comes back, but not for the one that hosts the rendezvous.
            for agent in self._agents if killed == 0 else self._agents[killed:]:
                agent.wait(_DEADLINE)
            self._start()
        return at

    def training_since(self, at: float) -> float:
        """When a batch was trained first after an instant; the end of the run counts as one."""
        self._until(lambda: any(mark["at"] > at for mark in self._marks()))
        return min(float(mark["at"]) for mark in self._marks() if mark["at"] > at)

    def end(self) -> tuple[Any, ...]:
        """Wait for the end, and give what must be the same for all runs: weights and series."""
        for agent in self._agents:
            status = agent.wait(_DEADLINE)
            if status != 0:
                raise AssertionError(f"exit status {status}:\n{self._output()}")
        (end,) = self._marks("end")
        lines = (Path(end["run"]) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        series = [(line["batch"], line["metrics"]) for line in map(json.loads, lines)]
        return end["weights"], series, len(list(Path(end["run"]).parent.iterdir()))

    def _start(self) -> None:
        """Start what does not run."""
        nodes = 2 if self._kind == "node" else 1
        if not self._agents:
            self._port = free_port()
        running = [agent.poll() is None for agent in self._agents] or [False] * nodes
        if nodes == 2 and not any(running):
            self._port = free_port()  # that of a killed agent may be held for a while
        for node, runs in enumerate(running):
            if runs:
                continue
            command = [sys.executable, "-m", "trainlab", "launch", "--device", "cpu", "--run-id", "soak"]
            command += ["--processes", str(2 // nodes), "--max-restarts", "100", "--nodes", str(nodes)]
            if nodes == 2:
                where = ["--master-addr", "127.0.0.1", "--master-port", str(self._port)]
                command += [*where, "--node-rank", str(node)]
            command += [str(_SCRIPT), str(self.folder), str(_BATCHES), str(_SECONDS)]
            with (self.folder / f"output-{node}.txt").open("ab") as output:
                agent = subprocess.Popen(
                    command,
                    cwd=self.folder,
                    env={**os.environ, "PYTHONPATH": str(_ROOT)},
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            self._agents[node : node + 1] = [agent]

    def _is_training(self) -> bool:
        """Tell whether both ranks have trained since the last start of theirs."""
        pids = {mark["pid"] for mark in self._marks("training")[-2:]}
        return len(pids) == 2 and not any(map(is_gone, pids))

    def _has_ended(self) -> bool:
        return bool(self._marks("end")) or all(agent.poll() is not None for agent in self._agents)

    def _marks(self, what: str | None = None) -> list[dict[str, Any]]:
        try:
            text = (self.folder / "marks.jsonl").read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        # The last line may be half written.
        marks = [json.loads(line) for line in text.split("\n")[:-1]]
        return [mark for mark in marks if what is None or mark["what"] == what]

    def _until(self, is_so: Any) -> None:
        end = time.monotonic() + _DEADLINE
        while not is_so():
            if time.monotonic() > end:
                raise AssertionError(f"nothing happened for {_DEADLINE:g} s in {self.folder}:\n{self._output()}")
            time.sleep(0.02)

    def _output(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("output-*.txt")))


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except ProcessLookupError:
        return


def main(arguments: list[str]) -> int:
    """Kill as often as the arguments say.

    Args:
        arguments: those of the command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(prog="python -m tests.soak.launches", description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="how many processes are killed (100)")
    parser.add_argument("--seed", type=int, default=0, help="of all choices (0)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        soak = LaunchSoak(Path(folder), options.kills, options.seed)
        soak.run()
        print(*soak.wrong, sep="\n")
    print(soak.text())
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
