"""Values: what an experiment's parameters have become for one run, and where each came from."""

import json
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, RootModel, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

from trainlab.experiments.aliases import as_input, paths_of
from trainlab.runs.masking import MASK, mask_passwords
from trainlab.runs.yaml_text import masked

__all__ = ["LEFT_OUT", "MASK", "Values", "as_plain", "has_secret", "secret_text"]

LEFT_OUT = object()


@dataclass(frozen=True, repr=False)
class Values:
    """The values of one run's parameters; can be pickled if they can.

    Attributes:
        params: by name: the user's own, then those that every experiment has. Of a model, its fields' values.
        model: the pydantic model that the main function takes; None where it takes a dict.
        origins: where each value came from, by the parameter's name ("lr", "optimizer.lr"): "command line",
            "environment variable LR", "params file /x.yaml", "call" or "default".
        secrets: the texts of the secret values, which must not be written anywhere.
        secret_names: the parameters whose values are secret.
        fields: of each nested model the fields that are parameters, by the name of the field that holds it.
        forms: values as plain data that reads back to them, where that is not ``as_plain``, by the parameter's name.
        inputs: what was given, as plain data, by the parameter's name; without what has secrets inside.
    """

    params: dict[str, Any]
    model: BaseModel | None = None
    origins: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    secret_names: frozenset[str] = frozenset()
    fields: dict[str, tuple[str, ...]] = field(default_factory=dict)
    forms: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"Values({self.plain()})"

    def plain(self, instead: Mapping[str, Any] | None = None, *, reveals: bool = False) -> dict[str, Any]:
        """The values as data that YAML and JSON know, nested as the models are.

        Secrets, and the passwords of URLs, are "***", which counts as not given in a params file.

        Args:
            instead: other plain data for some parameters, by name; those with ``LEFT_OUT`` are left out. Default: none.
            reveals: whether secrets are shown, to read the values again in this process. Default False.

        Returns:
            A new dict.
        """
        found = {name: self._plain(value, name, instead or {}, reveals) for name, value in self.params.items()}
        return {name: value for name, value in found.items() if value is not LEFT_OUT}

    def _plain(self, value: Any, name: str, instead: Mapping[str, Any], reveals: bool) -> Any:
        if name in self.fields and isinstance(value, BaseModel):
            inner = {key: getattr(value, key, None) for key in self.fields[name]}
            found = {key: self._plain(one, f"{name}.{key}", instead, reveals) for key, one in inner.items()}
            return {key: one for key, one in found.items() if one is not LEFT_OUT}
        if name in instead:
            value = instead[name]
            return value if reveals or value is LEFT_OUT else _masked(value)
        if name in self.secret_names and value is not None:
            return value if reveals else MASK
        plain = self.forms[name] if name in self.forms else as_plain(value, reveals=reveals)
        return plain if reveals else _masked(plain)


def as_plain(value: Any, *, reveals: bool = False) -> Any:
    """One value as data that YAML and JSON know: a path as text, a set as a list, an enum's member as its value.

    A model or a dataclass becomes a dict with the names that pydantic takes its fields under.

    Args:
        value: anything.
        reveals: whether secrets are shown. Default False.

    Returns:
        None, a bool, a number, a text, or lists and dicts of these; what is none of them as its ``str``.
    """
    if isinstance(value, (SecretStr, SecretBytes)):
        return as_plain(value.get_secret_value()) if reveals else MASK
    if isinstance(value, RootModel):
        return as_plain(value.root, reveals=reveals)
    paths = paths_of(type(value))
    if paths is not None:
        fields = {name: as_plain(getattr(value, name, None), reveals=reveals) for name in paths}
        extra = as_plain(getattr(value, "__pydantic_extra__", None) or {}, reveals=reveals)
        return as_input(type(value), fields) | extra
    if isinstance(value, Mapping):
        return {_key(key): as_plain(inner, reveals=reveals) for key, inner in value.items()}
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple, deque)):
        return [as_plain(item, reveals=reveals) for item in value]
    if isinstance(value, (bytes, bytearray)):
        return value.decode(errors="backslashreplace")
    if isinstance(value, Iterator):
        return str(value)  # to look into it would use it up
    return to_jsonable_python(value, fallback=str, inf_nan_mode="constants")


def has_secret(value: Any) -> bool:
    """Whether a value of a secret type is inside of another."""
    return repr(as_plain(value)) != repr(as_plain(value, reveals=True))


def _key(key: Any) -> str:
    """A key of a mapping as text, as it would be given on a command line."""
    plain = as_plain(key)
    return json.dumps(plain) if isinstance(plain, (list, dict)) else str(plain)


def secret_text(value: Any) -> tuple[str, ...]:
    """The texts of a secret value, of each item if it has several."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, SecretBytes):
        value = value.get_secret_value()
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, (list, tuple, set, frozenset)):
        return tuple(text for item in value for text in secret_text(item))
    if isinstance(value, Mapping):
        return secret_text([*value.values()])
    return (value,) if isinstance(value, str) and value else ()


def _masked(value: Any) -> Any:
    """The same with the secrets of a dict masked, by their keys, and the passwords of URLs."""
    if isinstance(value, str):
        return mask_passwords(value) if "=" in value or "://" in value else value
    if isinstance(value, list):
        return [_masked(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {key: _masked(inner) for key, inner in masked(value).items()}
