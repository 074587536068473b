"""Plan: what is due at which batch."""

import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.schedule import Action, Batch, Epoch, Plan, Progress

NUMBERS = st.integers(1, 12)
VALUES = st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1, max_size=4), st.builds(range, NUMBERS, st.just(30), NUMBERS))
UNITS = st.builds(lambda kind, value: kind(value), st.sampled_from([Batch, Epoch]), VALUES)
LENGTHS = st.one_of(st.builds(Batch, st.integers(1, 40)), st.builds(Epoch, st.integers(1, 6)))
PLANS = st.builds(
    Plan,
    max_length=LENGTHS, reporting_period=UNITS,
    validation_period=st.none() | UNITS, checkpoint_period=st.none() | UNITS,
)  # fmt: skip
EPOCHS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def epoch_length(lengths: list[int], epoch: int) -> int:
    """Give the number of batches of an epoch."""
    return lengths[epoch % len(lengths)]


def naive(plan: Plan, lengths: list[int]) -> list[tuple[int, Action]]:
    """Every action of a run, from one look at the rules after each batch."""
    done = []
    batches = epochs = 0

    def due(unit):
        if unit is None:
            return False
        count, may_be = (epochs, in_epoch == 0) if isinstance(unit, Epoch) else (batches, True)
        return may_be and (count % unit.value == 0 if isinstance(unit.value, int) else count in unit.value)

    in_epoch = 0
    while True:
        batches, in_epoch = batches + 1, in_epoch + 1
        if in_epoch == epoch_length(lengths, epochs):
            epochs, in_epoch = epochs + 1, 0
        end = (epochs if isinstance(plan.max_length, Epoch) else batches) >= plan.max_length.value
        validate, checkpoint = due(plan.validation_period) or end, due(plan.checkpoint_period) or end
        if due(plan.reporting_period) or validate or checkpoint:
            done.append((batches, Action.REPORT))
        done += [(batches, Action.VALIDATE)] * validate + [(batches, Action.CHECKPOINT)] * checkpoint
        if end:
            return [*done, (batches, Action.END)]


def run(plan, progress, lengths, said):
    """Train as the loop does, from one boundary or end of an epoch to the next; yield each action with its state."""
    while not plan.finished(progress):
        length = epoch_length(lengths, progress.epochs_trained)
        until = plan.next_boundary(progress, said(length))
        assert until is None or until > progress.batches_trained
        while progress.batches_trained != until:
            progress.count_batch(1)
            if progress.batches_in_epoch == length:
                progress.end_epoch()
                break
        for action in sorted(plan.due(progress)):
            now = progress.batches_trained
            if action is Action.REPORT:
                progress.last_report_batch = now
            elif action is Action.VALIDATE:
                progress.last_validation_batch = now
            elif action is Action.CHECKPOINT:
                progress.last_checkpoint_batch = now
            yield (now, action), progress.state_dict()
        assert plan.due(progress) <= {Action.END}


SAID = {"known": lambda length: length, "unknown": lambda length: None, "wrong": lambda length: max(length - 2, 1)}


@pytest.mark.parametrize("said", SAID.values(), ids=SAID)
@settings(max_examples=150)
@given(plan=PLANS, lengths=EPOCHS)
def test_jumping_from_boundary_to_boundary_does_what_a_look_after_each_batch_would(plan, lengths, said):
    """Any mix of units over epochs of fixed, varying, unknown and wrongly told length: the same actions, in order."""
    done = [action for action, _ in run(plan, Progress(), lengths, said)]
    assert done == naive(plan, lengths)
    assert max(Counter(done).values()) == 1


@settings(max_examples=60)
@given(plan=PLANS, lengths=EPOCHS, data=st.data())
def test_a_run_resumed_from_any_checkpoint_repeats_and_leaves_out_nothing(plan, lengths, data):
    """What was done up to a checkpoint and what is done after loading it make up the uninterrupted run."""
    states = list(run(plan, Progress(), lengths, SAID["known"]))
    whole = [action for action, _ in states]
    checkpoints = [i for i, ((_, action), _) in enumerate(states) if action is Action.CHECKPOINT]
    at = data.draw(st.sampled_from(checkpoints))
    resumed = Progress()
    resumed.load_state_dict(states[at][1])
    again = [action for action, _ in run(plan, resumed, lengths, SAID["known"])]
    # The end is no action that a finished run does again.
    assert whole[: at + 1] + again == (whole if again else whole[:-1])


@settings(max_examples=100)
@given(plan=PLANS, length=st.integers(1, 9))
def test_the_next_boundary_is_exact_over_several_epochs_of_one_length(plan, length):
    """With epochs of one known length every boundary is foreseen from every batch before it."""
    boundaries = sorted({batch for batch, _ in naive(plan, [length])})
    progress = Progress()
    for batch in range(boundaries[-1]):
        assert plan.next_boundary(progress, length) == next(b for b in boundaries if b > batch)
        progress.count_batch(1)
        if progress.batches_in_epoch == length:
            progress.end_epoch()


