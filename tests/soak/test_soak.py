"""A small slice of the soak, and that it tells what goes wrong."""

import pytest

from tests.soak import launches, soaking
from tests.soak.__main__ import main


@pytest.mark.slow
def test_a_small_soak(capsys: pytest.CaptureFixture[str]) -> None:
    """Random runs killed at random, and checkpoints damaged at random, are all resumed exactly and detected."""
    status = main(["--kills", "4", "--corruptions", "8", "--seed", "3", "--jobs", "1"])
    told = capsys.readouterr().out
    assert status == 0, told
    assert " 0 lost; 8 corruptions, 0 undetected; " in told.splitlines()[-1]


@pytest.mark.slow
def test_what_goes_wrong_fails_the_soak(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A corruption that nobody notices is counted, makes the exit status 1, and comes with the line that repeats it."""
    monkeypatch.setattr(soaking, "corrupt", lambda folder, random_: "nothing was done")
    assert main(["--kills", "0", "--corruptions", "1", "--seed", "3", "--jobs", "1"]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "again: python -m tests.soak --seed 3 --only corruption:0" in told
    assert "1 corruptions, 1 undetected" in told[-1]


@pytest.mark.slow
@pytest.mark.timeout(900)  # some twenty processes start one after the other, each within a limit of its own
def test_a_small_soak_of_launches(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Launched trainings whose ranks, agents and nodes are killed at random end as one that nobody killed."""
    monkeypatch.setattr(launches, "_KILLS_OF_A_RUN", 1)
    status = launches.main(["--kills", "3", "--seed", "5"])
    told = capsys.readouterr().out
    assert status == 0, told
    assert "3 kills, 0 wrong ends" in told.splitlines()[-1]
