"""What trainlab costs: tables with ratios to a raw loop, and to its peers where they are installed.

A contender trains for ever in a process of its own, and waits at its tick until it is its turn, so that contenders
take turns every round (A B C, C B A, …), each with all of its background threads, and noise of the machine hits all of
them alike. A round's time is divided by the raw loop's of the same round; the tables give the median of these ratios.
"raw loop again" is a second process of the same code: how far it is from 1 is what such a measurement can tell apart.
"""

import argparse
import importlib
import json
import os
import pty
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tests.benchmarks.table import table

ROOT = Path(__file__).parents[2]
STEPS = 1000
EPOCH = 938  # 60,000 records in batches of 64
WARM_UP = 1000
RAW = "raw loop"
Sample = dict[str, float]


# -- one contender's process -------------------------------------------------------------------


class Turns:
    """The tick of a contender: counts steps, and at a round's end tells the time and waits for the next turn."""

    def __init__(self, connection: socket.socket, steps: int) -> None:
        self._connection = connection
        self._steps = steps
        self._left = WARM_UP + 1
        self._began: tuple[float, float] | None = None

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._hand_over()

    def _hand_over(self) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        answer: Sample = {}
        if self._began is not None:
            answer = {"wall": (wall - self._began[0]) / self._steps, "cpu": (cpu - self._began[1]) / self._steps}
        self._connection.sendall(json.dumps(answer).encode() + b"\n")
        if not self._connection.recv(1):
            os._exit(0)  # all rounds are done; nothing that this process still holds is of use
        self._left = self._steps
        self._began = time.perf_counter(), time.process_time()


class Count:
    """The tick that counts the Python calls between two steps, and ends the process."""

    def __init__(self, connection: socket.socket, package: str, step: int = 350) -> None:
        from tests.benchmarks.counting import CallCounter, frames_above

        module = importlib.import_module(package)
        assert module.__file__ is not None
        self._folder = Path(module.__file__).parent
        self._connection = connection
        self._calls = CallCounter(self._folder)
        self._instructions = CallCounter(self._folder)
        self._frames = frames_above
        self._left = step

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._calls.start()
        elif self._left == -1:
            self._calls.stop()
            self._instructions.start(instructions=True)
        elif self._left == -2:
            self._instructions.stop()
            self._tell()

    def _tell(self) -> None:
        frames = self._frames(self._folder)
        ours = [call for call in self._calls.calls if call[1] != "__call__" or call[0] != "bench.py"]
        answer = {
            "frames": len(frames),
            "files": len({name for name, _ in frames}),
            "calls": len(ours),
            "instructions": self._instructions.instructions,
            "names": [f"{name}:{function}" for name, function in ours],
        }
        self._connection.sendall(json.dumps(answer).encode() + b"\n")
        os._exit(0)


def run_contender(name: str, loader: str, steps: int, descriptor: int) -> None:
    """Train as one contender, in this process; `steps` 0 means that calls are counted."""
    import logging

    import torch

    from tests.benchmarks.contenders import CONTENDERS, LOADERS

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    train, package = CONTENDERS[name]
    connection = socket.socket(fileno=descriptor)
    tick = Turns(connection, steps) if steps else Count(connection, package)
    train(LOADERS[loader](), tick)


# -- taking turns ------------------------------------------------------------------------------


class Screen:
    """A terminal that nobody looks at, so that bars are drawn; keeps the last that was written."""

    def __init__(self) -> None:
        self.said = b""
        self._master, self.end = pty.openpty()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Close this process's end: the reader stops when the last writer has gone."""
        os.close(self.end)
        self._reader.join(timeout=5)

    def _read(self) -> None:
        try:
            while part := os.read(self._master, 65536):
                self.said = (self.said + part)[-4000:]
        except OSError:
            pass  # the other end was closed
        os.close(self._master)


