"""The values of an experiment's parameters, from all that was given for them; or all that is wrong with it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from trainlab.errors import InvalidValueError
from trainlab.experiments.annotations import choice_text
from trainlab.experiments.building import Building
from trainlab.experiments.facts import allowed_value, facts_of
from trainlab.experiments.given import Given, shortened
from trainlab.experiments.kept_defaults import check_kept_default
from trainlab.experiments.model_fields import Branch, leaves
from trainlab.experiments.nested_values import unknown_keys
from trainlab.experiments.noted import Noted, needed, secrets_of
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.plain_forms import given_form, plain_form
from trainlab.experiments.values import Values, has_secret

__all__ = ["Reading"]

_SCALARS = {type(None), bool, int, float, str}


class Reading:
    """Makes the values of a run of what was given.

    Args:
        given: by the parameter's name.
        problems: what is known to be wrong already; is added to.

    Attributes:
        failed: the names of the parameters and models that something is wrong with.
    """

    def __init__(self, given: Mapping[str, Given], problems: list[str]) -> None:
        self._given, self._problems = given, problems
        self._noted = Noted(given, problems)
        self.failed = self._noted.failed
        self._origins: dict[str, str] = {}
        self._secrets: list[str] = []
        self._secret_names: set[str] = set()
        self._fields: dict[str, tuple[str, ...]] = {}
        self._forms: dict[str, Any] = {}
        self._inputs: dict[str, Any] = {}

    def values(self, model: Branch | None, own: Sequence[Parameter], default: Sequence[Parameter]) -> Values:
        """Make them.

        Args:
            model: what the main function takes; None for a dict.
            own: the parameters that the user declared.
            default: those that every experiment has.

        Returns:
            The values.

        Raises:
            InvalidValueError: something cannot be used; all of it is told.
        """
        for parameter in (*own, *(() if model is None else leaves(model)), *default):
            self._noted.look_for_secrets(parameter)
        params = {parameter.name: self._single(parameter) for parameter in own}
        built = None if model is None else Building(self._noted).built(model)
        if model is not None and built is not None:
            whole = self._given.get("")
            self._look_into(model, built, "default" if whole is None else whole.origin)
            params.update((name, getattr(built, name)) for name in model.children)
        params.update((parameter.name, self._single(parameter)) for parameter in default)
        if self._problems:
            raise InvalidValueError(self._noted.scrubbed("\n".join(dict.fromkeys(self._problems))))
        return Values(
            params=params,
            model=built,
            origins=self._origins,
            secrets=tuple(dict.fromkeys(self._secrets)),
            secret_names=frozenset(self._secret_names),
            fields=self._fields,
            forms=self._forms,
            inputs=self._inputs,
        )

    def _single(self, parameter: Parameter) -> Any:
        """The value of a parameter that is no field of a model."""
        given = self._given.get(parameter.name)
        if given is not None and given.is_made:
            self._note(parameter, given.value, given, given.origin)
            return given.value
        if given is not None and given.value is None and parameter.is_default:
            given = None
        value = self._value_of_single(parameter, given)
        self._note(parameter, value, given, "default")
        return value

    def _value_of_single(self, parameter: Parameter, given: Given | None) -> Any:
        if given is None:
            if parameter.required and not parameter.has_default:
                self._noted.tell(parameter.name, needed(parameter))
            factory = parameter.default_factory
            value = copy.deepcopy(parameter.default) if factory is None else factory()
            subject = f"the default of {parameter.name}"
            self._noted.hide(secrets_of(parameter, value))
            received = shortened(value, self._noted.scrubbed)
        else:
            value, subject = self._noted.converted(parameter, given), given.subject
            received = given.received(parameter, self._noted.scrubbed)
        if value is None and (given is None or (not parameter.required and not parameter.is_flag)):
            return None
        return self._validated(parameter, value, subject, received)

    def _validated(self, parameter: Parameter, given: Any, subject: str, received: str) -> Any:
        problem, value = None, given
        try:
            value = parameter.adapter.validate_python(given)
        except ValidationError as error:
            problem = facts_of(error, parameter, given)
        if problem is None:
            found, problem = allowed_value(parameter, value)
            value = found if problem is None else value
        if problem is not None:
            self._noted.tell(parameter.name, f"{subject}: {problem}. Received: {received}.")
        return value

    def _look_into(self, branch: Branch, model: BaseModel, origin: str) -> None:
        """Note what the fields of a model have become, and refuse what was given for them and dropped."""
        for name, node in branch.children.items():
            value = getattr(model, name, None)
            if isinstance(node, Parameter):
                self._note(node, value, self._noted.counted.get(node.name), origin)
                self._check_factory(node, value, origin)
            else:
                self._look_into_branch(node, value, origin)

    def _look_into_branch(self, branch: Branch, value: Any, origin: str) -> None:
        own = self._noted.counted.get(branch.name)
        origin = origin if own is None else own.origin
        kind: Any = branch.children.get(branch.discriminator) if branch.variants else None
        tag = choice_text(getattr(value, branch.discriminator, None))
        chosen = branch if kind is None else branch.variants.get(tag)
        if not isinstance(value, BaseModel) or chosen is None:
            self._origins[branch.name] = origin
            return
        names = {*chosen.children, branch.discriminator}
        self._fields[branch.name] = tuple(name for name in type(value).model_fields if name in names)
        if kind is not None:
            self._note(kind, getattr(value, branch.discriminator), self._noted.counted.get(kind.name), origin)
        self._look_into(chosen, value, origin)

    def _note(self, parameter: Parameter, value: Any, given: Given | None, origin: str) -> None:
        """Note where a value came from, its secrets, how it is recorded, and which keys of it are not known."""
        name = parameter.name
        self._origins[name] = origin if given is None else given.origin
        if parameter.is_secret:
            self._secret_names.add(name)
        self._secrets += secrets_of(parameter, value)
        raw = self._noted.raw(parameter, given)
        if given is not None:
            self._secrets += secrets_of(parameter, raw)
            for problem in () if given.is_made else unknown_keys(raw, value, name):
                self._noted.tell(name, problem)
        if self._problems or parameter.is_secret:
            return
        is_plain = type(value) in _SCALARS
        if not is_plain and has_secret(value):
            return
        if given is not None:
            self._inputs[name] = given_form(parameter, raw)
        if not is_plain:
            self._forms[name] = plain_form(parameter, value, self._inputs.get(name))

    def _check_factory(self, parameter: Parameter, value: Any, origin: str) -> None:
        """Check what the factory of a field has made, which pydantic does not."""
        is_made = parameter.default_factory is not None and parameter.name not in self._noted.counted
        if not is_made or origin != "default":
            return
        try:
            check_kept_default(parameter, value)
        except InvalidValueError as error:
            self._noted.tell(parameter.name, str(error))
