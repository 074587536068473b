import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.cli.programs import trainlab
from trainlab.cli import doctor, machine
from trainlab.cli.facts import Fact, gather

AWAY = "ClusterName=a\nSlurmctldHost=localhost\nSlurmctldPort=1\nNodeName=localhost\nPartitionName=b Nodes=localhost\n"
GROUPS = ["software", "cpu", "memory", "disk", "limits", "network", "torch", "devices", "backends", "slurm", "storage"]


def told(*, before: str = "", **env: str | None) -> tuple[int, dict[str, Any]]:
    done = trainlab("doctor", "--json", before=before, **env)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def problems(report: dict[str, Any]) -> dict[str, tuple[str, str]]:
    return {wrong["group"]: (wrong["problem"], wrong["remedy"]) for wrong in report["problems"]}


def test_the_facts_are_there_for_programs() -> None:
    """`--json` gives every group of facts, whether all is well, and an exit status that agrees."""
    status, report = told()
    assert list(report) == ["ok", "facts", "problems"]
    assert list(report["facts"]) == [*GROUPS, "round trip"]
    assert (status, report["problems"] == []) == ((0, True) if report["ok"] else (1, False))
    assert report["facts"]["cpu"]["CPUs that this process may use"] == len(os.sched_getaffinity(0))
    assert report["facts"]["backends"]["gloo"] is True
    assert report["facts"]["round trip"]["gloo, 2 ranks"].endswith(" s")
    assert all(wrong["problem"] and wrong["remedy"] for wrong in report["problems"])


@pytest.mark.slow
def test_what_is_wrong_is_told_with_its_remedy(small_disk: Path, tmp_path: Path) -> None:
    """Few open files, a full disk for temporary files and a missing SLURM: each is told for what it is."""
    tools = tmp_path / "bin"
    tools.mkdir()
    status, report = told(before="ulimit -n 64", PATH=str(tools), TMPDIR=str(small_disk))
    wrong = problems(report)
    assert (status, report["ok"]) == (1, False)
    assert "may open 64 files" in wrong["limits"][0]
    assert "nofile=65536" in wrong["limits"][1]
    assert f"{small_disk} has 0.0 GiB free" in wrong["disk"][0]
    assert "TMPDIR" in wrong["disk"][1]
    assert report["facts"]["slurm"]["commands"] == "none on the PATH"
    assert "slurm" not in wrong


@pytest.mark.slow
def test_a_limit_that_can_be_raised_comes_with_the_command() -> None:
    """Where the user may raise the number of open files, the doctor names the command that does."""
    _, report = told(before="ulimit -S -n 256")
    assert problems(report)["limits"][1].startswith("ulimit -n ")


@pytest.mark.slow
def test_processes_that_cannot_meet_are_told() -> None:
    """A network interface that is not there makes the round trip fail, and the doctor names it and those that are."""
    status, report = told(GLOO_SOCKET_IFNAME="nonsense")
    problem, remedy = problems(report)["round trip"]
    assert status == 1
    assert "Unable to find address for: nonsense" in problem
    assert "GLOO_SOCKET_IFNAME=nonsense is set; the interfaces here are " in remedy
    assert "lo" in remedy


@pytest.mark.slow
def test_a_controller_that_is_away_is_told(tmp_path: Path) -> None:
    """SLURM's commands without their controller are told as such, with what it answered."""
    if shutil.which("scontrol") is None:
        pytest.skip("SLURM is not installed")
    (tmp_path / "slurm.conf").write_text(AWAY)
    status, report = told(SLURM_CONF=str(tmp_path / "slurm.conf"))
    assert status == 1
    assert "SLURM's controller does not answer: Slurmctld(primary) at " in problems(report)["slurm"][0]
    assert "SLURM_CONF" in problems(report)["slurm"][1]


@pytest.mark.slow
def test_the_job_around_does_not_disturb() -> None:
    """Inside a job of other ranks the doctor makes its round trip all the same, and says which job it is."""
    around = {"RANK": "3", "WORLD_SIZE": "8", "MASTER_ADDR": "203.0.113.1", "MASTER_PORT": "1", "SLURM_JOB_ID": "7"}
    _, report = told(**around, SLURM_PROCID="3", SLURM_STEP_NUM_TASKS="8", TRAINLAB_CPUS_PER_TASK="many")
    assert "round trip" not in problems(report)
    assert report["facts"]["slurm"]["inside a job"] == {"SLURM_JOB_ID": "7"}


def test_a_person_reads_a_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts come as one table, each group as soon as it is known, and what is wrong below it with its remedy."""
    seen = []

    def look(*facts: Fact) -> Any:
        def probe() -> list[Fact]:
            seen.append(capsys.readouterr().out)
            return list(facts)

        return [probe]

    free = Fact("disk", "free", 0.5, "It is full.", "Empty it.")
    probes = {"cpu": look(Fact("cpu", "CPUs", 4), Fact("cpu", "threads", 8)), "none": look(), "disk": look(free)}
    monkeypatch.setattr(doctor, "_PROBES", probes)
    assert doctor.main([]) == 1
    assert [line.split() for line in seen[1].splitlines()] == [["cpu", "CPUs", "4"], ["threads", "8"]]
    last, _, wrong = capsys.readouterr().out.partition("\n\n")
    assert last.split() == ["disk", "free", "0.5"]
    assert last.index("free") == seen[1].index("CPUs") and last.index("0.5") == seen[1].index("4")
    assert wrong == "disk: It is full.\n  Empty it.\n\nWrong: 1.\n"


def test_a_limit_that_is_none_is_told_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever number a system has for a limit that there is not, a person reads that it is unlimited."""
    none = 2**63 - 1  # as on macOS
    monkeypatch.setattr(resource, "RLIM_INFINITY", none)
    monkeypatch.setattr(resource, "getrlimit", lambda which: (none, none))
    assert [fact.value for fact in machine._limits()] == ["unlimited", "unlimited"]


def test_a_probe_that_fails_is_a_row() -> None:
    """On a strange machine one thing that cannot be looked at hides none of the others."""

    def _strange_disk() -> list[Fact]:
        raise FileNotFoundError("no /proc")

    found = gather("disk", [_strange_disk, lambda: [Fact("disk", "free", 1)]])
    assert found[0].problem == "strange disk cannot be looked at: FileNotFoundError: no /proc"
    assert found[1:] == [Fact("disk", "free", 1)]
