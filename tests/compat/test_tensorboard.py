"""What is written for TensorBoard."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.compat.trials import Open, fit
from trainlab.compat import determined as pytorch
from trainlab.compat.determined import Batch


def series(folder: Path) -> dict[str, list[int]]:
    """The steps of every series in a folder."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_the_series_have_trainlabs_names(open_run: Open) -> None:
    """Training and validation metrics are found under train/ and validation/, once for each step."""
    context = open_run()
    fit(context, max_length=Batch(4), validation_period=Batch(2))
    context.close()
    written = series(context.get_tensorboard_path())
    assert written["train/loss"] == [2, 4] and written["validation/loss"] == [2, 4]
    assert not any(tag.startswith("Determined") for tag in written)


@pytest.mark.parametrize("how", ["init", "setter"])
def test_logging_can_be_switched_off(open_run: Open, how: str) -> None:
    """With logging off trainlab writes no series, and the user's own are still written, in the same place."""
    context = open_run(enable_tensorboard_logging=how != "init")
    if how == "setter":
        context.set_enable_tensorboard_logging(False)
    assert context.get_enable_tensorboard_logging() is False
    writer = context.get_tensorboard_writer()
    assert context.get_tensorboard_writer() is writer
    writer.add_scalar("mine", 1.0, 7)
    fit(context, max_length=Batch(4))
    context.close()
    assert series(context.get_tensorboard_path()) == {"mine": [7]}


def test_a_torch_writer_still_works(tmp_path: Path) -> None:
    """TorchWriter warns that it is old, writes scalars, and opens a new file after each reset."""
    with pytest.warns(FutureWarning, match="get_tensorboard_writer"):
        logger: Any = pytorch.TorchWriter()
    for step in range(2):
        logger.add_scalar("loss", 0.5, step)
        logger.writer.flush()
        logger.reset()
    files = [path for path in tmp_path.rglob("events*") if path.is_file()]
    assert len(files) == 2
    # Of two files of one second the order of the names is not that of their making.
    assert {tag: sorted(steps) for tag, steps in series(files[0].parent).items()} == {"loss": [0, 1]}
