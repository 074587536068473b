"""Secrets that are known by their text."""

import json
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainlab.runs.masking import Masking

texts = st.text(st.characters(codec="utf-8"), max_size=30)
secrets = st.text(st.characters(codec="utf-8"), min_size=4, max_size=20).filter(lambda text: "*" not in text)


FORMS = [str, lambda s: repr(s)[1:-1], lambda s: json.dumps(s)[1:-1], quote, quote_plus]


@given(secrets, texts, texts, st.sampled_from(FORMS))
def test_a_secret_is_in_no_masked_text(secret: str, before: str, after: str, form: Any) -> None:
    """Whatever stands around it, and as repr, JSON or a URL write it, a secret of four characters or more is gone."""
    masked = Masking([secret]).text(before + form(secret) + after)
    assert secret not in masked and form(secret) not in masked


@given(texts)
def test_what_has_no_secret_is_left_as_it_is(text: str) -> None:
    """Texts and data without a secret come out as they are."""
    masking = Masking(["never-in-there-at-all", ""])
    assert masking.text(text) == text and masking.data({"a": [text, 1, None, 2.5]}) == {"a": [text, 1, None, 2.5]}


@pytest.mark.parametrize(("text", "masked"), [("1 of 10", "*** of 10"), ("is=1", "is=***"), ("v10", "v10")])
def test_a_short_secret_is_masked_as_a_word(text: str, masked: str) -> None:
    """A secret of a character or two is hidden where it stands alone, and does not riddle other words and numbers."""
    assert Masking(["1"]).text(text) == masked


def test_secrets_are_masked_in_nested_data() -> None:
    """In data, keys, values and the text of objects are masked at any depth; of two secrets the longer one first."""
    masking = Masking(["abcd", "abcd-long"])
    data = {"x abcd": [("abcd-long", ValueError("abcd!"))], "n": 3, "t": True}
    assert masking.data(data) == {"x ***": [["***", "***!"]], "n": 3, "t": True}
