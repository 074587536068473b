"""What ``--search`` says of a parameter's values."""

from typing import Any

import pytest

import trainlab
from trainlab import Search
from trainlab.cli.search import _space
from trainlab.errors import InvalidValueError


@trainlab.experiment
@trainlab.parameter("name", str, default="none")
@trainlab.parameter("count", int, default=1)
@trainlab.parameter("rate", float | None, default=None)
@trainlab.parameter("flag", bool, default=False, is_flag=True)
def worded(params: dict[str, Any]) -> None:
    """Has a parameter of each kind."""


@pytest.mark.parametrize(
    ("text", "search"),
    [
        ("name=none,1,true", Search(choices=["none", "1", "true"])),
        ("count=1,2", Search(choices=[1, 2])),
        ("rate=none,1", Search(choices=[None, 1.0])),
        ("flag=true,false", Search(choices=[True, False])),
        ("count=1:8", Search(1, 8)),
        ("rate=log:1e-5:1", Search(1e-5, 1, log=True)),
        ("rate=0:1:0.25", Search(0, 1, step=0.25)),
    ],
)
def test_the_words_of_a_search(text: str, search: Search) -> None:
    """A choice is what it is after the parameter's own option: text for text, and none only where it can be none."""
    name = text.partition("=")[0]
    found = _space(worded, [text])[name]
    assert found == search
    assert list(map(type, found.choices or ())) == list(map(type, search.choices or ()))


def test_a_parameter_that_is_searched_twice() -> None:
    """A parameter that --search is given for twice is refused, and not searched as the last one says."""
    with pytest.raises(InvalidValueError, match="given twice for count. Received: 'count=3,4' too"):
        _space(worded, ["count=1,2", "count=3,4"])
