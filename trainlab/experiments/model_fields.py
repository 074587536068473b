"""The parameters that the fields of a pydantic model are, nested models and unions of models included."""

import ast
import copy
import inspect
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise
from operator import getitem
from typing import Annotated, Any, Literal, Union, cast, get_args

from pydantic import (
    BaseModel,
    Discriminator,
    PydanticSchemaGenerationError,
    SecretBytes,
    SecretStr,
    Strict,
    Tag,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.experiments.annotations import allows_none, form_of, is_model, members, metadata, stripped
from trainlab.experiments.facts import facts_of
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
        keys: under which name pydantic takes each field, by the field's name.
        variants: of a union by the discriminator's value.
        discriminator: of a union, the field that tells.
        is_optional: whether None may stand for it.
        get_default: makes the default value: a model, None, or PydanticUndefined where there is none.
        help: what it is.
    """

    name: str
    model: type[BaseModel] | None = None
    children: "dict[str, Branch | Parameter]" = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    variants: "dict[str, Branch]" = field(default_factory=dict)
    discriminator: str = ""
    is_optional: bool = False
    get_default: Callable[[], Any] = lambda: PydanticUndefined
    help: str = ""


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
            only_with=(*before.only_with, *parameter.only_with),
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
    told = _docstrings(model)
    children = {name: _node(name, info, inner, told.get(name, "")) for name, info in model.model_fields.items()}
    keys = {name: _key(name, info) for name, info in model.model_fields.items()}
    return Branch(name=place.prefix, model=model, children=children, keys=keys)


def _key(name: str, info: FieldInfo) -> str:
    alias = info.validation_alias if info.validation_alias is not None else info.alias
    choices = getattr(alias, "choices", None)
    first = choices[0] if choices else alias
    return first if isinstance(first, str) else name


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
        "get_default": get_default,
        "help": (title or "").partition("\n\n")[0],
    }
    if discriminator is None:
        return replace(_branch(models[0], inner), **common)
    variants: dict[str, Branch] = {}
    for model in models:
        for tag in _tags(model, discriminator):
            own = default if isinstance(default, model) else PydanticUndefined
            of_variant = replace(inner, default=own, only_with=(*place.only_with, f"{prefix}.{discriminator}={tag}"))
            found = _branch(model, of_variant)
            found.children.pop(discriminator)
            variants[tag] = found
    _free_common(variants, place.only_with)
    kind = _kind(prefix, discriminator, [*variants], default, place)
    return Branch(name=prefix, children={discriminator: kind}, variants=variants, discriminator=discriminator, **common)


def _free_common(variants: dict[str, Branch], only_with: tuple[str, ...]) -> None:
    """Do not say of what all variants have that it belongs to some."""
    for name in set.intersection(*({*variant.children} for variant in variants.values())):
        for variant in variants.values():
            node = variant.children[name]
            if isinstance(node, Parameter):
                variant.children[name] = replace(node, only_with=only_with)


def _kind(prefix: str, discriminator: str, tags: list[str], default: Any, place: _Place) -> Parameter:
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


def _tags(model: type[BaseModel], discriminator: str) -> list[str]:
    info = model.model_fields.get(discriminator)
    values = [value for kind in members(info.annotation) for value in get_args(kind)] if info is not None else []
    return [str(getattr(value, "value", value)) for value in values]


def _leaf(name: str, info: FieldInfo, place: _Place, help_: str) -> Parameter:
    annotation: Any = info.annotation
    own = [item for item in info.metadata if not isinstance(item, (Search, Discriminator, Tag))]
    if place.classes[-1].model_config.get("strict"):
        own.append(Strict())
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
        envvar=str(extra["envvar"]) if extra.get("envvar") else None,
        help=help_,
        default_help=str(extra["default_help"]) if "default_help" in extra else None,
        hidden=bool(extra.get("hidden", False)),
        group=place.title,
        is_secret=is_secret(full, kinds),
        search=searched[0] if searched else None,
        only_with=place.only_with,
        is_field=True,
    )
    if default is not PydanticUndefined:
        _check_default(found, default)
    return found


def _check_default(parameter: Parameter, default: Any) -> None:
    """Check a default, which pydantic does not."""
    try:
        parameter.adapter.validate_python(default)
    except PydanticSchemaGenerationError:
        return  # a type that only the model's configuration allows
    except ValidationError as error:
        problem = facts_of(error, parameter)
    else:
        return
    received = "***" if parameter.is_secret else repr(default)
    raise InvalidValueError(f"The default of {parameter.name!r} cannot be used: {problem}. Received: {received}.")


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


@cache
def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The string that follows each field in a class's source, of the classes that it is made of too."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if cls is BaseModel or not issubclass(cls, BaseModel):
            continue
        found.update(_strings_of(cls))
    return found


def _strings_of(cls: type) -> dict[str, str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return {}
    body = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        before.target.id: inspect.cleandoc(after.value.value)
        for before, after in pairwise(body)
        if isinstance(before, ast.AnnAssign)
        and isinstance(before.target, ast.Name)
        and isinstance(after, ast.Expr)
        and isinstance(after.value, ast.Constant)
        and isinstance(after.value.value, str)
    }
