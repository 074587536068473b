"""Progress."""

import pytest

from trainlab.errors import CheckpointMismatchError
from trainlab.schedule import Progress


def filled() -> Progress:
    """Give a Progress in the middle of a run."""
    return Progress(
        batches_trained=7, epochs_trained=2, batches_in_epoch=1, records_in_epoch=16, records_trained=110,
        optimizer_steps={"optimizer": 7}, last_report_batch=7, last_validation_batch=6, last_checkpoint_batch=None,
        best_metric=0.5, best_metric_batch=6, best_checkpoint="batch-0000006", validation_metrics={"accuracy": 0.5},
    )  # fmt: skip


def test_batches_and_epochs_are_counted():
    """A batch counts in the run and in its epoch; the end of an epoch only takes the position back."""
    progress = Progress()
    assert not progress.at_epoch_end
    for _ in range(2):
        progress.count_batch(16)
    progress.records_in_epoch = 32
    assert (progress.batches_in_epoch, progress.at_epoch_end) == (2, False)
    progress.end_epoch()
    assert progress.at_epoch_end
    progress.count_batch(5)
    assert progress == Progress(batches_trained=3, epochs_trained=1, batches_in_epoch=1, records_trained=37)


def test_the_state_brings_every_counter_back():
    """A Progress loaded from another's state equals it."""
    loaded = Progress(batches_trained=99)
    loaded.load_state_dict(filled().state_dict())
    assert loaded == filled()


def test_states_and_copies_share_nothing():
    """Counting on changes no state taken and no copy made before."""
    progress = filled()
    state, copied, loaded = progress.state_dict(), progress.copy(), Progress()
    loaded.load_state_dict(state)
    progress.optimizer_steps["optimizer"] += 1
    progress.validation_metrics["accuracy"] = 0.0
    progress.count_batch(1)
    assert state == filled().state_dict()
    assert copied == filled()
    assert loaded == filled()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batches_trained", -1),
        ("batches_trained", 1.0),
        ("epochs_trained", True),
        ("records_in_epoch", None),
        ("optimizer_steps", {"optimizer": -1}),
        ("optimizer_steps", [1]),
        ("last_report_batch", "7"),
        ("best_metric", "0.5"),
        ("best_checkpoint", 3),
        ("validation_metrics", None),
    ],
)
def test_a_wrong_value_is_refused_and_nothing_is_changed(name, value):
    """The error names the counter, and the Progress is as it was."""
    progress = Progress()
    with pytest.raises(CheckpointMismatchError, match=name):
        progress.load_state_dict({**filled().state_dict(), name: value})
    assert progress == Progress()


def test_missing_and_unknown_counters_are_listed():
    """A state of another version is refused with all that differs in one message."""
    state = filled().state_dict()
    del state["records_trained"], state["best_metric"]
    with pytest.raises(
        CheckpointMismatchError, match="records_trained is missing; best_metric is missing; seconds is unknown"
    ):
        Progress().load_state_dict({**state, "seconds": 3})
