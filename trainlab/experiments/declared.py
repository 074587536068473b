"""The parameters that decorators declare: on a function, an experiment or a group of experiments."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakSet

from trainlab.errors import InvalidValueError
from trainlab.experiments.default_parameters import DEFAULT_PARAMETERS
from trainlab.experiments.parameters import RESERVED, Parameter

__all__ = ["Declared"]


@dataclass(eq=False)
class Declared:
    """What decorators have declared for one function.

    Attributes:
        of: whose they are, for messages.
        parameters: its own, from the top to the bottom of the source.
        groups: the help of each group of parameters of its own, by name.
        inherited: what others have declared for theirs; comes first.
        heirs: those that inherit from this.
        fields: of the pydantic model that the function takes, which are parameters too.
    """

    of: str
    parameters: list[Parameter] = field(default_factory=list)
    groups: dict[str, str] = field(default_factory=dict)
    inherited: "list[Declared]" = field(default_factory=list)
    heirs: "WeakSet[Declared]" = field(default_factory=WeakSet, repr=False)
    fields: list[Parameter] = field(default_factory=list)

    def __getstate__(self) -> dict[str, Any]:
        # Another process gets one experiment, not those that are its relatives.
        return {**self.__dict__, "heirs": WeakSet()}

    def add(self, new: list[Parameter], group: tuple[str, str] | None = None) -> None:
        """Take in what a decorator declares, above what is there.

        Args:
            new: the parameters of a group, or one.
            group: its name and help. Default: none.

        Raises:
            InvalidValueError: a name is there already.
        """
        if group is not None and group[0] in self.all_groups():
            raise InvalidValueError(f"{self.of} has a group of parameters {group[0]!r} already. Give it another name.")
        for place, parameter in enumerate(new):
            self._check(parameter, [*self.parameters, *new[:place]])
        before = self.parameters, self.groups
        self.parameters = [*new, *self.parameters]
        if group is not None:
            self.groups = {group[0]: group[1], **self.groups}
        try:
            self._check_all()
            for heir in self.heirs:
                heir._check_inherited()
        except InvalidValueError:
            self.parameters, self.groups = before
            raise

    def inherit(self, parents: "Iterable[Declared]") -> None:
        """Take in what others declare.

        Args:
            parents: the others.

        Raises:
            InvalidValueError: a name is there already, or in different groups of two parents.
        """
        self.inherited = [*parents]
        for parent in self.inherited:
            parent.heirs.add(self)
        self._check_inherited()

    def _check_inherited(self) -> None:
        found: dict[str, Parameter] = {}
        for parameter in (parameter for parent in self.inherited for parameter in parent.all()):
            before = found.setdefault(parameter.name, parameter)
            if before is not parameter and before.group is not None and parameter.group is not None:
                raise InvalidValueError(
                    f"{self.of} inherits the parameter {parameter.name!r} twice, in the groups {before.group!r} and "
                    f"{parameter.group!r}. Inherit from one of them."
                )
        for parameter in self.parameters:
            self._check(parameter, [])
        self._check_all()
        for heir in self.heirs:
            heir._check_inherited()

    def all(self) -> list[Parameter]:
        """All parameters, the inherited ones first; of two parents' with one name that of the first parent."""
        return [*self._all_inherited().values(), *self.parameters]

    def all_groups(self) -> dict[str, str]:
        """The help of all groups of parameters by name, the inherited ones first."""
        found: dict[str, str] = {}
        for parent in self.inherited:
            found.update(parent.all_groups())
        return {**found, **self.groups}

    def _all_inherited(self) -> dict[str, Parameter]:
        found: dict[str, Parameter] = {}
        for parent in self.inherited:
            for parameter in parent.all():
                found.setdefault(parameter.name, parameter)
        return found

    def _check(self, parameter: Parameter, others: list[Parameter]) -> None:
        name = parameter.name
        other_default = f"another default is given by @trainlab.experiment(defaults={{{name!r}: ...}})"
        if any(name == default.name for default in DEFAULT_PARAMETERS):
            raise InvalidValueError(
                f"{self.of} declares the parameter {name!r}, which every experiment has. Choose another name; "
                f"{other_default}."
            )
        if name in self._all_inherited():
            raise InvalidValueError(
                f"{self.of} declares the parameter {name!r}, which it inherits. Choose another name; {other_default}."
            )
        if any(name == other.name for other in others):
            raise InvalidValueError(f"{self.of} declares the parameter {name!r} twice. Take one of them out.")

    def _check_all(self) -> None:
        """Check that each name and each option means one thing, those of the model's fields too."""
        for name in RESERVED & {parameter.name for parameter in self.fields}:
            raise InvalidValueError(
                f"{self.of} takes a model with a field {name!r}, whose option has a meaning of its own. Choose another "
                "name."
            )
        single = [*self.all(), *DEFAULT_PARAMETERS]
        fields = {parameter.name.partition(".")[0] for parameter in self.fields}
        for parameter in single:
            if parameter.name in fields:
                owner = "every experiment has" if parameter.is_default else "it declares or inherits too"
                raise InvalidValueError(
                    f"{self.of} takes a model with a field {parameter.name!r}, a parameter that {owner}. Choose "
                    "another name for one of them."
                )
        options = {parameter.option: parameter for parameter in [*single, *self.fields]}
        for flag in [*single, *self.fields]:
            negated = f"--no-{flag.option[2:]}"
            if flag.is_flag and negated in options:
                raise InvalidValueError(
                    f"{self.of}: {negated} would be the parameter {options[negated].name!r} and the opposite of "
                    f"{flag.name!r}. Rename one of them."
                )
