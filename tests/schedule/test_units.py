"""Batch and Epoch."""

import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.schedule import Batch, Epoch, TrainUnit

NUMBERS = st.integers(1, 50)


def test_period_is_due_after_every_nth_counted_from_the_beginning():
    """An int is a period: due at its multiples, and never at 0."""
    assert [n for n in range(13) if Batch(4).is_due(n)] == [4, 8, 12]


def test_schedule_is_due_at_its_numbers_only():
    """A container is a schedule of absolute numbers."""
    assert [n for n in range(9) if Batch([3, 1]).is_due(n)] == [1, 3]


@given(st.one_of(NUMBERS, st.lists(NUMBERS, min_size=1), st.builds(range, NUMBERS, st.integers(51, 60), NUMBERS)))
def test_next_due_is_the_first_later_number_at_which_the_unit_is_due(value):
    """next_due agrees with asking is_due number by number, and is_due with plain arithmetic."""
    unit = Batch(value)
    for count in range(61):
        expected = count > 0 and (count % value == 0 if isinstance(value, int) else count in value)
        assert unit.is_due(count) == expected
        later = [n for n in range(count + 1, 120) if unit.is_due(n)]
        assert unit.next_due(count) == (later[0] if later else None)


@pytest.mark.parametrize(
    "given_as",
    [[3, 1, 2, 3], (1, 2, 3), {1, 2, 3}, frozenset({3, 2, 1}), range(1, 4), range(3, 0, -1), np.array([1, 2, 3])],
)
def test_containers_of_any_kind_with_the_same_numbers_are_the_same_unit(given_as):
    """How a schedule was given shows neither in equality nor in the hash."""
    assert Epoch(given_as) == Epoch([1, 2, 3])
    assert hash(Epoch(given_as)) == hash(Epoch([1, 2, 3]))


def test_equality_is_by_kind_and_content():
    """Batch and Epoch of the same number differ, and so do a period and a schedule."""
    assert Batch(5) == Batch(np.int64(5)) == Batch(5)
    assert Batch(5) != Epoch(5)
    assert Batch(5) != Batch([5])
    assert Batch([1, 3]) != Batch(range(1, 4, 1))
    assert Batch(5) != 5
    assert len({Batch(5), Batch(5), Epoch(5), Batch([5])}) == 3


def test_units_print_as_they_are_written():
    """The repr shows the code that makes the unit."""
    shown = [repr(unit) for unit in (Batch(100), Epoch([3, 1]), Batch(range(5, 100, 5)), Batch(np.int32(7)))]
    assert shown == ["Batch(100)", "Epoch([1, 3])", "Batch(range(5, 100, 5))", "Batch(7)"]


def test_periods_of_one_kind_are_ordered_and_others_are_not():
    """Only two periods in the same unit can be compared."""
    assert Batch(2) < Batch(10) and Batch(10) >= Batch(10) and max(Epoch(1), Epoch(3)) == Epoch(3)
    for left, right in [(Batch(1), Epoch(2)), (Batch(1), Batch([2])), (Batch(1), 2)]:
        with pytest.raises(TypeError):
            assert left < right


def test_units_cannot_be_changed_and_can_be_copied_and_pickled():
    """A unit is frozen; its copies are equal to it."""
    unit = Batch([1, 3])
    with pytest.raises(AttributeError):
        unit.value = 3
    assert pickle.loads(pickle.dumps(unit)) == copy.deepcopy(unit) == unit


def test_a_long_range_is_kept_without_expanding_it():
    """A range of a million million numbers is taken, asked and hashed at once."""
    unit = Batch(range(10, 10**12, 10))
    assert isinstance(unit.value, range)
    assert unit.is_due(10**9) and unit.next_due(10**9) == 10**9 + 10 and not unit.is_period
    assert hash(unit) == hash(Batch(range(10, 10**12, 10)))


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), 1.0, "5", b"5", None, {1: 2}, iter([1]), (n for n in [1]), [1, 2.0], [True], ["1"], [[1]],
     Fraction(2), np.array([1.0]), np.array([True]), np.array([[1]]), Batch(1)],
    ids=lambda value: repr(value).partition(" at 0x")[0],
)  # fmt: skip
def test_what_is_no_int_and_no_container_of_ints_is_refused(value):
    """Booleans, floats, text, mappings and one-shot iterators are type errors that show what was received."""
    with pytest.raises(InvalidTypeError, match="Received: "):
        Batch(value)


@pytest.mark.parametrize(
    "value", [0, -3, [], (), set(), range(0), range(0, 5), range(5, -1, -1), [3, 0], np.array([], int)], ids=repr
)
def test_numbers_below_one_and_empty_containers_are_refused(value):
    """Counting begins at 1, and a schedule of nothing is a mistake."""
    with pytest.raises(InvalidValueError, match="Received: "):
        Epoch(value)


def test_the_base_of_the_units_counts_nothing():
    """TrainUnit itself cannot be made."""
    with pytest.raises(InvalidTypeError, match="Batch or Epoch"):
        TrainUnit(3)
