"""Experiment: a function with parameters, a command line and runs; and the decorator that makes one."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from pydantic import BaseModel

from trainlab.errors import InvalidTypeError, InvalidValueError
from trainlab.experiments.command_line import Line, read_line
from trainlab.experiments.declared import Declared
from trainlab.experiments.decorators import declared_of
from trainlab.experiments.default_parameters import DEFAULT_PARAMETERS
from trainlab.experiments.facts import check_default
from trainlab.experiments.given import PRESENT, flatten, taken_apart
from trainlab.experiments.main_function import model_of, takes_context
from trainlab.experiments.model_fields import Node, branch_of, helps_of, leaves, merged
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.reading import Reading
from trainlab.experiments.sources import Sources
from trainlab.experiments.text_values import with_members
from trainlab.experiments.values import Values

if TYPE_CHECKING:
    from trainlab.launch.child import ChildProcess

__all__ = ["Experiment", "as_name", "experiment", "is_same", "parents_of", "registered", "source_of"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
# All experiments and groups that are in no group, for global_entrypoint.
registered: list[Any] = []


class Experiment:
    """A function that can be run with parameters: from a program, and from a command line.

    Made by ``@trainlab.experiment``.

    Args:
        main: the function. It takes the dict of values; or it and the context; or one pydantic model, by annotation.
        name: its name on command lines.
        inherited: what other experiments, groups and functions declare.
        defaults: changed defaults by the parameter's name.
        path: the names of its groups. Default none.

    Attributes:
        name: its name.
        path: its name with those of its groups: "group/train".
        help: what it does: the function's docstring.
        main: the function.
        model: the pydantic model that the function takes; None if it takes a dict.
        takes_context: whether the function takes a context as its second argument.
        source: the file that the function is defined in, and its name there.
        defaults: the changed defaults, as they were given.

    Raises:
        InvalidTypeError: the function takes something else.
        InvalidValueError: names clash, or a changed default cannot be used.
    """

    def __init__(
        self,
        main: Callable[..., Any],
        *,
        name: str | None = None,
        inherited: Iterable[Declared] = (),
        defaults: Mapping[str, Any] | None = None,
        path: Sequence[str] = (),
        namespace: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model_of(main, namespace or {})
        self.takes_context = takes_context(main)
        self.main = main
        self.name = as_name(name, main)
        self.path = "/".join([*path, self.name])
        self.help = inspect.getdoc(main) or ""
        self.__doc__, self.__module__ = main.__doc__, main.__module__
        self.__name__, self.__qualname__ = main.__name__, main.__qualname__
        self.__wrapped__ = main
        self.source = source_of(main)
        self.defaults = dict(defaults or {})
        self._changed: dict[str, Any] = {}
        self._branch = None if self.model is None else branch_of(self.model)
        own = declared_of(main)
        fields = [] if self._branch is None else merged(leaves(self._branch))
        self.__trainlab_parameters__ = Declared(
            f"The experiment {self.path!r}", [*own.parameters], {**own.groups}, fields=fields
        )
        self.__trainlab_parameters__.inherit(inherited)
        self._changed = self._changed_defaults()

    @property
    def parameters(self) -> tuple[Parameter, ...]:
        """All parameters, each a single value: the user's own, then those that every experiment has."""
        declared = self.__trainlab_parameters__
        return tuple(map(self._with_default, (*declared.all(), *declared.fields, *DEFAULT_PARAMETERS)))

    @property
    def nodes(self) -> dict[str, Node]:
        """The parameters and the fields of the model, at the top, by name."""
        fields = {} if self._branch is None else self._branch.children
        single = (*self.__trainlab_parameters__.all(), *DEFAULT_PARAMETERS)
        return {**fields, **{parameter.name: parameter for parameter in single}}

    @property
    def group_helps(self) -> dict[str, str]:
        """The texts below the headings of parameters, by heading."""
        fields = {} if self._branch is None else helps_of(self._branch)
        return {**fields, **self.__trainlab_parameters__.all_groups()}

    def get_parameters(self) -> tuple[Parameter, ...]:
        """Return all parameters, as ``parameters`` does."""
        return self.parameters

    def run(self, params: Mapping[str, Any] | BaseModel | None = None) -> Any:
        """Run the experiment in this process.

        Args:
            params: values by name, nested as the model is or by names such as "optimizer.lr"; or the model itself.
                Default: none but the defaults, the environment's and those of a params file.

        Returns:
            What the main function returns.

        Raises:
            InvalidValueError: a value cannot be used, or is missing.
            InvalidStateError: an experiment is running in this process already.
        """
        from trainlab.experiments import running

        return running.run(self, self.read(params))

    def __call__(self, params: Mapping[str, Any] | BaseModel | None = None) -> Any:
        """Run the experiment, as ``run`` does."""
        return self.run(params)

    def run_in_new_process(self, params: Mapping[str, Any] | BaseModel | None = None) -> "ChildProcess":
        """Run the experiment in a process of its own, beside this one.

        Args:
            params: as for ``run``.

        Returns:
            The process, started: ``join()`` waits for its end, ``result()`` gives what the main function returned.

        Raises:
            InvalidValueError: a value cannot be used, or is missing.
        """
        from trainlab.experiments import children

        return children.run_in_new_process(self, self.read(params))

    def cli(self, argv: Sequence[str] | None = None, exit_on_error: bool = True) -> Any:
        """Run the experiment as a command line says.

        Args:
            argv: its words. Default: the program's own.
            exit_on_error: whether a wrong line ends the program with status 1, after its help and what is wrong with
                it are printed. Default True.

        Returns:
            What the main function returns.

        Raises:
            InvalidValueError: the line is wrong, and ``exit_on_error`` is False.
            SystemExit: help was asked for, or the line is wrong.
        """
        from trainlab.experiments.entry import run_line

        return run_line(self, sys.argv[1:] if argv is None else argv, exit_on_error=exit_on_error)

    def read(
        self,
        params: Mapping[str, Any] | BaseModel | None = None,
        *,
        argv: Sequence[str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Values:
        """Find the values of all parameters: of a command line, a call, the environment, a params file, the defaults.

        Args:
            params: as for ``run``.
            argv: the words of a command line. Default: none.
            environ: the environment's variables. Default: this process's.

        Returns:
            The values, and where each came from.

        Raises:
            InvalidValueError: something cannot be used; all that is wrong is told at once.
        """
        return self.read_line(params, self.line(argv or []), environ)

    def line(self, argv: Sequence[str]) -> Line:
        """Divide a command line among the options.

        Args:
            argv: its words.

        Returns:
            What was found.
        """
        return read_line(argv, self.parameters)

    def read_line(
        self,
        params: Mapping[str, Any] | BaseModel | None,
        line: Line,
        environ: Mapping[str, str] | None = None,
        *,
        base: Values | None = None,
    ) -> Values:
        """The same as ``read``, with a command line that is divided already.

        Args:
            params: as for ``run``.
            line: the command line.
            environ: the environment's variables. Default: this process's.
            base: a run's values, which stand for the defaults. Default: those of the experiment.

        Returns:
            The values.

        Raises:
            InvalidValueError: something cannot be used.
        """
        sources = Sources(self.nodes, self.parameters)
        sources.add_line(line)
        sources.add_call(self._checked(params))
        sources.add_environment(environ)
        if base is None:
            sources.add_defaults(self.defaults)
        else:
            sources.add_made(base)
        sources.add_params_file()
        return self._values(Reading(sources.given, sources.problems))

    def read_back(self, plain: Mapping[str, Any]) -> tuple[Values | None, set[str]]:
        """Read what is to be a run's params file, as a repetition of the run will.

        Args:
            plain: the values as plain data, with the secrets.

        Returns:
            The values, or None if they cannot be read; and the names of the parameters and models that cannot.
        """
        sources = Sources(self.nodes, self.parameters)
        sources.add_defaults(self.defaults)
        sources.add_recorded(plain)
        reading = Reading(sources.given, sources.problems)
        try:
            return self._values(reading), set()
        except Exception:  # a validator that is given what it made itself may raise anything
            return None, reading.failed

    def _values(self, reading: Reading) -> Values:
        return reading.values(self._branch, self.__trainlab_parameters__.all(), DEFAULT_PARAMETERS)

    def __reduce_ex__(self, protocol: Any) -> str | tuple[Any, ...]:
        from trainlab.launch.call import can_import_main

        if self.__module__ != "__main__" or can_import_main():
            return self.__qualname__
        # No module of another process has it, as in a notebook.
        return super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"<Experiment {self.path}>"

    def _changed_defaults(self) -> dict[str, Any]:
        """The defaults that the decorator changes, by the parameter's name and as its type has them."""
        known = {parameter.name: parameter for parameter in self.parameters}
        problems: list[str] = []
        found: dict[str, Any] = {}
        given = [
            pair
            for name, value in flatten(self.nodes, self.defaults, problems, "in defaults=")
            for pair in taken_apart(self.nodes, name, value)
        ]
        for name, value in given:
            parameter = known.get(name)
            if parameter is None or value is PRESENT or (value is None and parameter.is_default):
                continue  # a model as a whole, or the default as it is
            if inspect.isfunction(value):
                problems.append(
                    "defaults= takes values; a function that makes one is @trainlab.parameter(default=...)'s. "
                    f"Received: {value!r} for {name}."
                )
            elif value is None:
                found[name] = None
            else:
                as_member = with_members(parameter.annotation, value)
                found[name] = check_default(parameter, as_member, f"The default of {name!r} in defaults=")
        if problems:
            problems.append("A parameter that is declared above @trainlab.experiment has its default there.")
            raise InvalidValueError(" ".join(problems))
        return found

    def _with_default(self, parameter: Parameter) -> Parameter:
        """A parameter as this experiment has it."""
        if parameter.name in self._changed:
            default = self._changed[parameter.name]
            return replace(parameter, default=default, default_factory=None, default_help=None, required=False)
        if parameter.annotation is type(None) and any(name.startswith(f"{parameter.name}.") for name in self._changed):
            return replace(parameter, default_help="set")
        return parameter

    def _checked(self, params: Any) -> Mapping[str, Any] | BaseModel:
        if params is None:
            return {}
        if isinstance(params, BaseModel) and (self.model is None or not isinstance(params, self.model)):
            takes = "a dict" if self.model is None else f"a dict or a {self.model.__name__}"
            raise InvalidTypeError(f"The experiment {self.path!r} takes {takes}. Received: {params!r}.")
        if not isinstance(params, (Mapping, BaseModel)):
            raise InvalidTypeError(
                f"The parameters of the experiment {self.path!r} are given as a dict by name. Received: {params!r}."
            )
        return params


@overload
def experiment(main: Callable[..., Any], /) -> Experiment: ...


@overload
def experiment(
    *,
    name: str | None = None,
    inherit_params: Any = None,
    defaults: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], Experiment]: ...


def experiment(
    main: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    inherit_params: Any = None,
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """Make a function an experiment; with or without arguments.

    Args:
        main: the function. It takes the dict of values; or it and the context; or one pydantic model, by annotation.
        name: its name on command lines. Default: the function's, in lower case, with dashes for underscores.
        inherit_params: an experiment, a group or a function that carries ``@parameter``, or a list of them: their
            parameters are this one's too.
        defaults: changed defaults by the parameter's name, of inherited ones and of those that every experiment has
            too.

    Returns:
        The experiment; called with arguments, the decorator.

    Raises:
        InvalidTypeError: the function takes something else, or nothing can be inherited from what is named.
        InvalidValueError: names clash.
    """
    namespace = sys._getframe(1).f_locals
    parents = parents_of(inherit_params)

    def decorate(function: Callable[..., Any]) -> Experiment:
        made = Experiment(function, name=name, inherited=parents, defaults=defaults, namespace=namespace)
        registered.append(made)
        return made

    return decorate if main is None else decorate(main)


def parents_of(inherit_params: Any) -> list[Declared]:
    """What is inherited.

    Args:
        inherit_params: an experiment, a group, a function, a list of these, or None.

    Returns:
        What they declare.

    Raises:
        InvalidTypeError: one is none of these, or its parameters are the fields of a model.
    """
    given = inherit_params if isinstance(inherit_params, (list, tuple)) else [inherit_params]
    found = []
    for parent in given:
        if parent is None:
            continue
        if isinstance(parent, Experiment) and parent.model is not None:
            raise InvalidTypeError(
                f"The parameters of {parent.path!r} are the fields of {parent.model.__name__}: let this experiment "
                f"take a subclass of it instead of inherit_params. Received: {parent!r}."
            )
        found.append(declared_of(parent))
    return found


def source_of(function: Callable[..., Any]) -> tuple[str, str]:
    """The file that a function is defined in, and its name there."""
    code = getattr(function, "__code__", None)
    return getattr(code, "co_filename", ""), getattr(function, "__qualname__", "")


def is_same(one: Any, other: Any) -> bool:
    """Whether one experiment or group is the other, defined once more.

    A cell of a notebook is run again, and a program may be imported by a module that it imports itself.

    Args:
        one: an experiment or a group.
        other: another.

    Returns:
        True if so.
    """
    return one.source == other.source or (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def as_name(name: str | None, function: Callable[..., Any]) -> str:
    """The name of an experiment or a group.

    Args:
        name: as given; None for the function's.
        function: its function.

    Returns:
        The name.

    Raises:
        InvalidValueError: it cannot be a word of a command line and a folder.
    """
    found = getattr(function, "__name__", "").lower().strip("_").replace("_", "-") if name is None else name
    if not isinstance(found, str) or not _NAME.fullmatch(found):
        raise InvalidValueError(
            "The name of an experiment is of letters, digits, '-', '_' and '.', and begins with a letter or a digit. "
            f"Received: {found!r}."
        )
    return found
