"""Who a process is inside of a SLURM allocation, however it was started there."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from tests.slurm.cluster import Slurm

PLACE = f"{shlex.quote(sys.executable)} -m tests.slurm.place"
TORCHRUN = f"{shlex.quote(sys.executable)} -m torch.distributed.run --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d"
SCRIPT = f"""\
{PLACE} alone
srun -N2 -n3 -m plane=2 {PLACE} uneven
srun -N1 -n2 -r1 {PLACE} part
srun -N1 -n1 {PLACE} one
RANK=0 WORLD_SIZE=8 srun -N1 -n2 {PLACE} contradiction
"""

Told = Mapping[str, list[dict[str, Any]]]


def read(output: str) -> Told:
    """What the processes told, by name, in the order of ranks."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in re.findall(r'\{"name".*\}', output):  # a terminal may put something before it
        told = json.loads(line)
        found.setdefault(told["name"], []).append(told)
    for several in found.values():
        several.sort(key=lambda told: told.get("numbers", []))
    return found


@pytest.fixture(scope="module")
def told(slurm: Slurm) -> Told:
    """What is told inside of one allocation of two nodes with two tasks each."""
    job = slurm.submit(SCRIPT, "--nodes=2", "--ntasks-per-node=2")
    slurm.wait(job, timeout=240)
    return read(slurm.output(job))


def numbers(several: list[dict[str, Any]]) -> list[list[int]]:
    return [one["numbers"] for one in several]


@pytest.mark.slow
def test_srun_needs_no_options(slurm: Slurm) -> None:
    """`srun python script.py` in a job of two nodes with two tasks each makes four ranks, who meet."""
    job = slurm.submit(f"srun {PLACE} all", "--nodes=2", "--ntasks-per-node=2")
    assert slurm.wait(job) == "COMPLETED", slurm.output(job)
    told = read(slurm.output(job))
    assert numbers(told["all"]) == [[0, 4, 0, 2, 0, 2], [1, 4, 1, 2, 0, 2], [2, 4, 0, 2, 1, 2], [3, 4, 1, 2, 1, 2]]
    assert all(one["met"] == ["n1", "n1", "n2", "n2"] and not one["warned"] for one in told["all"])


@pytest.mark.slow
def test_nodes_may_have_different_numbers_of_tasks(told: Told) -> None:
    """Three tasks on two nodes know how many are on their own."""
    assert numbers(told["uneven"]) == [[0, 3, 0, 2, 0, 2], [1, 3, 1, 2, 0, 2], [2, 3, 0, 1, 1, 2]]


@pytest.mark.slow
def test_a_step_is_no_larger_than_itself(told: Told) -> None:
    """A step of two tasks on the second node of the allocation is two ranks, and does not wait for four."""
    assert numbers(told["part"]) == [[0, 2, 0, 2, 0, 1], [1, 2, 1, 2, 0, 1]]
    assert told["part"][0]["met"] == ["n2", "n2"]


@pytest.mark.slow
def test_a_batch_script_without_srun_is_alone(told: Told) -> None:
    """A script that runs python itself is one process, told once that srun would make it several."""
    (alone,) = told["alone"]
    assert alone["numbers"] == [0, 1, 0, 1, 0, 1]
    (warning,) = alone["warned"]
    assert "4 tasks" in warning and "srun python script.py" in warning
    (one,) = told["one"]
    assert one["numbers"] == [0, 1, 0, 1, 0, 1] and not one["warned"]


@pytest.mark.slow
def test_variables_that_contradict_the_step_are_refused(told: Told) -> None:
    """RANK and WORLD_SIZE that are exported to all tasks are an error that shows them beside the step's own."""
    for one in told["contradiction"]:
        for part in ("RANK='0', WORLD_SIZE='8'", "of 2", "SLURM_STEP_NUM_TASKS='2'"):
            assert part in one["error"]


@pytest.mark.slow
def test_a_job_submitted_from_a_step_is_not_in_it(slurm: Slurm) -> None:
    """A batch script that was submitted by a task of a step, whose variables it inherits, is alone all the same."""
    inner = f"#!/bin/bash\nenv | grep SLURM_STEP_NUM_TASKS\n{PLACE} inner\n"
    script = slurm.folder / "inner.sh"
    script.write_text(inner)
    file = slurm.output_folder / "inner.txt"
    submit = f'[ "$SLURM_PROCID" = 0 ] && sbatch --parsable -n1 -o {file} {script} > {slurm.folder}/inner.id || true'
    job = slurm.submit(f"srun bash -c {shlex.quote(submit)}", "--ntasks=2")
    assert slurm.wait(job) == "COMPLETED"
    assert slurm.wait((slurm.folder / "inner.id").read_text().strip()) == "COMPLETED"
    assert "SLURM_STEP_NUM_TASKS=2" in file.read_text()
    assert numbers(read(file.read_text())["inner"]) == [[0, 1, 0, 1, 0, 1]]


@pytest.mark.slow
def test_torchrun_in_a_step_is_no_contradiction(slurm: Slurm) -> None:
    """Where srun starts torchrun once on each node, its workers are the ranks."""
    endpoint = "--rdzv-endpoint=127.0.0.1:$((30000 + RANDOM % 2000)) --rdzv-id=$SLURM_JOB_ID"
    script = f"srun {TORCHRUN} {endpoint} {PLACE.partition(' ')[2]} torchrun"
    job = slurm.submit(script, "--nodes=2", "--ntasks-per-node=1")
    assert slurm.wait(job) == "COMPLETED", slurm.output(job)
    assert [one["numbers"][:2] for one in read(slurm.output(job))["torchrun"]] == [[0, 2], [1, 2]]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["salloc -n4 --", "srun -n1 --pty", "salloc -n4 srun -n1 --pty"])
def test_an_interactive_session_is_alone(slurm: Slurm, command: str) -> None:
    """Python by hand in salloc or in `srun --pty` is one process, and nobody tells it to use srun."""
    line = ["script", "-qec", f"{command} {PLACE} hand", "/dev/null"]
    done = subprocess.run(line, env=slurm.env, capture_output=True, text=True, timeout=120, check=True)
    (hand,) = read(done.stdout)["hand"]
    assert hand["numbers"] == [0, 1, 0, 1, 0, 1] and not hand["warned"]
