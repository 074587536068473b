"""A folder of many runs, and how long the command line takes to list them."""

import json
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.table import table

ROOT = Path(__file__).parents[2]
RUNS = 10_000
WHERE = "params.lr < 1e-3 and metrics.accuracy > .9"
COMMANDS = {
    f'runs list --where "{WHERE}"': ["--where", WHERE],
    "runs list --limit 20": ["--limit", "20"],
    "runs list --status running": ["--status", "running"],
    "runs list": [],
}


def make_runs(above: Path, count: int) -> None:
    """Make runs' folders with what a real one holds, of 20 experiments; each hundredth crashed.

    Args:
        above: where.
        count: how many.
    """
    draw = random.Random(0)
    for number in range(count):
        day, second = divmod(number, 500)
        date = f"2026-{1 + day % 12:02}-{1 + day % 28:02}"
        clock = f"{second // 60 % 24:02}:{second % 60:02}:07"
        folder = above / "group" / f"train-{number % 20}" / f"{date}_{clock.replace(':', '-')}_{number:06x}"
        (folder / "checkpoints" / "batch-0000500").mkdir(parents=True)
        (folder / "tensorboard").mkdir()
        record = _record(draw, number, f"{date}T{clock}+00:00")
        (folder / "run.json").write_text(json.dumps(record, indent=2) + "\n")
        (folder / "params.yaml").write_text("".join(f"{name}: 0.5\n" for name in record["params"]))
        for name in ("lock", "log.txt", "packages.txt", "metrics.jsonl", "changes.patch"):
            (folder / name).touch()
        if number % 10 == 0:
            (folder / "tags.json").write_text('["best"]')


def _record(draw: random.Random, number: int, started: str) -> dict[str, object]:
    params = {"lr": 10 ** draw.uniform(-5, -1), "batch_size": draw.choice([32, 64, 128]), "epochs": 10}
    params |= {f"option_{index}": draw.random() for index in range(12)}
    params |= {"optimizer": {"name": draw.choice(["adam", "sgd"]), "momentum": 0.9, "weight_decay": draw.random()}}
    start = {
        "started": started,
        "command": ["train.py", *(f"--option-{index}={draw.random()}" for index in range(5))],
        "pid": 1000 + number,
        "host": "a-host",
        "git": {"commit": f"{draw.getrandbits(160):040x}", "dirty": False},
        "status": "running" if number % 100 == 0 else "finished",
        "ended": started,
    }
    return {
        "name": f"group/train-{number % 20}",
        "starts": [start],
        **start,
        "executable": "/home/ada/venv/bin/python",
        "script": "train.py",
        "argv": start["command"],
        "cwd": "/home/ada/project",
        "experiment": {"path": "group/train", "module": "train", "file": "/home/ada/project/train.py", "qualname": "t"},
        "params": params,
        "origins": dict.fromkeys(params, "default"),
        "versions": {"python": "3.11.7", "platform": "Linux-6.1.0-x86_64-with-glibc2.36", "torch": "2.13.0"},
        "devices": [{"index": index, "name": "NVIDIA H200", "memory": 150_000_000_000} for index in range(8)],
        "random_seed": draw.getrandbits(32),
        "error": None,
        "metrics": {"loss": draw.random(), "accuracy": draw.random(), "f1": draw.random()},
        "batches_trained": 1000,
        "stop_reason": "max_length",
    }


def bench_many_runs(rounds: int) -> None:
    """Seconds of `trainlab runs list` over 10,000 runs, as a person waits for them: the first time, and after that."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder) / "runs"
        make_runs(runs, RUNS)
        rows = []
        for name, options in COMMANDS.items():
            walls, cpus = zip(*(_seconds(runs, options) for _ in range(max(2, rounds))), strict=True)
            rows.append(
                [name, *(f"{seconds:.2f}" for seconds in (walls[0], _median(walls), max(walls), _median(cpus)))]
            )
        size = sum(file.stat().st_size for file in runs.rglob("run.json")) / RUNS
        shutil.rmtree(runs)
    table(
        f"The command line over {RUNS} runs with {size / 1000:.1f} kB of run.json each ({rounds} rounds)",
        ["", "first s", "median s", "slowest s", "CPU s"],
        rows,
    )


def _seconds(runs: Path, options: list[str]) -> tuple[float, float]:
    """Of wall and of CPU time."""
    command = [sys.executable, "-m", "trainlab", "runs", "list", str(runs), *options]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begun = time.perf_counter()
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)
    wall = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _median(seconds: Sequence[float]) -> float:
    return statistics.median(seconds[1:])
