"""What a process knows of its launch, and what it tells its launcher: read from the environment alone."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from trainlab.distributed import Launched, launched, note
from trainlab.errors import InvalidValueError

NAMES = (
    "TRAINLAB_LAUNCH_ID",
    "TRAINLAB_ATTEMPT",
    "TRAINLAB_LAUNCH_DIR",
    "TRAINLAB_RANK",
    "RANK",
    "ENVIRONMENT",
    "SLURM_JOB_ID",
    "SLURM_ARRAY_JOB_ID",
    "SLURM_ARRAY_TASK_ID",
    "SLURM_STEP_ID",
    "SLURM_RESTART_COUNT",
    "SLURM_PROCID",
)
BATCH = {"ENVIRONMENT": "BATCH", "SLURM_JOB_ID": "12"}
ARRAY = {**BATCH, "SLURM_ARRAY_JOB_ID": "10", "SLURM_ARRAY_TASK_ID": "0"}


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Set the variables that are given, and none of the others."""

    def set_them(**variables: str) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return set_them


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"TRAINLAB_ATTEMPT": "2"}, None),
        ({"TRAINLAB_LAUNCH_ID": "a1"}, Launched("a1", 0)),
        ({"TRAINLAB_LAUNCH_ID": "a1", "TRAINLAB_ATTEMPT": "2"}, Launched("a1", 2)),
        ({"TRAINLAB_LAUNCH_ID": "a1", **BATCH, "SLURM_RESTART_COUNT": "3"}, Launched("a1", 0)),
        (BATCH, Launched("slurm-12", 0)),
        ({**BATCH, "SLURM_RESTART_COUNT": "3"}, Launched("slurm-12", 3)),
        ({**BATCH, "SLURM_STEP_ID": "1", "SLURM_RESTART_COUNT": "1"}, Launched("slurm-12", 1)),
        (ARRAY, Launched("slurm-10_0", 0)),
        ({**ARRAY, "SLURM_STEP_ID": "0"}, Launched("slurm-10_0", 0)),
        ({"SLURM_JOB_ID": "12"}, None),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0"}, None),
        ({"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "0", "ENVIRONMENT": "production"}, None),
    ],
)
def test_a_launch_is_known_by_the_environment(
    environ: Callable[..., None], variables: dict[str, str], expected: Launched | None
) -> None:
    """A launcher's variables win over those of SLURM's batch job, all of whose steps are one launch."""
    environ(**variables)
    assert launched() == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TRAINLAB_LAUNCH_ID", "a/b"),
        ("TRAINLAB_LAUNCH_ID", "../a"),
        ("TRAINLAB_LAUNCH_ID", "a b"),
        ("TRAINLAB_LAUNCH_ID", "a" * 101),
        ("TRAINLAB_ATTEMPT", "-1"),
        ("TRAINLAB_ATTEMPT", "one"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(environ: Callable[..., None], name: str, value: str) -> None:
    """An id that cannot be part of a folder's name, and an attempt that is no number, are errors that show them."""
    environ(**{"TRAINLAB_LAUNCH_ID": "a1", name: value})
    with pytest.raises(InvalidValueError, match=f"{name} .*Received: '"):
        launched()


@pytest.mark.parametrize(
    ("variables", "rank"),
    [({}, 0), ({"RANK": "3"}, 3), ({"RANK": "3", "TRAINLAB_RANK": "4"}, 4), ({"SLURM_PROCID": "5"}, 5)],
)
def test_a_note_is_left_by_rank(
    environ: Callable[..., None], tmp_path: Path, variables: dict[str, str], rank: int
) -> None:
    """The launcher finds each rank's newest note of a name, and nothing half written."""
    environ(TRAINLAB_LAUNCH_DIR=str(tmp_path), **variables)
    note("resumed", {"batch": 1})
    note("resumed", {"batch": 7})
    assert [path.name for path in tmp_path.iterdir()] == [f"rank-{rank}.resumed.json"]
    assert json.loads((tmp_path / f"rank-{rank}.resumed.json").read_text()) == {"batch": 7}


def test_without_a_launcher_there_are_no_notes(
    environ: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that nobody launched writes nothing anywhere."""
    environ()
    monkeypatch.chdir(tmp_path)
    note("resumed", {"batch": 1})
    assert not list(tmp_path.iterdir())


def test_a_launcher_that_is_gone_does_not_end_the_training(
    environ: Callable[..., None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A note that cannot be left is logged, and that is all."""
    environ(TRAINLAB_LAUNCH_DIR=str(tmp_path / "gone"))
    with caplog.at_level(logging.WARNING, "trainlab"):
        note("resumed", {"batch": 1})
    assert "could not be told 'resumed'" in caplog.text