class Contender:
    """A process that trains when it is told to.

    Args:
        name: of the contender.
        loader: name of what it reads.
        steps: of a round; 0 to count calls.
        folder: where it runs.
        stack: what ends it.
    """

    def __init__(self, name: str, loader: str, steps: int, folder: Path, stack: ExitStack) -> None:
        here, there = socket.socketpair()
        self._screen = Screen()
        self._answers = stack.enter_context(here).makefile("r")
        self._connection = here
        command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks"]
        command += ["--contender", name, "--loader", loader, "--steps", str(steps), "--descriptor", str(there.fileno())]
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env=child_environment(),
            stdout=self._screen.end,
            stderr=self._screen.end,
            pass_fds=[there.fileno()],
        )
        there.close()
        stack.callback(self._screen.close)
        stack.callback(self.process.wait)
        stack.callback(self.process.kill)

    def answer(self) -> dict[str, Any]:
        """Wait for what it says next."""
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"{self.process.args} ended:\n{self._screen.said.decode(errors='replace')}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def take_turn(self) -> Sample:
        """Let it train one round."""
        self._connection.sendall(b"+")
        return self.answer()


def child_environment() -> dict[str, str]:
    """The environment of a measured process: it finds the tests, has a terminal, and names no run's folder."""
    given = {name: value for name, value in os.environ.items() if name != "TRAINLAB_RUN_DIR"}
    return given | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "120"}


def available(names: Sequence[str]) -> list[str]:
    """Leave out contenders whose package is not installed."""
    from tests.benchmarks.contenders import CONTENDERS

    return [name for name in names if find_spec(CONTENDERS[name][1]) is not None]


def take_turns(contenders: dict[str, tuple[str, str]], steps: int, rounds: int) -> dict[str, list[Sample]]:
    """Let contenders train in turns.

    Args:
        contenders: (contender, loader) by the name to show.
        steps: of a round.
        rounds: how many.

    Returns:
        For each name, seconds of wall and CPU time per step, one entry a round.
    """
    samples: dict[str, list[Sample]] = {shown: [] for shown in contenders}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = {}
        for shown, (name, loader) in contenders.items():
            running[shown] = Contender(name, loader, steps, folder, stack)
            running[shown].answer()  # warm, and waiting
        for number in range(rounds):
            for shown in list(running)[:: -1 if number % 2 else 1]:
                samples[shown].append(running[shown].take_turn())
    return samples


def timing_table(title: str, samples: dict[str, list[Sample]], unit: float, unit_name: str, base: str) -> None:
    """Print medians, and the median ratio to the base of the same round."""
    rows = []
    for shown, rounds in samples.items():
        ratios = [a["wall"] / b["wall"] for a, b in zip(rounds, samples[base], strict=True)]
        cpu_ratios = [a["cpu"] / b["cpu"] for a, b in zip(rounds, samples[base], strict=True)]
        rows.append(
            [
                shown,
                f"{statistics.median(s['wall'] for s in rounds) * unit:.1f}",
                f"{statistics.median(s['cpu'] for s in rounds) * unit:.1f}",
                f"{statistics.median(ratios):.3f}",
                f"{statistics.median(cpu_ratios):.3f}",
            ]
        )
    table(title, ["", f"wall {unit_name}", f"CPU {unit_name}", "wall ratio", "CPU ratio"], rows)


# -- what is measured --------------------------------------------------------------------------

PEERS = ("Lightning, defaults on", "Lightning, off", "Fabric", "Ignite", "Accelerate", "TorchTNT")


def bench_step(rounds: int) -> None:
    """The overhead of a step: everybody trains on the same prebuilt batches, so that loading costs nothing."""
    names = available([RAW, "raw loop again", "trainlab, defaults on", "trainlab, off", *PEERS])
    samples = take_turns({name: (name, "prebuilt batches") for name in names}, STEPS, rounds)
    timing_table(f"A step, on prebuilt batches ({rounds} rounds of {STEPS})", samples, 1e6, "µs", RAW)


