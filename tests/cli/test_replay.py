import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import start_ranks
from tests.examples.scripts import run_script_alone
from tests.runs.made_runs import ROOT, change_record, make_run
from trainlab.checkpoint import latest_checkpoint
from trainlab.cli import main
from trainlab.runs.program_code import checksums
from trainlab.runs.surroundings import describe_devices, list_packages, record_changes

TRAINING = """
import os

import torch
from torch.utils.data import TensorDataset

import trainlab


@trainlab.experiment
@trainlab.parameter("lr", float, default=0.1)
@trainlab.parameter("epochs", int, default=2, envvar="EPOCHS")
@trainlab.parameter("die_at", int)
def train(params):
    torch.manual_seed(trainlab.new_seed())
    x = torch.randn(64, 4)
    data = TensorDataset(x, x.sum(1, keepdim=True))

    class Dies(trainlab.Callback):
        def on_checkpoint_write_end(self, checkpoint_dir):
            if context.current_train_batch() == params["die_at"] and "TRAINLAB_SURVIVES" not in os.environ:
                os._exit(9)

    with trainlab.init() as context:
        trial = trainlab.SupervisedTrial(
            context,
            model=torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Dropout(), torch.nn.Linear(3, 1)),
            training_set=data,
            loss=torch.nn.functional.mse_loss,
            optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=params["lr"]),
            batch_size=8,
        )
        trial.build_callbacks = lambda: {"dies": Dies()}
        trainer = trainlab.Trainer(trial, context)
        trainer.fit(max_length=trainlab.Epoch(params["epochs"]), checkpoint_period=trainlab.Batch(4))


if __name__ == "__main__":
    train.cli()
"""


def command_line(*arguments: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Run trainlab as a person does."""
    return subprocess.run(
        [sys.executable, "-m", "trainlab", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def weights(run: Path) -> bytes:
    """The weights of a run's newest checkpoint."""
    newest = latest_checkpoint(run / "checkpoints")
    assert isinstance(newest, Path)
    return (newest / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_killed_run_goes_on_and_its_replay_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that was killed is resumed to its end, and a replay of it ends with bit-identical weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "train.py").write_text(TRAINING)
    arguments = ("--lr", "0.05", "--epochs", "3", "--die-at", "12")
    with start_ranks(run_script_alone, 1, str(tmp_path / "train.py"), str(tmp_path), *arguments) as (process,):
        assert process.wait(120) == 9, process.output()
    (killed,) = (tmp_path / "runs" / "train").iterdir()
    done = command_line("resume", "train/", TRAINLAB_SURVIVES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((killed / "run.json").read_text())
    assert (record["status"], record["batches_trained"]) == ("finished", 24)
    assert [start["status"] for start in record["starts"]] == ["crashed", "finished"]
    done = command_line("replay", killed.name, EPOCHS="7", TRAINLAB_SURVIVES="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All that is recorded is as it was then." in done.stderr
    (replayed,) = (run for run in (tmp_path / "runs" / "train").iterdir() if run != killed)
    assert json.loads((replayed / "run.json").read_text())["params"] == record["params"]
    assert weights(replayed) == weights(killed)


def git(*arguments: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *who, *arguments], check=True, capture_output=True)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run of a program in a git repository, with a change that is not committed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / ".gitignore").write_text("runs\n")
    program = tmp_path / "program.py"
    program.write_text("1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "a")
    program.write_text("2\n")
    folder = make_run(tmp_path / "runs" / "a", seed=7)
    (folder / "packages.txt").write_text(list_packages())
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    where: dict[str, Any] = {"script": "program.py", "cwd": str(tmp_path), "module": None}
    where |= {"argv": ["program.py", "--lr", "1"]}
    loaded = [program, tmp_path / "models.py"]
    loaded[1].write_text("")
    (folder / "code.sha256").write_text(checksums([str(file) for file in loaded]))
    change_record(folder, git=record_changes(tmp_path, folder), devices=describe_devices(), versions=versions, **where)
    return folder


def replay(capsys: pytest.CaptureFixture[str], *options: str, status: int = 0) -> tuple[str, str]:
    """What `trainlab replay --dry-run` writes and says."""
    assert main(["replay", "a", "--dry-run", *options]) == status
    return capsys.readouterr()


def test_a_replay_ignores_the_environment_and_keeps_the_seed(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program is run with its options and its seed, in a folder of its own, as the environment were not there."""
    output, errors = replay(capsys, "--strict", "--", "--epochs", "2")
    words = shlex.split(output)[3:]
    assert words[:2] == ["TRAINLAB_IGNORE_ENVIRONMENT=1", "TRAINLAB_SEED=7"]
    assert words[2:] == [sys.executable, "program.py", "--lr", "1", "--epochs", "2"]
    assert errors == "All that is recorded is as it was then.\n"


def _commit(run: Path) -> None:
    git("commit", "-qam", "b")


def _change(run: Path) -> None:
    (run.parents[1] / "program.py").write_text("3\n")


def _change_a_module(run: Path) -> None:
    (run.parents[1] / "models.py").write_text("3\n")


def _undo(run: Path) -> None:
    (run.parents[1] / "program.py").write_text("1\n")


def _other_packages(run: Path) -> None:
    file = run / "packages.txt"
    kept = [line for line in file.read_text().splitlines() if not line.startswith("torch==")]
    file.write_text("\n".join([*kept, "torch==1.0", "gone==2.0"]))


def _other_versions(run: Path) -> None:
    change_record(run, versions={"python": "3.1", "platform": "Plan9"})


def _other_devices(run: Path) -> None:
    change_record(run, devices={**describe_devices(), "gpus": ["NVIDIA H200"]})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (_commit, ["commit: then ", "changes that are not committed: then 1 files changed, now none"]),
        (_change, ["changes that are not committed: then others, now 1 files changed", "content of program.py: then "]),
        (_change_a_module, ["content of models.py: then e3b0c44298fc, now "]),
        (_undo, ["changes that are not committed: then 1 files changed, now none", "content of program.py: then "]),
        (_other_packages, [f"package torch: then 1.0, now {torch.__version__}", "package gone: then 2.0, now none"]),
        (_other_versions, ["Python: then 3.1, now 3.", "platform: then Plan9, now "]),
        (_other_devices, ["gpus: then NVIDIA H200, now none"]),
    ],
)
def test_what_differs_is_told_and_can_be_an_error(
    run: Path, change: Any, told: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A person reads what is not as it was before the run begins; with --strict it does not begin."""
    change(run)
    output, errors = replay(capsys)
    assert errors.startswith("Not as it was then:\n")
    assert [line for line in told if line not in errors] == []
    assert errors.count("\n") == len(told) + 1
    assert output
    output, errors = replay(capsys, "--strict", status=1)
    assert output == ""
    assert "Not begun" in errors


def test_many_other_packages_are_summed_up(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another environment is told in a few lines."""
    file = run / "packages.txt"
    file.write_text(file.read_text() + "".join(f"gone-{number}==1\n" for number in range(30)))
    errors = replay(capsys)[1]
    assert errors.count("package gone") == 10
    assert "and 20 more packages" in errors


def test_a_program_that_left_git_is_told(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no repository any more, that is what differs."""
    (tmp_path / ".git").rename(tmp_path / ".no-git")
    assert "commit: then " in replay(capsys)[1]
