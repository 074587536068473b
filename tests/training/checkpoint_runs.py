"""Short runs that leave checkpoints, for tests of what is in them."""

from pathlib import Path
from typing import Any

from torch import nn

import trainlab
from tests.training.trials import LineTrial
from trainlab import Batch


def run(open_run: Any, trial_class: type[LineTrial] = LineTrial, batches: int = 6, **arguments: Any) -> Any:
    """Train from the beginning, or on from the folder's newest checkpoint; return the Trial."""
    context = open_run(**{"run_dir": "here", **arguments})
    trial = trial_class(context)
    try:
        trainlab.Trainer(trial, context).fit(max_length=Batch(batches), latest_checkpoint=context.latest_checkpoint)
    finally:
        context.close()
    return trial


def newest(run_dir: str = "here") -> Path:
    """The newest checkpoint, damaged or not."""
    return max((Path(run_dir) / "checkpoints").iterdir(), key=lambda folder: folder.name)


def spoil(file: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


class Wider(LineTrial):
    """A LineTrial whose weights have other shapes."""

    def build_model(self) -> nn.Module:
        return nn.Linear(1, 3)
