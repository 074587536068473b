"""Values: what an experiment's parameters have become for one run, and where each came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic_core import to_jsonable_python

from trainlab.runs.yaml_text import masked

__all__ = ["MASK", "Values"]

MASK = "***"


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
    """

    params: dict[str, Any]
    model: BaseModel | None = None
    origins: dict[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    secret_names: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        return f"Values({self.plain()})"

    def plain(self) -> dict[str, Any]:
        """The values as data that YAML and JSON know, nested as the models are.

        Written to a file and given back as ``--params-file``, they give the same values; secrets are "***", which
        counts as not given.

        Returns:
            A new dict.
        """
        return {name: self._plain(value, name) for name, value in self.params.items()}

    def _plain(self, value: Any, name: str) -> Any:
        if name in self.secret_names and value is not None:
            return MASK
        if isinstance(value, BaseModel):
            fields = {key: getattr(value, key) for key in type(value).model_fields}
            return {key: self._plain(inner, f"{name}.{key}") for key, inner in fields.items()}
        return _masked(as_plain(value))


def as_plain(value: Any) -> Any:
    """One value as data that YAML and JSON know: a path as text, a set as a list, an enum's member as its value.

    Args:
        value: anything.

    Returns:
        None, a bool, a number, a text, or lists and dicts of these; what is none of them as its ``str``.
    """
    if isinstance(value, (SecretStr, SecretBytes)):
        return MASK
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(as_plain(key)): as_plain(inner) for key, inner in value.items()}
    if isinstance(value, (set, frozenset)):
        value = sorted(value, key=str)
    if isinstance(value, (list, tuple)):
        return [as_plain(item) for item in value]
    return to_jsonable_python(value, fallback=str, inf_nan_mode="constants")


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
    """The same with the secrets of a dict masked, by their keys."""
    if isinstance(value, list):
        return [_masked(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    return masked(value)
