"""Groups of experiments, nested without limit, and the command line of all experiments of a program."""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

from trainlab.errors import InvalidValueError
from trainlab.experiments.command_line import checked_words
from trainlab.experiments.declared import Declared
from trainlab.experiments.decorators import declared_of
from trainlab.experiments.definition import Experiment, as_name, is_same, parents_of, registered, source_of

__all__ = ["ExperimentGroup", "global_entrypoint", "group"]


class ExperimentGroup:
    """Experiments, and groups of them, under one name on the command line; made by ``@trainlab.group``.

    Args:
        function: never run; its docstring is the help, and its ``@parameter`` those of all experiments inside.
        name: its name on command lines. Default: the function's.
        parents: what is declared for the groups around it.
        path: the names of the groups around it.

    Attributes:
        name: its name.
        path: its name with those of the groups around it: "group/sub".
        help: what it is.
        children: the experiments and groups in it by name.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        parents: Sequence[Declared] = (),
        path: Sequence[str] = (),
    ) -> None:
        self.name = as_name(name, function)
        self.path = "/".join([*path, self.name])
        self.help = inspect.getdoc(function) or ""
        self.__doc__, self.__module__ = function.__doc__, function.__module__
        self.__name__, self.__qualname__ = function.__name__, function.__qualname__
        self.source = source_of(function)
        self.children: dict[str, Experiment | ExperimentGroup] = {}
        own = declared_of(function)
        self.__trainlab_parameters__ = Declared(f"The group {self.path!r}", [*own.parameters], {**own.groups})
        self.__trainlab_parameters__.inherit(parents)

    @overload
    def experiment(self, main: Callable[..., Any], /) -> Experiment: ...

    @overload
    def experiment(
        self,
        /,
        *,
        name: str | None = None,
        inherit_params: Any = None,
        defaults: Mapping[str, Any] | None = None,
        inherit_params_from_group: bool = True,
    ) -> Callable[[Callable[..., Any]], Experiment]: ...

    def experiment(
        self,
        main: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        inherit_params: Any = None,
        defaults: Mapping[str, Any] | None = None,
        inherit_params_from_group: bool = True,
    ) -> Any:
        """Make a function an experiment of this group; with or without arguments.

        Args:
            main: the function, as for ``trainlab.experiment``.
            name: as for ``trainlab.experiment``.
            inherit_params: as for ``trainlab.experiment``.
            defaults: as for ``trainlab.experiment``.
            inherit_params_from_group: whether the parameters of this group and those around it are this experiment's
                too. Default True.

        Returns:
            The experiment; called with arguments, the decorator.

        Raises:
            InvalidTypeError: the function takes something else.
            InvalidValueError: names clash.
        """
        namespace = sys._getframe(1).f_locals
        parents = [*self._own(inherit_params_from_group), *parents_of(inherit_params)]

        def decorate(function: Callable[..., Any]) -> Experiment:
            path = self.path.split("/")
            made = Experiment(function, name=name, inherited=parents, defaults=defaults, path=path, namespace=namespace)
            self._add(made)
            return made

        return decorate if main is None else decorate(main)

    @overload
    def group(self, function: Callable[..., Any], /) -> "ExperimentGroup": ...

    @overload
    def group(
        self, /, *, name: str | None = None, inherit_params: Any = None, inherit_params_from_group: bool = True
    ) -> "Callable[[Callable[..., Any]], ExperimentGroup]": ...

    def group(
        self,
        function: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        inherit_params: Any = None,
        inherit_params_from_group: bool = True,
    ) -> Any:
        """Make a function a group inside this one; with or without arguments.

        Args:
            function: never run.
            name: its name on command lines. Default: the function's.
            inherit_params: whose parameters all experiments inside have too, as for ``trainlab.experiment``.
            inherit_params_from_group: whether those of this group are among them. Default True.

        Returns:
            The group; called with arguments, the decorator.

        Raises:
            InvalidValueError: names clash.
        """
        parents = [*self._own(inherit_params_from_group), *parents_of(inherit_params)]

        def decorate(inner: Callable[..., Any]) -> ExperimentGroup:
            made = ExperimentGroup(inner, name=name, parents=parents, path=self.path.split("/"))
            self._add(made)
            return made

        return decorate if function is None else decorate(function)

    def cli(self, argv: Sequence[str] | None = None, exit_on_error: bool = True) -> Any:
        """Run the experiment that a command line names: first its name, then its options.

        Args:
            argv: the words. Default: the program's own.
            exit_on_error: whether a wrong line ends the program with status 1. Default True.

        Returns:
            What the main function returns.

        Raises:
            InvalidValueError: the line is wrong, and ``exit_on_error`` is False.
            SystemExit: help was asked for, or the line is wrong.
        """
        from trainlab.experiments.entry import run_named

        words = sys.argv[1:] if argv is None else argv
        return run_named(self.children, words, help=self.help, exit_on_error=exit_on_error)

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        return f"<ExperimentGroup {self.path}>"

    def _own(self, inherits: bool) -> list[Declared]:
        return [self.__trainlab_parameters__] if inherits else []

    def _add(self, made: "Experiment | ExperimentGroup") -> None:
        before = self.children.get(made.name)
        if before is not None and not is_same(before, made):
            raise InvalidValueError(
                f"The group {self.path!r} has {made.name!r} already. Give one of them another name. Received: "
                f"{before.__qualname__} and {made.__qualname__}."
            )
        self.children[made.name] = made


@overload
def group(function: Callable[..., Any], /) -> ExperimentGroup: ...


@overload
def group(
    *, name: str | None = None, inherit_params: Any = None
) -> Callable[[Callable[..., Any]], ExperimentGroup]: ...


def group(function: Callable[..., Any] | None = None, /, *, name: str | None = None, inherit_params: Any = None) -> Any:
    """Make a function a group of experiments; with or without arguments.

    Args:
        function: never run; its docstring is the help, and its ``@parameter`` those of all experiments inside.
        name: its name on command lines. Default: the function's, in lower case, with dashes for underscores.
        inherit_params: whose parameters all experiments inside have too, as for ``trainlab.experiment``.

    Returns:
        The group; called with arguments, the decorator.

    Raises:
        InvalidValueError: names clash.
    """
    parents = parents_of(inherit_params)

    def decorate(inner: Callable[..., Any]) -> ExperimentGroup:
        made = ExperimentGroup(inner, name=name, parents=parents)
        registered.append(made)
        return made

    return decorate if function is None else decorate(function)


def global_entrypoint(argv: Sequence[str] | None = None, exit_on_error: bool = True) -> Any:
    """Run the experiment that the command line names, of all that the program has defined.

    Where there is only one, and it is in no group, its name may be left out.

    Args:
        argv: the words. Default: the program's own.
        exit_on_error: whether a wrong line ends the program with status 1. Default True.

    Returns:
        What the main function returns.

    Raises:
        InvalidValueError: the line is wrong, and ``exit_on_error`` is False; or two experiments have one name.
        SystemExit: help was asked for, or the line is wrong.
    """
    from trainlab.experiments.entry import run_named

    words = checked_words(sys.argv[1:] if argv is None else argv)
    children = _by_name()
    only = next(iter(children.values())) if len(children) == 1 else None
    if isinstance(only, Experiment) and (not words or words[0].startswith("-")):
        return only.cli(words, exit_on_error)
    return run_named(children, words, help="", exit_on_error=exit_on_error)


def _by_name() -> dict[str, Experiment | ExperimentGroup]:
    found: dict[str, Experiment | ExperimentGroup] = {}
    for made in registered:
        before = found.get(made.name)
        if before is not None and not is_same(before, made):
            raise InvalidValueError(
                f"Two experiments are called {made.name!r}. Give one of them another name by "
                f"@trainlab.experiment(name=...). Received: {before.__module__}.{before.__qualname__} and "
                f"{made.__module__}.{made.__qualname__}."
            )
        # The program itself rather than its copy that another module imports.
        if before is None or before.__module__ != "__main__":
            found[made.name] = made
    return found
