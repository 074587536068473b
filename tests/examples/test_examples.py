"""The examples run as a newcomer runs them: as scripts, first from a shell, and again to go on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import start_ranks
from tests.examples.scripts import run_script_alone

ROOT = Path(__file__).parents[2]
# Each with the length that goes on from its short form.
LONGER = {
    "digits.py": ["--epochs", "3"],
    "supervised.py": ["--epochs", "3"],
    "gan.py": ["--epochs", "3"],
    "tiny_gpt.py": ["--batches", "10"],
    "determined_port.py": ["--epochs", "3"],
}

OTHERS = [name for name in LONGER if name != "digits.py"]

# What the short form prints at its end: counts by optimizer, what the model writes.
SAYS = {
    "digits.py": "Test accuracy: ",
    "supervised.py": "Test accuracy: ",
    "gan.py": "{'generator': 48, 'discriminator': 96}",
    "tiny_gpt.py": "--- after 8 batches\ndef ",
    "determined_port.py": "",  # says nothing of its own
}

# It has checkpoints, and no run.
OWN_LOOP = "own_loop.py"

# Those with a command line of experiments, and the files that run them.
ELSEWHERE = {
    "experiments.py": "test_experiment_examples.py",
    "search.py": "test_search_example.py",
    "sweep.py": "test_sweep_example.py",
}


def command(example: str, *arguments: str) -> list[str]:
    """What a shell would run."""
    return [sys.executable, "-W", "error::UserWarning:__main__", str(ROOT / "examples" / example), *arguments]


def environment() -> dict[str, str]:
    """This process's, without a run of its own."""
    given = {name: value for name, value in os.environ.items() if name != "TRAINLAB_RUN_DIR"}
    return given | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(example: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run an example in a folder; it must end well, without a warning of Python's."""
    done = subprocess.run(
        command(example, *arguments),
        check=False,
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def run_again(example: str, *arguments: str, folder: Path) -> str:
    """The same in a process that need not load torch first; all that was printed."""
    with start_ranks(run_script_alone, 1, str(ROOT / "examples" / example), str(folder), *arguments) as (process,):
        assert process.wait(240) == 0, process.output()
        assert "Traceback" not in process.output()
        return process.output()


def training_records(folder: Path) -> list[dict[str, Any]]:
    """The training reports of a run."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] == "training"]


def test_every_example_is_tested() -> None:
    """No script in examples/ goes without its test."""
    assert {path.name for path in (ROOT / "examples").glob("*.py")} == {*LONGER, OWN_LOOP, *ELSEWHERE}
    for example, tests in ELSEWHERE.items():
        assert f'"{example}"' in (Path(__file__).parent / tests).read_text(encoding="utf-8")


@pytest.mark.parametrize("example", [*LONGER, OWN_LOOP])
def test_example_tells_its_options(example: str, tmp_path: Path) -> None:
    """`--help` names the options that all examples share, and starts no run."""
    said = run_again(example, "--help", folder=tmp_path)
    length = LONGER[example][0] if example in LONGER else "--epochs"
    assert all(option in said for option in ("--run-dir", "--quick", length))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("example", ["digits.py", *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_example_runs_and_goes_on(example: str, tmp_path: Path) -> None:
    """An example makes a run's folder; told that folder, it goes on at the next batch instead of beginning anew."""
    first = run(example, "--quick", folder=tmp_path)
    (folder,) = (tmp_path / "runs" / example.removesuffix(".py")).iterdir()
    assert str(folder) in first.stdout + first.stderr, "it does not tell where the run is"
    assert SAYS[example] in first.stdout
    before = training_records(folder)
    assert json.loads((folder / "run.json").read_text())["status"] == "finished"

    run_again(example, *LONGER[example], "--run-dir", str(folder), folder=tmp_path)
    after = training_records(folder)
    assert after[: len(before)] == before, "what was recorded is recorded again"
    assert len(after) > len(before)
    batches = [record["batch"] for record in after]
    assert batches == sorted(set(batches))
    records = [record["records"] for record in after]
    assert records == sorted(set(records))
    assert len(list((tmp_path / "runs").glob("*/*"))) == 1, "a second run was begun"


@pytest.mark.slow
def test_digits_learns(tmp_path: Path) -> None:
    """The digits example, as README runs it, is right in more than 95% of the test images."""
    said = run("digits.py", folder=tmp_path).stdout
    accuracy = float(said.split("Test accuracy: ")[1].split("%")[0])
    assert accuracy > 95, said


@pytest.mark.slow
def test_own_loop_is_killed_and_goes_on(tmp_path: Path) -> None:
    """A loop of one's own that was killed goes on from its newest checkpoint, and ends with the same bytes."""
    run(OWN_LOOP, "--quick", "--run-dir", "whole", folder=tmp_path)
    arguments = (str(ROOT / "examples" / OWN_LOOP), str(tmp_path), "--quick", "--run-dir", "killed")
    with start_ranks(run_script_alone, 1, *arguments) as (process,):
        process.wait_for("saved 20\n")
        process.kill()
    # What is left by one that is killed while it writes; it may have got there by itself.
    (tmp_path / "killed" / "batch-0000060").mkdir(exist_ok=True)
    said = run_again(OWN_LOOP, "--quick", "--run-dir", "killed", folder=tmp_path)
    assert "\ngoing on from " in f"\n{said}"
    for file in ("model.safetensors", "state.safetensors"):
        whole, killed = (tmp_path / name / "batch-0000060" / file for name in ("whole", "killed"))
        assert whole.read_bytes() == killed.read_bytes()
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == ["batch-0000040", "batch-0000060"]
