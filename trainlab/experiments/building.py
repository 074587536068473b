"""Building: the model that a main function takes, made by pydantic of what was given for its fields.

Where nothing was given pydantic puts in its own default; a model that was given, or is a default, is handed on as it
is, for it is validated already; and one that something is given for in part is validated with what it was made of.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticUndefined

from trainlab.experiments.aliases import as_input, paths_of
from trainlab.experiments.annotations import choice_text
from trainlab.experiments.facts import fact_of
from trainlab.experiments.given import PRESENT, Given, Rank, shortened
from trainlab.experiments.model_fields import Branch, Node, leaves
from trainlab.experiments.nested_values import place_in, secrets_in
from trainlab.experiments.noted import Noted, needed
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.sameness import is_same
from trainlab.experiments.values import MASK

__all__ = ["Building"]

_NOTHING = -1


class Building:
    """Makes a model.

    Args:
        noted: what was given.
    """

    def __init__(self, noted: Noted) -> None:
        self._noted, self._given = noted, noted.given
        self._before = len(noted.problems)

    def built(self, branch: Branch) -> BaseModel | None:
        """Make the model.

        Args:
            branch: its fields.

        Returns:
            The model; None if something is wrong, which is noted.
        """
        whole = self._given.get("")
        if whole is not None:
            self._noted.counted[""] = whole
            found = self._changed(branch, whole.value, self._children(branch, whole.value, whole.rank))
            if isinstance(found, dict):
                found = self._validated(branch, type(whole.value), found)
        else:
            found = self._validated(branch, branch.model, self._children(branch, PydanticUndefined, _NOTHING))
        return None if found is PydanticUndefined else found

    def _children(self, branch: Branch, base: Any, floor: int) -> dict[str, Any]:
        """What was given for the fields of a model, by name.

        Args:
            branch: the model.
            base: what it has otherwise; PydanticUndefined for the defaults of its class.
            floor: what comes from a source up to this one does not count.
        """
        data: dict[str, Any] = {}
        for name, node in branch.children.items():
            of_base = _part(base, name)
            value = (
                self._nested(node, of_base, floor) if isinstance(node, Branch) else self._single(node, of_base, floor)
            )
            if value is not PydanticUndefined:
                data[name] = value
        return data

    def _single(self, parameter: Parameter, of_base: Any, floor: int) -> Any:
        given = self._counting(parameter.name, floor)
        if given is not None:
            return self._noted.converted(parameter, given)
        if of_base is PydanticUndefined and parameter.required:
            self._noted.tell(parameter.name, needed(parameter))
        return PydanticUndefined

    def _counting(self, name: str, floor: int) -> Given | None:
        given = self._given.get(name)
        if given is None or given.rank <= floor:
            return None
        self._noted.counted[name] = given
        return given

    def _nested(self, branch: Branch, base: Any, floor: int) -> Any:
        own = self._given.get(branch.name)
        own = own if own is not None and own.rank > floor else None
        if own is not None and isinstance(own.value, _classes(branch)):
            return self._of_model(branch, own)
        highest = max((rank for rank in self._below(branch, floor) if rank is not Rank.ENVIRONMENT), default=_NOTHING)
        is_present = own is not None and own.value is PRESENT
        if own is not None and not is_present and own.rank >= highest:
            self._refuse_both(branch, own)
            return self._switched(branch, own)
        if not is_present and not self._below(branch, floor):
            # Its parent has it, or pydantic its default.
            is_missing = branch.is_required and base is PydanticUndefined
            return self._made_of(branch, PydanticUndefined, floor) if is_missing else PydanticUndefined
        if base is PydanticUndefined:
            base = branch.get_default()
        if base is None and not is_present and highest == _NOTHING:
            return PydanticUndefined  # a variable alone makes no model
        return self._made_of(branch, PydanticUndefined if base is None else base, floor)

    def _below(self, branch: Branch, floor: int) -> list[Rank]:
        """The sources of what was given for the parameters of a nested model."""
        start = f"{branch.name}."
        return [given.rank for name, given in self._given.items() if name.startswith(start) and given.rank > floor]

    def _of_model(self, branch: Branch, own: Given) -> Any:
        """A model that was given, with what stronger sources say."""
        self._refuse_both(branch, own)
        self._noted.counted[branch.name] = own
        return self._made_of(branch, own.value, own.rank) if self._below(branch, own.rank) else _copied(own.value)

    def _refuse_both(self, branch: Branch, own: Given) -> None:
        if own.rank in self._below(branch, _NOTHING):
            problem = f"{own.subject} is given, and so are parameters of its own. Take one out."
            self._noted.tell(branch.name, problem)

    def _switched(self, branch: Branch, switch: Given) -> Any:
        is_none = switch.value is None or str(switch.value).lower() in ("['none']", "['null']")
        if not (is_none and branch.is_optional):
            names = ", ".join(f"{branch.name}.{name}" for name in branch.children)
            self._noted.hide_words(switch.value)
            self._noted.hide(secrets_in(switch.value))
            takes = "none, or its own parameters" if branch.is_optional else "its own parameters"
            received = shortened(switch.value, self._noted.scrubbed)
            self._noted.tell(branch.name, f"{switch.subject} takes {takes}: {names}. Received: {received}.")
        self._noted.counted[branch.name] = switch
        return None

    def _made_of(self, branch: Branch, base: Any, floor: int) -> Any:
        """What pydantic is given for a nested model."""
        if branch.variants:
            return self._variant(branch, base, floor)
        return self._merged(branch, base, self._children(branch, base, floor))

    def _merged(self, branch: Branch, base: Any, data: dict[str, Any]) -> Any:
        model: Any = branch.model
        if not isinstance(base, BaseModel):
            return {**(base if isinstance(base, Mapping) else {}), **as_input(model, data)}
        found = self._changed(branch, base, data)
        if not isinstance(found, dict):
            return found
        # Pydantic would make a model of the field's own type of it.
        return as_input(model, found) if type(base) is model else self._validated(branch, type(base), found)

    def _variant(self, branch: Branch, base: Any, floor: int) -> Any:
        kind: Any = branch.children[branch.discriminator]
        source = self._counting(kind.name, floor)
        of_base = _part(base, branch.discriminator)
        value = of_base if source is None else self._noted.converted(kind, source)
        if value is PydanticUndefined:
            self._noted.tell(kind.name, needed(kind))
            return PydanticUndefined
        tag = choice_text(value)
        chosen = branch.variants.get(tag)
        if chosen is None:
            subject = source.subject if source is not None else kind.name
            problem = f"{subject}: must be one of {', '.join(branch.variants)}"
            self._noted.tell(kind.name, f"{problem}. Received: {self._noted.received(source, kind, value)}.")
            return PydanticUndefined
        self._refuse_others(branch, chosen, tag, source)
        is_changed = of_base is PydanticUndefined or choice_text(of_base) != tag
        base = PydanticUndefined if is_changed else base
        data = self._children(chosen, base, floor)
        found = self._merged(chosen, base, data)
        told: Any = {branch.discriminator: branch.tags[tag]}
        return {**as_input(cast(Any, chosen.model), told), **found} if isinstance(found, dict) else found

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
                problem = f"{given.subject} belongs to {option} {' or '.join(owners)}, and {tag} is chosen ({how})."
                self._noted.tell(name, problem)

    def _changed(self, branch: Branch, base: BaseModel, data: dict[str, Any]) -> Any:
        """A model with some fields changed.

        Args:
            branch: its fields.
            base: the model.
            data: the fields.

        Returns:
            The model, or by name what it is to be made of; PydanticUndefined if something is wrong.
        """
        if not data:
            return _copied(base)
        model = type(base)
        made_of = {} if _gives(model, {}, base) else _made_of(base)
        if made_of and not _gives(model, made_of, base):
            # Its validators would change once more what they have made.
            if not model.__pydantic_decorators__.model_validators and not model.model_config.get("frozen"):
                return self._assigned(branch, base, data)
            self._noted.tell(
                branch.name,
                f"{', '.join(f'{branch.name}.{name}'.lstrip('.') for name in data)}: cannot be changed alone, for the "
                f"validators of {model.__name__} change again what they have made of its other fields. Give all of "
                "its fields, or have its validators leave alone what they have made.",
            )
            return PydanticUndefined
        return {**made_of, **data}

    def _assigned(self, branch: Branch, base: BaseModel, data: dict[str, Any]) -> Any:
        found = _copied(base)
        for name, value in data.items():
            try:
                type(base).__pydantic_validator__.validate_assignment(found, name, value)
            except ValidationError as error:
                self._tell(branch, error)
                found = PydanticUndefined
                break
        return found

    def _validated(self, branch: Branch, model: Any, data: dict[str, Any]) -> Any:
        try:
            return model.model_validate(as_input(model, data))
        except ValidationError as error:
            found = error
        made = self._made_secrets(branch, data)
        if made:
            # Again with the secrets that pydantic made itself, for its error may show them.
            try:
                return model.model_validate(as_input(model, {**data, **made}))
            except ValidationError as error:
                found = error
        self._tell(branch, found)
        return PydanticUndefined

    def _made_secrets(self, branch: Branch, data: Mapping[str, Any]) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name, node in branch.children.items():
            if name in data or not any(parameter.is_secret for parameter in leaves(node)):
                continue
            factory = node.get_default if isinstance(node, Branch) else node.default_factory
            value = PydanticUndefined if factory is None else factory()
            if value is not PydanticUndefined:
                made[name] = value
                self._noted.hide(secrets_in({name: value}))
        return made

    def _tell(self, branch: Branch, error: ValidationError) -> None:
        found: list[dict[str, Any]] = [dict(item) for item in error.errors(include_url=False)]
        is_whole = len(self._noted.problems) == self._before
        for item in found:
            # Of a model that lacks something only what was given can be judged.
            if item["type"] != "default_factory_not_called" and (is_whole or self._is_given(branch, item["loc"])):
                self._tell_one(branch, item)

    def _is_given(self, branch: Branch, place: Sequence[Any]) -> bool:
        node, _ = _find(branch, place)
        return isinstance(node, Parameter) and node.name in self._given

    def _tell_one(self, branch: Branch, error: dict[str, Any]) -> None:
        node, rest = _find(branch, error["loc"])
        if isinstance(node, Branch):
            subject = f"{node.name}: " if node.name else ""
            self._noted.tell(node.name, f"{subject}{fact_of(error, None)}.")
            return
        given = self._given.get(node.name)
        subject = given.subject if given is not None else f"the default of {node.name}"
        received = MASK if node.is_secret else self._noted.received(given, node, error["input"])
        place = place_in(node.name, rest, self._noted.raw(node, given))
        item = f", item {rest[0] + 1}" if rest and isinstance(rest[0], int) else ""
        where = f"{subject}{item}:" if place is None else f"{subject}: {place}"
        self._noted.tell(node.name, f"{where} {fact_of(error, node)}. Received: {received}.")


def _find(branch: Branch, place: Sequence[Any]) -> tuple[Node, Sequence[Any]]:
    """The parameter or model that an error of pydantic is about, and where in its value."""
    node: Node = branch
    rest = [*place]
    while rest and isinstance(node, Branch):
        if choice_text(rest[0]) in node.variants:
            node = node.variants[choice_text(rest.pop(0))]
            continue
        paths = (paths_of(node.model) or {}) if node.model is not None else {}
        places = [(name, path) for name, several in paths.items() for path in [*several, (name,)]]
        name, path = next(((n, path) for n, path in places if tuple(rest[: len(path)]) == path), ("", (rest[0],)))
        node = node.children.get(name, node)
        rest = rest[len(path) :]
    return node, rest


def _classes(branch: Branch) -> tuple[type, ...]:
    return tuple(one.model for one in (branch, *branch.variants.values()) if one.model is not None)


def _part(base: Any, name: str) -> Any:
    """What a model, or a dict that stands for one, has for a field."""
    if isinstance(base, Mapping):
        return base.get(name, PydanticUndefined)
    return getattr(base, name, PydanticUndefined) if isinstance(base, BaseModel) else PydanticUndefined


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except Exception:  # what cannot be copied is shared, as pydantic shares it
        return value


def _made_of(base: BaseModel) -> dict[str, Any]:
    """What a model was made of, as far as it can be told: what was given, and what was made for it alone."""
    names = [
        name
        for name, info in type(base).model_fields.items()
        if name in base.model_fields_set or info.default_factory is not None
    ]
    return dict(_copied({**{name: getattr(base, name) for name in names}, **(base.model_extra or {})}))


def _gives(model: type[BaseModel], data: dict[str, Any], base: BaseModel) -> bool:
    """Whether a model is what its class makes of some values."""
    try:
        return is_same(model.model_validate(as_input(model, data)), base)
    except ValidationError:
        return False
