import enum
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainlab.runs.yaml_text import mask_command, to_yaml

yaml = pytest.importorskip("yaml", reason="an independent reader of YAML")

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(st.characters(codec="utf-8"))
)
KEYS = st.one_of(st.text(st.characters(codec="utf-8"), max_size=8), st.integers(), st.booleans())
TREES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3))


def without_secrets(tree: Any) -> bool:
    """Whether no key of the tree could be taken for a secret's."""
    if isinstance(tree, dict):
        return all(not isinstance(key, str) or key.isdigit() or len(key) < 3 for key in tree) and all(
            map(without_secrets, tree.values())
        )
    return all(map(without_secrets, tree)) if isinstance(tree, list) else True


@given(st.dictionaries(KEYS, TREES, max_size=4).filter(without_secrets))
def test_any_yaml_reader_gives_the_parameters_back(params: dict[Any, Any]) -> None:
    """Whatever the strings, numbers and nesting, params.yaml is YAML and means what was passed, types included."""
    read = yaml.safe_load(to_yaml(params))
    assert read == params
    assert repr(read) == repr(params)


def test_a_float_in_short_form_is_a_number() -> None:
    """A learning rate of 1e-05 is not read as text; infinities and NaN keep their meaning."""
    read = yaml.safe_load(to_yaml({"lr": 1e-5, "big": 1e300, "inf": math.inf, "low": -math.inf, "nan": math.nan}))
    assert read["lr"] == 1e-5
    assert read["big"] == 1e300
    assert (read["inf"], read["low"]) == (math.inf, -math.inf)
    assert math.isnan(read["nan"])


def test_other_objects_are_shown_as_people_would_write_them() -> None:
    """numpy numbers are numbers, tuples and sets lists, paths and enums their text."""
    color = enum.Enum("color", ["RED"])
    params = {"n": np.int64(3), "x": np.float32(0.5), "t": (1, 2), "s": {2, 1}, "p": Path("a/b"), "e": color.RED}
    assert yaml.safe_load(to_yaml(params)) == {
        "n": 3,
        "x": 0.5,
        "t": [1, 2],
        "s": [1, 2],
        "p": "a/b",
        "e": "color.RED",
    }


@pytest.mark.parametrize(
    ("argument", "shown"),
    [
        ("--db={password: hunter2, user: joe}", "--db={password: ***, user: joe}"),
        ('[{"api_key": "hunter2 x", "n": 1}]', '[{"api_key": ***, "n": 1}]'),
        ("db.password=hunter2", "db.password=***"),
        ("https://host/a?token=hunter2&b=1", "https://host/a?token=***&b=1"),
        ("a sentence with a key: in it", "a sentence with a key: in it"),
        ("{password: {a: hunter2}, b: 1}", "{password: ***, b: 1}"),
        ("{num_tokens: 3, monkey: x}", "{num_tokens: 3, monkey: x}"),
    ],
)
def test_secrets_inside_of_an_argument_are_masked(argument: str, shown: str) -> None:
    """A secret in a dict, in a pair or in the query of a URL on a command line is masked, and nothing else is."""
    assert mask_command([argument]) == [shown]


def test_parameters_that_contain_themselves_are_written() -> None:
    """A cycle does not stop a run from starting."""
    params: dict[str, Any] = {"a": 1}
    params["self"] = params
    assert yaml.safe_load(to_yaml(params))["self"]["a"] == 1


@pytest.mark.parametrize(
    "key",
    [
        *("password", "db_password", "api_key", "apiKey", "API_KEY", "token", "hf-token", "client_secret", "SECRET"),
        *("pwd", "Authorization"),
    ],
)
def test_what_looks_like_a_secret_is_masked(key: str) -> None:
    """A value under the name of a secret does not reach a file, nested values included."""
    assert "hunter2" not in to_yaml({"login": {key: "hunter2"}})
    assert "hunter2" not in to_yaml({key: {"a": ["hunter2"]}})
    assert mask_command([f"--{key}=hunter2", f"--{key}", "hunter2"]) == [f"--{key}=***", f"--{key}", "***"]


@pytest.mark.parametrize(
    ("key", "value"), [("num_tokens", 64), ("tokenizer", "bpe"), ("key_dim", 8), ("token", None), ("monkey", "x")]
)
def test_hyperparameters_that_only_sound_like_secrets_stay(key: str, value: object) -> None:
    """The parameters of a language model are recorded as they are."""
    assert yaml.safe_load(to_yaml({key: value})) == {key: value}
