"""Parameter: one value that an experiment can be given, by its option, its variable or its key in a file."""

import keyword
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter

from trainlab.errors import InvalidValueError
from trainlab.experiments.annotations import form_of
from trainlab.experiments.search_space import Search
from trainlab.runs.yaml_text import masked

__all__ = ["RESERVED", "Parameter", "check_name", "looks_secret", "option_of"]

# `--help` and what completes a line are everybody's.
RESERVED = {"help", "print_completion"}


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One parameter of an experiment: a single value, never a group of them.

    Attributes:
        name: its name; of a field of a nested model with those of the models: "optimizer.lr".
        annotation: its type, or the function that makes a value of a text.
        default: its value where none is given; None where it has none.
        default_factory: what makes the default, anew for each run; None where ``default`` is it.
        required: whether a run needs a value, and there is no default.
        allowed_values: the only values; None for all that the type takes.
        is_flag: whether it is given as ``--name`` or ``--no-name``.
        multiple: whether it is a list, given as ``--name a b c``.
        allow_from_file: whether a params file may set it; where not, the file's value is ignored.
        envvar: the environment variable that it is read from; None for none.
        help: what it is for.
        default_help: what ``--help`` shows for the default; None for the default itself.
        hidden: whether ``--help`` leaves it out.
        group: the heading that it stands under in ``--help``.
        is_secret: whether its value is masked wherever it would be shown or written.
        search: what a search may try; None where it is not searched.
        is_default: whether it is one of those that every experiment has.
        only_with: the variants that it belongs to, such as "optimizer.kind=sgd"; empty for none.
        is_field: whether it is a field of the experiment's pydantic model.
    """

    name: str
    annotation: Any = str
    default: Any = None
    default_factory: Callable[[], Any] | None = None
    required: bool = False
    allowed_values: tuple[Any, ...] | None = None
    is_flag: bool = False
    multiple: bool = False
    allow_from_file: bool = True
    envvar: str | None = None
    help: str = ""
    default_help: str | None = None
    hidden: bool = False
    group: str | None = None
    is_secret: bool = False
    search: Search | None = None
    is_default: bool = False
    only_with: tuple[str, ...] = ()
    is_field: bool = False

    def __getstate__(self) -> dict[str, Any]:
        # What is worked out from the fields may not be sent to another process, and can be worked out there.
        return {name: value for name, value in self.__dict__.items() if name not in {"adapter", "form"}}

    @property
    def option(self) -> str:
        """Its option on the command line, such as "--optimizer.learning-rate"."""
        return option_of(self.name)

    @property
    def has_default(self) -> bool:
        """Whether there is a default other than None."""
        return self.default is not None or self.default_factory is not None

    @cached_property
    def form(self) -> str:
        """How it is given on a command line: "flag", or one of ``annotations.form_of``."""
        return "flag" if self.is_flag else form_of(self.annotation)

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """What validates a value."""
        return TypeAdapter(self.annotation)


def option_of(name: str) -> str:
    """The option of a parameter.

    Args:
        name: the parameter's name.

    Returns:
        Such as "--optimizer.learning-rate".
    """
    return "--" + name.replace("_", "-")


def looks_secret(name: str, *, is_number: bool = False) -> bool:
    """Whether a parameter's name is one of a secret: ``password``, ``api_key``, ``token``; not ``num_tokens``.

    Args:
        name: the name.
        is_number: whether its values are numbers. Default False.

    Returns:
        True if such a value under this name is masked in files.
    """
    values: dict[str, Any] = {name: 0 if is_number else "text"}
    return masked(values) != values


def check_name(name: object) -> str:
    """Check that a parameter can have this name.

    Args:
        name: what was given.

    Returns:
        It.

    Raises:
        InvalidValueError: it cannot.
    """
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise InvalidValueError(
            "A parameter's name is a Python name that does not begin with an underscore, such as 'learning_rate'. "
            f"Received: {name!r}."
        )
    if name in RESERVED:
        raise InvalidValueError(
            f"No parameter can be called {name!r}: {option_of(name)} has a meaning of its own. Choose another name."
        )
    return name
