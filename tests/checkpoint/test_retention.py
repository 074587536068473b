import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import trainlab
from trainlab.checkpoint import Entry, Retention
from trainlab.checkpoint.retention import expired
from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.schedule import Batch, Epoch

# Few values, so that there are ties.
METRICS = st.sampled_from([0, 1, 1.0, 0.5, -2.5, math.inf, -math.inf, math.nan, None, "best", True, 10**400])
VALIDATIONS = st.one_of(st.just({}), st.fixed_dictionaries({"loss": METRICS}), st.just({"other": 0.0}))
UNITS = st.one_of(st.none(), st.builds(Batch, st.integers(1, 20)), st.builds(Epoch, st.integers(1, 4)))
RETENTIONS = st.builds(
    Retention, keep_last=st.one_of(st.none(), st.integers(1, 4)), keep_best=st.integers(0, 3), keep_every=UNITS
)


@st.composite
def runs(draw: st.DrawFn) -> list[Entry]:
    """The checkpoints of a run in their order; it may go back to an earlier batch and go on from there."""
    batches, found = 0, []
    for sequence in range(1, 1 + draw(st.integers(0, 15))):
        batches = max(0, batches + draw(st.integers(-8, 12)))
        found.append(Entry(f"c{sequence}", sequence, batches, batches // 5, draw(VALIDATIONS)))
    return found


def value_of(entry: Entry) -> float | None:
    """What a checkpoint is judged by."""
    value = entry.validation.get("loss")
    is_number = isinstance(value, (int, float)) and value != 10**400 and not math.isnan(value)
    return float(value) if is_number else None


def kept_by(entries: list[Entry], retention: Retention, smaller_is_better: bool) -> set[str]:
    """The rules, one checkpoint at a time."""
    if retention.keep_last is None:
        return {entry.name for entry in entries}
    kept = set()
    for place, entry in enumerate(entries):
        value, earlier = value_of(entry), entries[:place]
        if len(entries) - place <= retention.keep_last:
            kept.add(entry.name)
        if value is not None:
            others = [(other, value_of(other)) for other in entries if value_of(other) is not None]
            better = [
                other
                for other, its in others
                if its is not None
                and ((its < value if smaller_is_better else its > value) or (its == value and other in earlier))
            ]
            if len(better) < retention.keep_best:
                kept.add(entry.name)
        if retention.keep_every is not None:
            length = retention.keep_every.value
            assert isinstance(length, int)

            def stretch(one: Entry, length: int = length) -> int:
                return (one.epochs_trained if type(retention.keep_every) is Epoch else one.batches_trained) // length

            if stretch(entry) and all(stretch(other) != stretch(entry) for other in earlier):
                kept.add(entry.name)
    return kept


@given(runs(), RETENTIONS, st.booleans(), st.randoms())
def test_what_is_removed_is_what_no_rule_keeps(
    entries: list[Entry], retention: Retention, smaller: bool, random: Any
) -> None:
    """The last, the best and the first of each stretch stay, the newest among them; all others go, oldest first."""
    given_in_any_order = random.sample(entries, len(entries))
    removed = expired(given_in_any_order, retention, metric="loss", smaller_is_better=smaller)
    kept = kept_by(entries, retention, smaller)
    assert removed == [entry.name for entry in entries if entry.name not in kept]
    assert not entries or entries[-1].name not in removed


@given(runs(), RETENTIONS, st.booleans(), st.data())
def test_crashes_in_retention_change_nothing_in_the_end(
    entries: list[Entry], retention: Retention, smaller: bool, data: st.DataObject
) -> None:
    """A run whose process died in the middle of removals ends with the same checkpoints as one that ran through."""

    def chosen(present: list[Entry]) -> list[str]:
        return expired(present, retention, metric="loss", smaller_is_better=smaller)

    interrupted: list[Entry] = []
    whole: list[Entry] = []
    for entry in entries:
        whole.append(entry)
        whole = [one for one in whole if one.name not in chosen(whole)]
        interrupted.append(entry)
        due = chosen(interrupted)
        done = set(due) if not due else data.draw(st.sets(st.sampled_from(due)))
        interrupted = [one for one in interrupted if one.name not in done]
    last = chosen(interrupted)
    assert [one for one in interrupted if one.name not in last] == whole
    assert not chosen(whole)


def test_the_best_survives_what_comes_after_it() -> None:
    """By default the best checkpoint is there at the end, however long ago it was, and the last two."""
    present: list[Entry] = []
    for number, loss in enumerate([3.0, 1.0, 2.0, 1.0, math.nan, 4.0], 1):
        present.append(Entry(f"c{number}", number, number, 0, {"loss": loss}))
        removed = expired(present, Retention(), metric="loss")
        present = [entry for entry in present if entry.name not in removed]
    assert [entry.name for entry in present] == ["c2", "c5", "c6"]


def test_without_a_metric_none_is_the_best() -> None:
    """A run that is not judged keeps the last ones only."""
    entries = [Entry(f"c{number}", number, number, 0, {"loss": number}) for number in range(1, 6)]
    assert expired(entries, Retention(keep_last=2, keep_best=3)) == ["c1", "c2", "c3"]


def test_only_a_validation_of_the_same_batch_counts() -> None:
    """A checkpoint that was made after a validation, and some more batches, is not taken for the one it judged."""
    progress = {"batches_trained": 20, "epochs_trained": 2, "validation_metrics": {"loss": 0.1}}
    entry = Entry.of("a", 3, {**progress, "last_validation_batch": 20})
    assert entry == Entry("a", 3, 20, 2, {"loss": 0.1})
    assert Entry.of("a", 3, {**progress, "last_validation_batch": 10}) == Entry("a", 3, 20, 2, {})


VALUES = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers()))


