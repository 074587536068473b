"""Reading a sweep's list of parameters: all of it, before the first run starts."""

import hashlib
import json
import logging
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, SecretBytes, SecretStr

from trainlab.errors import InvalidTypeError, InvalidValueError, TrainlabError
from trainlab.experiments.values import as_plain
from trainlab.launch.call import can_import_main
from trainlab.runs.listing import value_at
from trainlab.runs.masking import MASK
from trainlab.runs.plain_numbers import standard_json

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment
    from trainlab.experiments.values import Values

__all__ = ["Member", "keyed", "module_of", "own_values", "read_members", "refuse_local"]

logger = logging.getLogger("trainlab.sweeps")
_SHOWN_ERRORS = 20
_LABEL = 60
_VALUE = 24
_ABSENT = object()


@dataclass(frozen=True)
class Member:
    """One entry of a sweep's list.

    Args:
        params: as given.
        values: what the experiment has made of them.
        given: the values that are given, plain and with secrets masked, by the parameter's name ("optimizer.lr").
        key: what the entry is told apart by, whatever its place in the list; ``keyed`` tells secrets apart, too.
        differing: those of ``given`` that are not the same in all entries.
    """

    params: Mapping[str, Any] | BaseModel
    values: "Values"
    given: Mapping[str, Any]
    key: str
    differing: Mapping[str, Any]

    @property
    def has_secrets(self) -> bool:
        """Whether what is given has secrets, which ``given`` does not tell apart."""
        return json.dumps(MASK) in _text(self.given)

    @property
    def label(self) -> str:
        """What differs, for people and folders: "lr=0.1,depth=2"; "" if nothing does."""
        text = ",".join(f"{name}={_short(value)}" for name, value in self.differing.items())
        return re.sub(r"[^\w.+=,-]+", "-", text)[:_LABEL].strip("-,.")


def read_members(experiment: "Experiment", list_of_params: Iterable[Mapping[str, Any] | BaseModel]) -> list[Member]:
    """Read the parameters of all runs.

    Args:
        experiment: what they are for.
        list_of_params: the parameters of each run by name.

    Returns:
        An entry for each, in order.

    Raises:
        InvalidTypeError: something is of a type that cannot be used.
        InvalidValueError: parameters cannot be used, all told at once; or there are none.
    """
    params = _checked(list_of_params)
    read, problems = [], []
    for index, one in enumerate(params):
        try:
            read.append(experiment.read(one))
        except TrainlabError as error:
            problems.append(f"entry {index}: {error}")
    if problems:
        more = f"\n… and {len(problems) - _SHOWN_ERRORS} more" if len(problems) > _SHOWN_ERRORS else ""
        raise InvalidValueError(
            f"Nothing was started, for of {len(params)} entries of the list {len(problems)} cannot be used:\n"
            + "\n".join(problems[:_SHOWN_ERRORS])
            + more
        )
    given = [_given(values) for values in read]
    keys = [key for key, _ in _numbered([_hash(_text(one)) for one in given])]
    constant = _constant(given)
    return [
        Member(one, values, mine, key, {name: value for name, value in mine.items() if name not in constant})
        for one, values, mine, key in zip(params, read, given, keys, strict=True)
    ]


def keyed(members: Sequence[Member], salt: str) -> list[Member]:
    """Give entries keys by which also those are told apart that differ in a secret alone.

    Args:
        members: the entries.
        salt: random, and kept with the sweep, so that the keys are the same again and do not tell the secrets.

    Returns:
        The entries in order; of equal ones, which are runs of their own, the second's key ends in "-2" and so on.
    """
    numbered = _numbered([_key(one, salt) for one in members])
    repeated = sum(number > 1 for _, number in numbered)
    if repeated:
        logger.warning(
            "%d of %d entries of the sweep's list are there already; each is made, as a run of its own.",
            *(repeated, len(members)),
        )
    return [replace(one, key=key) for one, (key, _) in zip(members, numbered, strict=True)]


