"""Warnings reach a person."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import torch, trainlab
from tests.training.trials import LineTrial

class Lost(LineTrial):
    def evaluate_batch(self, batch, batch_idx):
        return {"loss": float("nan")}

with trainlab.init(progress=PROGRESS, device="cpu") as context:
    trainlab.Trainer(Lost(context), context).fit(max_length=trainlab.Batch(2), metric="loss")
"""


@pytest.mark.slow
@pytest.mark.parametrize("progress", [True, False])
def test_a_warning_is_on_stderr_without_any_logging_set_up(tmp_path: Path, progress: bool) -> None:
    """A program that sets up no logging shows trainlab's warnings, with the display on and off, once each."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})" + PROGRAM.replace("PROGRESS", str(progress))
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.count("WARNING: NaN or infinity in the validation metrics") == 1