@given(
    st.dictionaries(
        st.sampled_from(["batches_trained", "epochs_trained", "last_validation_batch", "validation_metrics"]),
        st.one_of(VALUES, st.dictionaries(st.just("loss"), st.one_of(VALUES, st.just(10**400)))),
    )
)
def test_strange_progress_stops_nothing(progress: dict[str, Any]) -> None:
    """A checkpoint of anyone's takes part in retention, with whatever its manifest tells, and no negative counts."""
    entries = [Entry.of("a", 1, progress), Entry.of("b", 2, progress)]
    assert all(entry.batches_trained >= 0 and entry.epochs_trained >= 0 for entry in entries)
    assert "b" not in expired(entries, Retention(keep_last=1, keep_every=Batch(3)), metric="loss")


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"keep_last": 0}, InvalidValueError, "keep_last must be at least 1. Received: 0"),
        ({"keep_last": True}, InvalidTypeError, "keep_last must be an int or None. Received: True"),
        ({"keep_last": 2.0}, InvalidTypeError, "keep_last must be an int or None. Received: 2.0"),
        ({"keep_best": -1}, InvalidValueError, "keep_best must be at least 0. Received: -1"),
        ({"keep_best": None}, InvalidTypeError, "keep_best must be an int. Received: None"),
        ({"keep_every": 100}, InvalidTypeError, "keep_every must be Batch.n. or Epoch.n., or None. Received: 100"),
        ({"keep_every": Batch([1, 5])}, InvalidTypeError, r"Received: Batch\(\[1, 5\]\)"),
    ],
)
def test_what_cannot_be_kept_is_refused(arguments: dict[str, Any], error: type[Exception], told: str) -> None:
    """A rule that means nothing is an error when it is written down, with what was received."""
    with pytest.raises(error, match=told):
        trainlab.Retention(**arguments)


def test_a_run_that_went_back_keeps_its_own_best() -> None:
    """The best of a run is kept although checkpoints that it left behind, by going back, were better."""
    left_behind = Entry("batch-0000020", 2, 20, 0, {"loss": 1.0}, "batch-0000020")
    own = [
        Entry("batch-0000020.1", 3, 20, 0, {"loss": 2.0}, "batch-0000020.1"),
        Entry("batch-0000030", 4, 30, 0, {"loss": 6.0}, "batch-0000020.1"),
        Entry("batch-0000040", 5, 40, 0, {"loss": 7.0}, "batch-0000020.1"),
    ]
    removed = expired([left_behind, *own], Retention(keep_last=1), metric="loss")
    assert removed == ["batch-0000020", "batch-0000030"]
