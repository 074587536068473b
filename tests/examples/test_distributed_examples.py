"""The examples on several ranks: the same steps, the same metrics and one set of files, as on one process.

Weights that several ranks trained differ from those of one process in their last bits, since gradients are added up in
another order; so metrics are compared within the tolerance that float32 leaves after that many steps.
"""

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.ranks import start_ranks
from tests.examples.scripts import run_script

EXAMPLES = Path(__file__).parents[2] / "examples"
LENGTH = {"digits.py": ["--epochs", "2"], "tiny_gpt.py": ["--batches", "4"]}
# What is printed once, by the chief.
SAYS = {"digits.py": "Test accuracy: ", "tiny_gpt.py": "--- after 4 batches"}
PARALLEL = {"ddp": ["--parallel", "ddp"], "fsdp": ["--parallel", "fsdp"], "auto": []}
TOLERANCE = 1e-4

CASES = [
    ("digits.py", "auto", 2),
    pytest.param("tiny_gpt.py", "fsdp", 2, marks=pytest.mark.slow),
    pytest.param("tiny_gpt.py", "ddp", 2, marks=pytest.mark.slow),
    pytest.param("digits.py", "auto", 4, marks=pytest.mark.slow),
    pytest.param("tiny_gpt.py", "ddp", 4, marks=pytest.mark.slow),
    pytest.param("tiny_gpt.py", "fsdp", 4, marks=pytest.mark.slow),
]


class Run:
    """What a run of an example left."""

    def __init__(self, example: str, parallel: str, ranks: int) -> None:
        arguments = [*LENGTH[example], *PARALLEL[parallel]]
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "run"
            call = (str(EXAMPLES / example), place, *arguments, "--run-dir", str(folder))
            with start_ranks(run_script, ranks, *call, env={"TRAINLAB_RUN_DIR": ""}) as started:
                statuses = started.wait(240)
                self.said = started.outputs()
                self.said_by_rank = [rank.output() for rank in started]
            assert statuses == [0] * ranks, self.said
            self.files = {path.name for path in folder.iterdir()}
            self.written = len(list((folder / "tensorboard").iterdir()))
            self.records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    @property
    def steps(self) -> list[Any]:
        """When what was recorded, and how many records had been trained by then."""
        return [(record["kind"], record["batch"], record["epoch"], record["records"]) for record in self.records]

    @property
    def metrics(self) -> list[dict[str, float]]:
        """The metrics of each record, in order."""
        return [record["metrics"] for record in self.records]


@functools.cache
def run(example: str, parallel: str, ranks: int) -> Run:
    return Run(example, parallel, ranks)


def alone(example: str) -> Run:
    return run(example, "auto", 1)


@pytest.mark.parametrize(("example", "parallel", "ranks"), CASES)
def test_metrics_are_those_of_one_process(example: str, parallel: str, ranks: int) -> None:
    """An example on several ranks reports at the same steps the metrics of one process, to the last validation."""
    several = run(example, parallel, ranks)
    assert several.steps == alone(example).steps
    for found, expected in zip(several.metrics, alone(example).metrics, strict=True):
        assert found == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(("example", "parallel", "ranks"), CASES)
def test_only_the_chief_shows_results_and_writes(example: str, parallel: str, ranks: int) -> None:
    """Several ranks show one result and leave one set of files, with a log of each further rank."""
    several = run(example, parallel, ranks)
    assert [said.count(SAYS[example]) for said in several.said_by_rank] == [1] + [0] * (ranks - 1)
    logs = {f"log.rank-{rank}.txt" for rank in range(1, ranks)}
    assert several.files == alone(example).files | logs
    assert several.written == alone(example).written
