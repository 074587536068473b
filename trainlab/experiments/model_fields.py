"""The parameters that the fields of a pydantic model are, nested models and unions of models included."""

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from operator import getitem
from typing import Annotated, Any, Literal, Union, cast, get_args

from pydantic import (
    BaseModel,
    Discriminator,
    SecretBytes,
    SecretStr,
    Tag,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.experiments.aliases import paths_of
from trainlab.experiments.annotations import allows_none, choice_text, form_of, is_model, members, metadata, stripped
from trainlab.experiments.field_docs import docstrings_of
from trainlab.experiments.kept_defaults import check_field_default, check_kept_default
from trainlab.experiments.parameters import Parameter, looks_secret
from trainlab.experiments.search_space import Search

__all__ = ["Branch", "Node", "branch_of", "helps_of", "is_secret", "leaves", "merged"]


@dataclass(frozen=True)
class Branch:
    """A model whose fields are parameters, or a union of models, of which one is chosen.

    Attributes:
        name: of the field that holds it; "" for the model of the main function.
        model: the class; None for a union.
        children: by field name; of a union without its variants.
        variants: of a union by the discriminator's value, as text.
        tags: of a union the values of the discriminator by their texts.
        discriminator: of a union, the field that tells.
        is_optional: whether None may stand for it.
        is_required: whether there is no default.
        get_default: makes the default value: a model, None, or PydanticUndefined where there is none.
        help: what it is.
    """

    name: str
    model: type[BaseModel] | None = None
    children: "dict[str, Branch | Parameter]" = field(default_factory=dict)
    variants: "dict[str, Branch]" = field(default_factory=dict)
    tags: dict[str, Any] = field(default_factory=dict)
    discriminator: str = ""
    is_optional: bool = False
    is_required: bool = False
    get_default: Callable[[], Any] = lambda: PydanticUndefined
    help: str = ""


class _InStrictModel:
    """Tells that a field's model is strict; pydantic's own mark is refused by some types before pydantic 2.10."""

    strict = True


Node = Branch | Parameter


@dataclass(frozen=True)
class _Place:
    """Where in a model a field stands."""

    prefix: str = ""
    title: str | None = None
    only_with: tuple[str, ...] = ()
    default: Any = PydanticUndefined
    classes: tuple[type[BaseModel], ...] = ()

    def name(self, field_name: str) -> str:
        return f"{self.prefix}.{field_name}" if self.prefix else field_name


def branch_of(model: type[BaseModel]) -> Branch:
    """The parameters of a model.

    Args:
        model: what the main function takes.

    Returns:
        The tree of its fields.

    Raises:
        InvalidTypeError: a model holds itself, or has a field that cannot be a parameter.
    """
    return _branch(model, _Place())


def leaves(node: Node) -> Iterator[Parameter]:
    """The parameters of a tree, in the order of the fields; one of several variants comes as often as they have it.

    Args:
        node: the tree.

    Yields:
        The parameters; of variants those of the default one first.
    """
    if isinstance(node, Parameter):
        yield node
        return
    if node.is_optional and node.name:
        yield _switch(node)
    kind = node.children.get(node.discriminator)
    chosen = kind.default if isinstance(kind, Parameter) else None
    variants = sorted(node.variants, key=lambda tag: tag != chosen)
    for child in [*node.children.values(), *(node.variants[tag] for tag in variants)]:
        yield from leaves(child)


def merged(found: Iterable[Parameter]) -> list[Parameter]:
    """The parameters with each name once: one of several variants takes what any of them takes.

    Args:
        found: those of a tree.

    Returns:
        A list.

    Raises:
        InvalidTypeError: variants give one name to values that are written differently.
    """
    by_name: dict[str, Parameter] = {}
    for parameter in found:
        before = by_name.setdefault(parameter.name, parameter)
        if before is parameter:
            continue
        if before.form != parameter.form:
            raise InvalidTypeError(
                f"{parameter.name} is a single value in one variant and a list, dict or flag in another, which one "
                f"option cannot take. Rename one of them. Received: {before.annotation!r} and {parameter.annotation!r}."
            )
        is_same = before.annotation == parameter.annotation
        by_name[parameter.name] = replace(
            before,
            annotation=before.annotation if is_same else Union[before.annotation, parameter.annotation],  # noqa: UP007
            required=before.required and parameter.required,
            help=before.help or parameter.help,
            is_secret=before.is_secret or parameter.is_secret,
            search=before.search or parameter.search,
            only_with=tuple(dict.fromkeys([*before.only_with, *parameter.only_with])),
        )
    return [*by_name.values()]


def helps_of(branch: Branch) -> dict[str, str]:
    """What the nested models are, by the headings of their options.

    Args:
        branch: the model.

    Returns:
        Their docstrings, or the descriptions of the fields that hold them.
    """
    found: dict[str, str] = {}
    for node in branch.children.values():
        if isinstance(node, Branch):
            found[node.name] = node.help
            for inner in [node, *node.variants.values()]:
                found.update(helps_of(inner))
    return found


def _switch(node: Branch) -> Parameter:
    """What gives None for a whole model."""
    default = node.get_default()
    return Parameter(
        name=node.name,
        annotation=type(None),
        default_help="none" if default is None else "set",
        help="none for none at all",
        group=node.name,
        is_field=True,
    )


def _branch(model: type[BaseModel], place: _Place) -> Branch:
    if model in place.classes:
        raise InvalidTypeError(
            f"{model.__name__} holds itself, in {place.prefix!r}, so that its options would have no end. Give the "
            f"field a type that is one value, such as dict[str, Any]. Received: {place.classes[0].__name__}."
        )
    inner = replace(place, classes=(*place.classes, model))
    told = docstrings_of(model)
    children = {name: _node(name, info, inner, told.get(name, "")) for name, info in model.model_fields.items()}
    return Branch(name=place.prefix, model=model, children=children)


def _node(name: str, info: FieldInfo, place: _Place, told: str) -> Node:
    annotation: Any = info.annotation
    models = [stripped(member) for member in members(annotation)]
    help_ = info.description or told
    if models and all(is_model(model) for model in models):
        discriminator = _discriminator(info, annotation)
        if len(models) == 1 or isinstance(discriminator, str):
            return _nested(name, info, place, help_, discriminator if len(models) > 1 else None)
    return _leaf(name, info, place, help_)


def _nested(name: str, info: FieldInfo, place: _Place, help_: str, discriminator: str | None) -> Branch:
    get_default = _default_of(name, info, place)
    default = get_default() if _is_cheap(info) else PydanticUndefined
    models = [stripped(member) for member in members(info.annotation)]
    title = help_ or (inspect.getdoc(models[0]) if discriminator is None and models[0].__doc__ else None)
    prefix = place.name(name)
    inner = replace(place, prefix=prefix, title=prefix, default=default)
    common: dict[str, Any] = {
        "is_optional": allows_none(info.annotation),
        "is_required": info.is_required(),
        "get_default": get_default,
        "help": (title or "").partition("\n\n")[0],
    }
    if discriminator is None:
        return replace(_branch(models[0], inner), **common)
    variants: dict[str, Branch] = {}
    tags: dict[str, Any] = {}
    for model in models:
        for value in _tags(model, discriminator):
            tag = choice_text(value)
            tags[tag] = value
            own = default if isinstance(default, model) else PydanticUndefined
            choice = " and ".join([*place.only_with, f"{prefix}.{discriminator}={tag}"])
            of_variant = replace(inner, default=own, only_with=(choice,))
            found = _branch(model, of_variant)
            found.children.pop(discriminator)
            variants[tag] = found
    _free_common(variants, place.only_with)
    kind = _kind(prefix, discriminator, [*tags.values()], default, place)
    return Branch(
        name=prefix,
        children={discriminator: kind},
        variants=variants,
        tags=tags,
        discriminator=discriminator,
        **common,
    )


def _free_common(variants: dict[str, Branch], only_with: tuple[str, ...]) -> None:
    """Do not say of what all variants have that it belongs to some."""
    for name in set.intersection(*({*variant.children} for variant in variants.values())):
        for variant in variants.values():
            node = variant.children[name]
            if isinstance(node, Parameter):
                variant.children[name] = replace(node, only_with=only_with)


def _kind(prefix: str, discriminator: str, tags: list[Any], default: Any, place: _Place) -> Parameter:
    tag = getattr(default, discriminator, None)
    return Parameter(
        name=f"{prefix}.{discriminator}",
        annotation=Literal[tuple(tags)],
        default=tag,
        required=default is PydanticUndefined,
        help="which of them",
        group=prefix,
        only_with=place.only_with,
        is_field=True,
    )


def _discriminator(info: FieldInfo, annotation: Any) -> Any:
    found = [info.discriminator, *(getattr(item, "discriminator", None) for item in [*info.metadata])]
    for part in [annotation, *get_args(annotation)]:
        found += [getattr(item, "discriminator", None) for item in metadata(part)]
    return next((item for item in found if item is not None), None)


def _tags(model: type[BaseModel], discriminator: str) -> list[Any]:
    info = model.model_fields.get(discriminator)
    return [value for kind in members(info.annotation) for value in get_args(kind)] if info is not None else []


def _leaf(name: str, info: FieldInfo, place: _Place, help_: str) -> Parameter:
    annotation: Any = info.annotation
    own = [item for item in info.metadata if not isinstance(item, (Search, Discriminator, Tag))]
    if place.classes[-1].model_config.get("strict"):
        own.append(_InStrictModel())
    if own:
        annotation = getitem(cast(Any, Annotated), (annotation, *own))
    full = place.name(name)
    default, factory = _leaf_default(name, info, place)
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    searched = [item for item in [*info.metadata, *metadata(info.annotation)] if isinstance(item, Search)]
    kinds = members(info.annotation)
    found = Parameter(
        name=full,
        annotation=annotation,
        default=None if default is PydanticUndefined else default,
        default_factory=factory,
        required=default is PydanticUndefined and factory is None,
        is_flag=kinds == [bool],
        multiple=form_of(annotation) == "words",
        allow_from_file=bool(extra.get("allow_from_file", True)),
        envvar=_variable(full, extra.get("envvar")),
        help=help_,
        default_help=str(extra["default_help"]) if "default_help" in extra else None,
        hidden=bool(extra.get("hidden", False)),
        group=place.title,
        is_secret=any(is_secret(known, kinds) for known in (full, *_aliases(name, place.classes[-1]))),
        search=searched[0] if searched else None,
        only_with=place.only_with,
        is_field=True,
    )
    if default is not PydanticUndefined and default is info.default:
        is_validated = info.validate_default or place.classes[-1].model_config.get("validate_default")
        (check_field_default if is_validated else check_kept_default)(found, default)
    return found


def _variable(name: str, envvar: Any) -> str | None:
    if envvar is None or envvar is False:
        return None
    found = name.upper().replace(".", "_") if envvar is True else envvar
    if not isinstance(found, str) or not found or "=" in found or "\0" in found:
        raise InvalidValueError(f"envvar of {name!r} is the name of a variable, or True. Received: {envvar!r}.")
    return found


def _aliases(name: str, model: type[BaseModel]) -> list[str]:
    """The names that a field is given under, beside its own."""
    return [str(step) for path in (paths_of(model) or {}).get(name, []) for step in path]


def is_secret(name: str, kinds: list[Any]) -> bool:
    """Whether a parameter's value is secret: by its type, or by its name if it is no number.

    Args:
        name: the parameter's.
        kinds: its types, None left out.

    Returns:
        True if so.
    """
    if any(kind in {SecretStr, SecretBytes} for kind in kinds):
        return True
    is_number = bool(kinds) and all(kind in {int, float, bool} for kind in kinds)
    return looks_secret(name, is_number=is_number)


def _leaf_default(name: str, info: FieldInfo, place: _Place) -> tuple[Any, Callable[[], Any] | None]:
    if isinstance(place.default, BaseModel) and hasattr(place.default, name):
        return getattr(place.default, name), None
    if info.default_factory is None:
        return info.default, None
    return PydanticUndefined, lambda: _made(info)


def _default_of(name: str, info: FieldInfo, place: _Place) -> Callable[[], Any]:
    if isinstance(place.default, BaseModel) and hasattr(place.default, name):
        value = getattr(place.default, name)
        return lambda: copy.deepcopy(value)
    if info.default_factory is None:
        return lambda: copy.deepcopy(info.default)
    return lambda: _made(info)


def _made(info: FieldInfo) -> Any:
    """What a field's factory makes; of one that looks at other fields only pydantic can say."""
    factory: Any = info.default_factory
    return PydanticUndefined if getattr(info, "default_factory_takes_validated_data", False) else factory()


def _is_cheap(info: FieldInfo) -> bool:
    """Whether a default can be looked at for help: a class that is its own factory has those of its fields."""
    return info.default_factory is None or not is_model(info.default_factory)