def bench_overhead(rounds: int) -> None:
    """The overhead of a step, in turns with a raw loop in one process: same model, optimizer and batches."""
    rows = []
    for name, quiet in (("trainlab, defaults on", False), ("trainlab, off", True)):
        found = in_fresh_process("alternate", 10 * rounds, quiet)
        rows.append(
            [
                name,
                f"{found['raw'] * 1e6:.1f}",
                f"{found['ours'] * 1e6:.1f}",
                f"{found['ratio']:.3f}",
                f"{found['background']:.2%}",
            ]
        )
    table(
        f"A step, in turns with the raw loop in one process ({10 * rounds} chunks of 200)",
        ["", "raw loop µs", "trainlab µs", "ratio", "background threads' CPU"],
        rows,
    )


def bench_epoch(rounds: int) -> None:
    """An epoch over 60,000 shuffled records of 784 floats, from one epoch's first batch to the next one's."""
    names = {
        "raw loop, torch's loader": (RAW, "torch's loader"),
        "raw loop, trainlab's loader": (RAW, "trainlab's loader"),
        "trainlab, defaults on": ("trainlab, defaults on", "trainlab's loader"),
    }
    for peer in available(["Lightning, defaults on", "Ignite"]):
        names[f"{peer}, torch's loader"] = (peer, "torch's loader")
    samples = take_turns(names, EPOCH, rounds)
    title = f"An epoch over 60,000 records ({rounds} rounds)"
    timing_table(title, samples, EPOCH * 1e3, "ms", "raw loop, torch's loader")


def bench_loading(rounds: int) -> None:
    """The same epoch, loaded and not trained."""
    samples = take_turns({name: ("loading", name) for name in ("torch's loader", "trainlab's loader")}, EPOCH, rounds)
    timing_table(f"Loading 60,000 records ({rounds} rounds)", samples, EPOCH * 1e3, "ms", "torch's loader")


def bench_calls() -> None:
    """Python calls and instructions of one steady step in each package's own files, and its frames above the user's."""
    rows = []
    for name in available(["trainlab, defaults on", "trainlab, off", *PEERS]):
        loader = "trainlab's loader" if name.startswith("trainlab") else "torch's loader"
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            counted = Contender(name, loader, 0, folder, stack).answer()
        rows.append([name, *(str(counted[key]) for key in ("frames", "files", "calls", "instructions"))])
        if name == "trainlab, defaults on":
            calls = counted["names"]
    table(
        "One steady step, in the package's own files",
        ["", "frames above the user's step", "in files", "Python calls", "bytecode instructions"],
        rows,
    )
    print("trainlab's calls: " + ", ".join(calls))


def bench_imports(rounds: int) -> None:
    """Seconds to import, each in a fresh interpreter, without the interpreter's own start."""
    programs = {"torch": "import torch", "trainlab and trainlab.Trainer": "import trainlab; trainlab.Trainer"}
    programs["trainlab alone"] = "import trainlab"
    for peer in ("lightning", "ignite.engine", "accelerate", "torchtnt.framework"):
        if find_spec(peer.partition(".")[0]) is not None:
            programs[peer] = f"import {peer}"
    times: dict[str, list[float]] = {name: [] for name in programs}
    # Installed packages come as bytecode; this checkout has to be allowed to make its own.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    for number in range(rounds + 1):
        for name, program in programs.items():
            timed = f"import time; t = time.perf_counter(); {program}; print(time.perf_counter() - t)"
            done = subprocess.run(
                [sys.executable, "-W", "ignore", "-c", timed],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                check=True,
            )
            if number:  # the first round fills the file system's cache
                times[name].append(float(done.stdout.split()[-1]))
    rows = []
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, times["torch"], strict=True))
        rows.append([name, f"{statistics.median(seconds) * 1e3:.1f}", f"{ratio:.3f}"])
    table(f"Import ({rounds} rounds)", ["", "ms", "ratio"], rows)