def boundaries_of(plan: Plan, epoch: int) -> dict[Action, list[int]]:
    """Give the batches of each action, in epochs of one length."""
    done = [action for action, _ in run(plan, Progress(), [epoch], SAID["known"])]
    return {action: [batch for batch, a in done if a is action] for action in Action}


def test_worked_count_with_periods_and_a_last_odd_window():
    """16 batches an epoch for 2 epochs, checkpoints every 5, validations every 10: 7 windows, 4 validations."""
    plan = Plan(
        max_length=Epoch(2), reporting_period=Batch(100), validation_period=Batch(10), checkpoint_period=Batch(5)
    )
    assert boundaries_of(plan, 16) == {
        Action.REPORT: [5, 10, 15, 20, 25, 30, 32],
        Action.VALIDATE: [10, 20, 30, 32],
        Action.CHECKPOINT: [5, 10, 15, 20, 25, 30, 32],
        Action.END: [32],
    }


@pytest.mark.parametrize(
    ("periods", "counts"),
    [
        ({}, (1, 1, 1)),
        ({"validation_period": Batch(32), "checkpoint_period": Batch(32)}, (2, 2, 2)),
        ({"checkpoint_period": Batch(32)}, (2, 1, 2)),
    ],
)
def test_worked_counts_of_64_batches(periods, counts):
    """64 batches in 2 epochs: windows, validations and checkpoints by the periods, and each once at the end."""
    found = boundaries_of(Plan(max_length=Epoch(2), reporting_period=Batch(100), **periods), 32)
    assert tuple(len(found[a]) for a in (Action.REPORT, Action.VALIDATE, Action.CHECKPOINT)) == counts


def test_any_boundary_ends_a_window():
    """Validation every 50, length 100, report every 100: two reports."""
    plan = Plan(max_length=Batch(100), reporting_period=Batch(100), validation_period=Batch(50))
    assert boundaries_of(plan, 1000)[Action.REPORT] == [50, 100]


def test_actions_sort_into_the_order_in_which_they_are_done():
    """Report, validate, checkpoint, end."""
    assert sorted({Action.END, Action.CHECKPOINT, Action.VALIDATE, Action.REPORT}) == [
        Action.REPORT,
        Action.VALIDATE,
        Action.CHECKPOINT,
        Action.END,
    ]
    for earlier, later in itertools.pairwise(Action):
        assert earlier < later


def test_a_length_already_passed_is_finished():
    """A run that is longer than max_length has nothing to train, also in the middle of an epoch."""
    progress = Progress(batches_trained=25, epochs_trained=2, batches_in_epoch=5)
    for length in (Batch(20), Batch(25), Epoch(1), Epoch(2)):
        assert Plan(max_length=length, reporting_period=Batch(100)).finished(progress)
    assert not Plan(max_length=Epoch(3), reporting_period=Batch(100)).finished(progress)


def test_nothing_is_foreseen_with_epoch_units_of_unknown_length():
    """Without a Batch unit and a known length the next boundary cannot be told."""
    plan = Plan(max_length=Epoch(3), reporting_period=Epoch(1))
    assert plan.next_boundary(Progress(), None) is None
    assert plan.next_boundary(Progress(), 16) == 16


def test_the_fraction_done_is_in_units_of_the_length():
    """Batches of batches, epochs with the part of the present one; None where an epoch's length is unknown."""
    progress = Progress(batches_trained=24, epochs_trained=2, batches_in_epoch=4)
    by_batch = Plan(max_length=Batch(48), reporting_period=Batch(1))
    by_epoch = Plan(max_length=Epoch(5), reporting_period=Batch(1))
    assert by_batch.fraction(progress, None) == 0.5
    assert by_epoch.fraction(progress, 10) == pytest.approx(2.4 / 5)
    assert by_epoch.fraction(progress, 2) == pytest.approx(3 / 5)
    assert by_epoch.fraction(progress, None) is None
    assert by_epoch.fraction(Progress(batches_trained=60, epochs_trained=6), None) == 1.0


@pytest.mark.parametrize(
    ("units", "error"),
    [
        ({"max_length": None}, InvalidValueError),
        ({"max_length": Batch([1, 2])}, InvalidTypeError),
        ({"max_length": 100}, InvalidTypeError),
        ({"reporting_period": None}, InvalidValueError),
        ({"reporting_period": 100}, InvalidTypeError),
        ({"validation_period": 5}, InvalidTypeError),
        ({"checkpoint_period": "5"}, InvalidTypeError),
    ],
)
def test_a_wrong_length_or_period_is_named_with_what_was_received(units, error):
    """The error says which argument is wrong."""
    (name,) = units
    with pytest.raises(error, match=rf"{name}.*Received: "):
        Plan(**{"max_length": Batch(1), "reporting_period": Batch(1), **units})
