"""param_matrix: combinations of values."""

import math
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from trainlab.sweeps import param_matrix

SINGLE = st.one_of(st.integers(), st.text(), st.none(), st.dictionaries(st.text(), st.integers(), max_size=2))
VALUES = st.one_of(SINGLE, st.lists(st.integers(), max_size=3), st.lists(st.text(), max_size=3).map(tuple))


def test_the_last_argument_varies_fastest() -> None:
    """Lists and tuples are alternatives, texts and all else the same everywhere, in the order of the arguments."""
    assert param_matrix(lr=[0.1, 0.01], name="ab", depth=(2, 3), shape=[[1, 2]]) == [
        {"lr": 0.1, "name": "ab", "depth": 2, "shape": [1, 2]},
        {"lr": 0.1, "name": "ab", "depth": 3, "shape": [1, 2]},
        {"lr": 0.01, "name": "ab", "depth": 2, "shape": [1, 2]},
        {"lr": 0.01, "name": "ab", "depth": 3, "shape": [1, 2]},
    ]
    assert param_matrix() == [{}]


@given(st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), VALUES, max_size=4))
def test_each_combination_is_there_once(values: dict[str, Any]) -> None:
    """As many dicts as combinations, each with all names in order, and any one told by its number."""
    alternatives = {name: value if isinstance(value, list | tuple) else [value] for name, value in values.items()}
    found = param_matrix(**values)
    assert len(found) == math.prod(map(len, alternatives.values()))
    for number, one in enumerate(found):
        assert list(one) == list(values)
        for name in reversed(values):
            number, index = divmod(number, len(alternatives[name]))
            assert one[name] == alternatives[name][index]
