"""A whole script of Determined's."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("determined_script.py")


def port() -> Any:
    """The script as a module, with its import line changed and nothing else."""
    before = SCRIPT.read_text()
    after = before.replace("from determined import pytorch", "from trainlab.compat import determined as pytorch")
    assert after.count("\n") == before.count("\n") and after != before
    script = ModuleType("determined_script")
    exec(compile(after, SCRIPT.name, "exec"), vars(script))
    return script


def test_a_script_runs_after_its_import_line_is_changed() -> None:
    """A script for determined.pytorch trains, validates and learns on trainlab with one line changed."""
    trial = port().main(epochs=30)
    context = trial.context
    lines = [json.loads(line) for line in (context.run_dir / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if line["kind"] == "training"]
    validation = [line for line in lines if line["kind"] == "validation"]
    assert [line["batch"] for line in validation] == [30, 60, 90, 120, 150, 180]
    assert [line["batch"] for line in training] == [30, 60, 90, 100, 120, 150, 180]
    assert validation[-1]["metrics"]["mse"] < 0.5 * validation[0]["metrics"]["mse"]
    assert validation[-1]["metrics"]["worst"] < validation[0]["metrics"]["worst"]
    assert training[0]["metrics"]["epoch_start"] == pytest.approx(5 / 30)
    assert sorted(path.name for path in (context.run_dir / "checkpoints").iterdir()) == [
        "batch-0000100",
        "batch-0000180",
    ]
