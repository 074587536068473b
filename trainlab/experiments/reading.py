"""The values of an experiment's parameters, from all that was given for them; or all that is wrong with it."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from trainlab.errors import InvalidValueError
from trainlab.experiments.decorators import allowed_value
from trainlab.experiments.facts import fact_of, facts_of
from trainlab.experiments.given import Given, Rank, shortened
from trainlab.experiments.model_fields import Branch, Node
from trainlab.experiments.nested_values import place_in, secrets_in, unknown_keys
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.values import MASK, Values, secret_text
from trainlab.runs.masking import Masking
from trainlab.runs.yaml_text import secrets_of_text

__all__ = ["Reading"]


class Reading:
    """Makes the values of a run of what was given.

    Args:
        given: by the parameter's name.
        problems: what is known to be wrong already; is added to.
    """

    def __init__(self, given: Mapping[str, Given], problems: list[str]) -> None:
        self._given, self._problems = given, problems
        self._origins: dict[str, str] = {}
        self._secrets: list[str] = []
        self._secret_names: set[str] = set()
        self._used: dict[str, Parameter] = {}

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
        params = {parameter.name: self._single(parameter) for parameter in own}
        built = self._model(model) if model is not None else None
        if built is not None:
            params.update((name, getattr(built, name)) for name in type(built).model_fields)
        params.update((parameter.name, self._single(parameter)) for parameter in default)
        if self._problems:
            raise InvalidValueError(self.scrubbed("\n".join(dict.fromkeys(self._problems))))
        return Values(
            params=params,
            model=built,
            origins=self._origins,
            secrets=tuple(dict.fromkeys(self._secrets)),
            secret_names=frozenset(self._secret_names),
        )

    def scrubbed(self, text: str) -> str:
        """A text with the secrets that were given taken out."""
        return Masking(self._secrets).text(text)

    def _single(self, parameter: Parameter) -> Any:
        """The value of a parameter that is no field of a model."""
        given = self._note(parameter)
        if given is not None and given.value is None and parameter.is_default:
            given = None
            self._origins[parameter.name] = "default"
        if given is None:
            if parameter.required and not parameter.has_default:
                self._problems.append(_needed(parameter))
            factory = parameter.default_factory
            value = copy.deepcopy(parameter.default) if factory is None else factory()
            subject = f"the default of {parameter.name}"
            received = shortened(value, self.scrubbed)
        else:
            value, subject, received = (
                self._converted(parameter, given),
                given.subject,
                given.received(parameter, self.scrubbed),
            )
        if value is None and not parameter.required and not parameter.is_flag:
            return None
        if value is None and given is None:
            return None
        return self._validated(parameter, value, subject, received)

    def _validated(self, parameter: Parameter, given: Any, subject: str, received: str) -> Any:
        problem, value = None, given
        try:
            value = parameter.adapter.validate_python(given)
        except ValidationError as error:
            problem = facts_of(error, parameter, given)
        except InvalidValueError as error:
            problem = str(error)
        if problem is None:
            found, problem = allowed_value(parameter, value)
            value = found if problem is None else value
        if problem is not None:
            self._problems.append(f"{subject}: {problem}. Received: {received}.")
        else:
            self._note_secret(parameter, value)
            self._refuse_unknown(parameter, given, value)
        return value

    def _note(self, parameter: Parameter) -> Given | None:
        given = self._given.get(parameter.name)
        self._origins[parameter.name] = "default" if given is None else given.origin
        if parameter.is_secret:
            self._secret_names.add(parameter.name)
        if given is not None:
            self._note_secret(parameter, given.value)
            self._note_secrets_inside(parameter, given)
        return given

    def _note_secret(self, parameter: Parameter, value: Any) -> None:
        self._secrets += secret_text(value) if parameter.is_secret else secrets_in(value, parameter.annotation)

    def _note_secrets_inside(self, parameter: Parameter, given: Given) -> None:
        """Note those of a value that may turn out to be none that can be used, and is shown then."""
        if parameter.form not in ("yaml", "pairs"):
            return
        value = _as_given(given, parameter)
        self._note_secret(parameter, value)
        if given.rank in (Rank.COMMAND_LINE, Rank.ENVIRONMENT) and not isinstance(value, (Mapping, list)):
            self._note_words(given.value)

    def _note_words(self, words: Any) -> None:
        texts = words if isinstance(words, list) else [words]
        self._secrets += [secret for text in texts for secret in secrets_of_text(str(text))]

    def _refuse_unknown(self, parameter: Parameter, given: Any, made: Any) -> None:
        self._problems += unknown_keys(given, made, parameter.name)

    def _converted(self, parameter: Parameter, given: Given) -> Any:
        try:
            return given.value_for(parameter)
        except InvalidValueError as error:
            self._problems.append(f"{given.subject} {error}")
            return given.value

    def _model(self, branch: Branch) -> BaseModel | None:
        model: Any = branch.model
        before = len(self._problems)
        data = self._data(branch, PydanticUndefined)
        is_whole = len(self._problems) == before
        try:
            built: BaseModel = model.model_validate(data)
        except ValidationError as error:
            found: list[dict[str, Any]] = [dict(item) for item in error.errors(include_url=False)]
        else:
            self._look_into(built)
            return built
        # Of a model that lacks something only what was given can be judged.
        found = [item for item in found if item["type"] != "default_factory_not_called"]
        self._problems += [
            self._problem_of(branch, item) for item in found if is_whole or self._is_given(branch, item["loc"])
        ]
        return None

    def _is_given(self, branch: Branch, place: Sequence[Any]) -> bool:
        node, _ = _find(branch, place)
        return isinstance(node, Parameter) and node.name in self._given

    def _look_into(self, built: BaseModel) -> None:
        """Note the secrets of a model, and refuse what it was given and dropped."""
        for parameter in self._used.values():
            value: Any = built
            for part in parameter.name.split("."):
                value = getattr(value, part, None)
            self._note_secret(parameter, value)
            given = self._given.get(parameter.name)
            if given is not None:
                self._refuse_unknown(parameter, _as_given(given, parameter), value)

    def _data(self, branch: Branch, default: Any) -> dict[str, Any]:
        """What pydantic is given for a model: what was given, and what its default object has."""
        data: dict[str, Any] = {}
        for name, node in branch.children.items():
            value = self._value_of(node, getattr(default, name, PydanticUndefined))
            if value is not PydanticUndefined:
                data[branch.keys.get(name, name)] = value
        return data

    def _value_of(self, node: Node, default: Any) -> Any:
        if isinstance(node, Branch):
            return self._nested(node, default)
        given = self._note(node)
        self._used[node.name] = node
        if given is not None:
            return self._converted(node, given)
        if default is PydanticUndefined and node.required:
            self._problems.append(_needed(node))
        return default

    def _nested(self, branch: Branch, default: Any) -> Any:
        if default is PydanticUndefined:
            default = branch.get_default()
        switch = self._given.get(branch.name)
        below = [given for name, given in self._given.items() if name.startswith(f"{branch.name}.")]
        highest = max((given.rank for given in below if given.rank is not Rank.ENVIRONMENT), default=-1)
        if switch is not None and switch.rank >= highest:
            if switch.rank == highest:
                self._problems.append(f"{switch.subject} is given, and so are parameters of its own. Take one out.")
            return self._switched(branch, switch)
        if default is None and highest < 0:
            self._origins[branch.name] = "default"
            return None
        if branch.variants:
            return self._variant(branch, default)
        self._origins.pop(branch.name, None)
        return self._data(branch, default)

    def _switched(self, branch: Branch, switch: Given) -> Any:
        is_none = switch.value in (None, ["none"], ["null"])
        if not (is_none and branch.is_optional):
            names = ", ".join(f"{branch.name}.{name}" for name in branch.children)
            self._note_words(switch.value)
            self._secrets += secrets_in(switch.value)
            takes = "none, or its own parameters" if branch.is_optional else "its own parameters"
            self._problems.append(
                f"{switch.subject} takes {takes}: {names}. Received: {shortened(switch.value, self.scrubbed)}."
            )
        self._origins[branch.name] = switch.origin
        return None

    def _variant(self, branch: Branch, default: Any) -> Any:
        kind = branch.children[branch.discriminator]
        given = self._value_of(kind, getattr(default, branch.discriminator, PydanticUndefined))
        tag = str(getattr(given, "value", given))
        chosen = branch.variants.get(tag)
        if given is PydanticUndefined:
            if isinstance(kind, Parameter) and not kind.required:  # else it is told already
                self._problems.append(_needed(kind))
            return PydanticUndefined
        source = self._given.get(kind.name)
        if chosen is None:
            received = (
                source.received(kind, self.scrubbed)
                if source is not None and isinstance(kind, Parameter)
                else shortened(given, self.scrubbed)
            )
            subject = source.subject if source is not None else kind.name
            self._problems.append(f"{subject}: must be one of {', '.join(branch.variants)}. Received: {received}.")
            return PydanticUndefined
        self._refuse_others(branch, chosen, tag, source)
        if getattr(default, branch.discriminator, None) != given:
            default = PydanticUndefined
        return {branch.discriminator: given, **self._data(chosen, default)}

    def _refuse_others(self, branch: Branch, chosen: Branch, tag: str, source: Given | None) -> None:
        """Say which values are of a variant that is not chosen; those of the old choice of a weaker source are left."""
        rank = Rank.DEFAULT if source is None else source.rank
        for name, given in self._given.items():
            head = name.removeprefix(f"{branch.name}.").partition(".")[0]
            if not name.startswith(f"{branch.name}.") or head == branch.discriminator or head in chosen.children:
                continue
            owners = [kind for kind, variant in branch.variants.items() if head in variant.children]
            if given.rank >= rank and given.rank is not Rank.ENVIRONMENT:
                option = f"{branch.name}.{branch.discriminator}"
                how = f"{source.origin}" if source is not None else "its default"
                self._problems.append(
                    f"{given.subject} belongs to {option} {' or '.join(owners)}, and {tag} is chosen ({how})."
                )

    def _problem_of(self, branch: Branch, error: dict[str, Any]) -> str:
        node, rest = _find(branch, error["loc"])
        if isinstance(node, Branch):
            subject = f"{node.name}: " if node.name else ""
            return f"{subject}{fact_of(error, None)}."
        given = self._given.get(node.name)
        subject = given.subject if given is not None else f"the default of {node.name}"
        received = (
            given.received(node, self.scrubbed) if given is not None else shortened(error["input"], self.scrubbed)
        )
        place = place_in(node.name, rest, _as_given(given, node))
        item = f", item {rest[0] + 1}" if rest and isinstance(rest[0], int) else ""
        if node.is_secret:
            received = MASK
        if place is not None:
            return f"{subject}: {place} {fact_of(error, node)}. Received: {received}."
        return f"{subject}{item}: {fact_of(error, node)}. Received: {received}."


def _find(branch: Branch, place: Sequence[Any]) -> tuple[Node, Sequence[Any]]:
    """The parameter or model that an error of pydantic is about, and where in its value."""
    node: Node = branch
    for count, part in enumerate(place):
        if isinstance(node, Parameter):
            return node, place[count:]
        if part in node.variants:
            node = node.variants[part]
            continue
        names = {key: name for name, key in node.keys.items()}
        node = node.children.get(names.get(part, part), node)
    return node, ()


def _as_given(given: Given | None, parameter: Parameter) -> Any:
    try:
        return None if given is None else given.value_for(parameter)
    except InvalidValueError:
        return None


def _needed(parameter: Parameter) -> str:
    variable = f", or the environment variable {parameter.envvar}" if parameter.envvar else ""
    return f"{parameter.option} is needed: give it{variable}, or {parameter.name} in a params file or a call."