def bench_checkpoints(rounds: int) -> None:
    """How long training is held by a checkpoint, against torch.save of the same state, in turns."""
    rows = []
    for width in (128, 4096):
        held, saved, synced = in_fresh_process("checkpoint_stall", width, rounds)
        parameters = 785 * width + 11 * width - width + 10
        size = parameters * 12 / 1e6
        rows += [
            [f"{size:.1f} MB: torch.save", f"{saved * 1e3:.1f}", "1.000"],
            [f"{size:.1f} MB: torch.save and fsync", f"{synced * 1e3:.1f}", f"{synced / saved:.3f}"],
            [f"{size:.1f} MB: trainlab holds training", f"{held * 1e3:.1f}", f"{held / saved:.3f}"],
        ]
    table(f"A checkpoint of weights and Adam's state ({rounds} rounds)", ["", "ms", "ratio"], rows)


def bench_large(rounds: int) -> None:
    """A state of 1.2 GB: held, slowed, memory and loads, by trainlab and by others, in one process."""
    from tests.benchmarks.large import print_tables  # it imports torch

    print_tables(in_fresh_process("large_checkpoint", 1200, rounds, module="large"), rounds)


def bench_resume(rounds: int) -> None:
    """From the call of fit to the first batch, resuming at step 5 and at step 500,000 of one long epoch."""
    with tempfile.TemporaryDirectory() as folder:
        at = in_fresh_process("make_long_run", folder)
        times: dict[str, list[float]] = {name: [] for name in at}
        for _ in range(rounds):
            for name, path in at.items():
                times[name].append(in_fresh_process("resume", path, folder))
    base = times["step 5"]
    rows = []
    for name, seconds in times.items():
        ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
        rows.append([name, f"{statistics.median(seconds) * 1e3:.1f}", f"{ratio:.3f}"])
    table(f"Resume: from fit to the first batch ({rounds} rounds)", ["", "ms", "ratio"], rows)


def in_fresh_process(function: str, *arguments: Any, module: str = "runs") -> Any:
    """Call a function of a module of tests.benchmarks in an interpreter of its own, in a temporary folder."""
    program = (
        f"import json, logging, sys, torch; from tests.benchmarks import {module} as runs; torch.set_num_threads(1); "
        "logging.disable(logging.WARNING); "
        f"print(json.dumps(runs.{function}(*json.loads(sys.argv[1]))))"
    )
    screen = Screen()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-c", program, json.dumps(arguments)]
        done = subprocess.run(
            command,
            check=False,
            cwd=folder,
            env=child_environment(),
            stdout=subprocess.PIPE,
            stderr=screen.end,
            text=True,
        )
    screen.close()
    if done.returncode:
        raise RuntimeError(f"{function}{arguments} failed:\n{screen.said.decode(errors='replace')}")
    return json.loads(done.stdout.splitlines()[-1])


ITEMS: dict[str, Callable[[int], None]] = {
    "calls": lambda rounds: bench_calls(),
    "overhead": bench_overhead,
    "step": lambda rounds: bench_step(3 * rounds),
    "epoch": bench_epoch,
    "loading": bench_loading,
    "imports": bench_imports,
    "checkpoint": bench_checkpoints,
    "large": bench_large,
    "resume": lambda rounds: bench_resume(max(1, rounds // 2)),
    "runs": lambda rounds: importlib.import_module("tests.benchmarks.many_runs").bench_many_runs(rounds),
    "ranks": lambda rounds: importlib.import_module("tests.benchmarks.ranks").bench_ranks(rounds),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.partition("\n")[0])
    parser.add_argument("items", nargs="*", metavar="item", help=f"what to measure: {', '.join(ITEMS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=10, help="more rounds take longer and tell more (default: 10)")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--loader", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--descriptor", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        run_contender(args.contender, args.loader, args.steps, args.descriptor)
        return
    if unknown := [item for item in args.items if item not in ITEMS]:
        parser.error(f"no such item: {', '.join(unknown)}; there are: {', '.join(ITEMS)}")
    missing = [name for name in PEERS if name not in available(PEERS)]
    print("Model: MLP 784-128-10, batches of 64, Adam, one thread. Medians.")
    print(f"Not installed, and left out: {', '.join(missing) or 'none'}.")
    for item in args.items or ITEMS:
        ITEMS[item](args.rounds)


if __name__ == "__main__":
    main()