def own_values(experiment: "Experiment", values: "Values") -> dict[str, str]:
    """The values that make a run what it is: those of the experiment's own parameters, unless they are drawn anew.

    Args:
        experiment: it.
        values: of its parameters.

    Returns:
        JSON by the parameter's name, with secrets masked.
    """
    plain, found = values.plain(), {}
    for parameter in experiment.parameters:
        name = parameter.name
        is_drawn = parameter.default_factory is not None and values.origins.get(name) == "default"
        if not parameter.is_default and not is_drawn and (value := value_at(plain, name, _ABSENT)) is not _ABSENT:
            found[name] = _text(standard_json(value))
    return found


def refuse_local(experiment: "Experiment") -> None:
    """Refuse an experiment that no new process finds.

    Args:
        experiment: it.

    Raises:
        InvalidValueError: it is defined inside of a function.
    """
    if "<locals>" in experiment.__qualname__ and (experiment.__module__ != "__main__" or can_import_main()):
        raise InvalidValueError(
            "Each run has a process of its own, and none finds an experiment that is defined inside of a function. "
            f"Received: {experiment.__qualname__} of {experiment.__module__}. Define it at the top level of a module, "
            "or of the script."
        )


def module_of(experiment: "Experiment") -> str:
    """Where an experiment is defined, however its program was started.

    Args:
        experiment: it.

    Returns:
        A module's name; of a script the file's, without its folder.
    """
    module: str = experiment.main.__module__
    if module not in ("__main__", "__mp_main__"):
        return module
    program = sys.modules[module]
    spec = getattr(program, "__spec__", None)
    return spec.name if spec is not None else Path(getattr(program, "__file__", None) or module).stem


def _checked(list_of_params: Iterable[Mapping[str, Any] | BaseModel]) -> list[Mapping[str, Any] | BaseModel]:
    if isinstance(list_of_params, Mapping | str | BaseModel) or not isinstance(list_of_params, Iterable):
        raise InvalidTypeError(
            f"A sweep gets a list of dicts, one for each run. Received: {type(list_of_params).__name__}. For every "
            "combination of some values there is trainlab.param_matrix(...)."
        )
    params = list(list_of_params)
    for index, one in enumerate(params):
        if not isinstance(one, Mapping | BaseModel):
            raise InvalidTypeError(
                f"Each entry of the list is a dict of parameters, or the experiment's model. Received: {one!r} as "
                f"entry {index}."
            )
    if not params:
        raise InvalidValueError("A sweep has at least one run. Received: an empty list.")
    return params


def _given(values: "Values") -> dict[str, Any]:
    plain = values.plain()
    return {name: value_at(plain, name) for name, origin in values.origins.items() if origin == "call"}


def _key(member: Member, salt: str) -> str:
    shown = _text(member.given)
    whole = _text({name: _unmasked(_found(member.values.params, name)) for name in member.given})
    return _hash(shown if shown == whole else salt + whole)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _numbered(keys: Sequence[str]) -> list[tuple[str, int]]:
    """The keys, each with the how manieth of its kind it is, which is told at its end from the second on."""
    counts: Counter[str] = Counter()
    found = []
    for key in keys:
        counts[key] += 1
        found.append((key if counts[key] == 1 else f"{key}-{counts[key]}", counts[key]))
    return found


def _found(params: Any, name: str) -> Any:
    """A parameter's value as the main function gets it."""
    found: Any = params
    for part in name.split("."):
        found = found.get(part) if isinstance(found, Mapping) else getattr(found, part, None)
    return found


def _unmasked(value: Any) -> Any:
    """A value as plain data, with its secrets."""
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, SecretBytes):
        return value.get_secret_value().hex()
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        return {str(as_plain(key)): _unmasked(inner) for key, inner in value.items()}
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        return [_unmasked(item) for item in value]
    return as_plain(value)


def _constant(given: Sequence[Mapping[str, Any]]) -> set[str]:
    first = given[0]
    return {name for name in first if all(name in one and _text(one[name]) == _text(first[name]) for one in given)}


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    # Of a path the end tells more than the beginning.
    return text if len(text) <= _VALUE else text[-_VALUE:]
