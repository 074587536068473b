"""Where the values of parameters come from: a command line, a call, the environment, a params file, defaults."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainlab.errors import InvalidValueError
from trainlab.experiments.command_line import Line
from trainlab.experiments.given import Given, Rank, flatten
from trainlab.experiments.model_fields import Node
from trainlab.experiments.nested_values import masked_place
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.params_file import read_params_file
from trainlab.experiments.values import MASK, Values

__all__ = ["Sources"]

_IGNORE_ENVIRONMENT = "TRAINLAB_IGNORE_ENVIRONMENT"


class Sources:
    """Gathers what is given for an experiment's parameters, and what is wrong with it.

    Args:
        nodes: the parameters and models by name.
        parameters: all single parameters, each once.

    Attributes:
        given: by the parameter's name, of each what counts.
        problems: what is wrong, each a sentence.
    """

    def __init__(self, nodes: Mapping[str, Node], parameters: Sequence[Parameter]) -> None:
        self._nodes, self._parameters = nodes, parameters
        self._of_name = {parameter.name: parameter for parameter in parameters}
        self.given: dict[str, Given] = {}
        self.problems: list[str] = []

    def add_defaults(self, values: Mapping[str, Any]) -> None:
        """Take in the defaults that a decorator changes."""
        self._add_values(values, Rank.DEFAULT, "default", "the default of {name}")

    def add_made(self, values: Values) -> None:
        """Take in the values of a run as the defaults of what runs inside of it."""
        if values.model is not None:
            self._add("", Given(values.model, Rank.DEFAULT, "default", "the run's", is_made=True))
        for name, value in values.params.items():
            if name in self._of_name and not self._of_name[name].is_field and name != "params_file":
                self._add(name, Given(value, Rank.DEFAULT, "default", name, is_made=True))

    def add_recorded(self, values: Mapping[str, Any]) -> None:
        """Take in what is to be a run's params file, with the secrets, and with what no file may set."""
        self._add_values(values, Rank.FILE, "params file", "{name}", is_recorded=True)

    def add_call(self, params: Mapping[str, Any] | BaseModel) -> None:
        """Take in what a call was given."""
        self._add_values(params, Rank.CALL, "call", "{name}")

    def add_line(self, line: Line) -> None:
        """Take in a command line."""
        self.problems += line.problems
        for name, words in line.words.items():
            self._add(name, Given(words, Rank.COMMAND_LINE, "command line", self._of_name[name].option))

    def add_params_file(self) -> None:
        """Take in the params file that was given, if one was."""
        given = self.given.get("params_file")
        value = None if given is None else given.value_for(self._of_name["params_file"])
        if value is not None:
            self.add_file(value)

    def add_file(self, path: str | Path) -> None:
        """Take in a params file."""
        try:
            values = read_params_file(path)
        except InvalidValueError as error:
            self.problems.append(str(error))
            return
        self._add_values(values, Rank.FILE, f"params file {Path(path).absolute()}", f"{{name}} in {path}")

    def add_environment(self, environ: Mapping[str, str] | None) -> None:
        """Take in the variables that parameters declare; an empty one counts as none."""
        variables = os.environ if environ is None else environ
        ignores = variables.get(_IGNORE_ENVIRONMENT) == "1"
        for parameter in self._parameters:
            text = variables.get(parameter.envvar or "", "")
            if text and (parameter.is_secret or not ignores):
                origin = f"environment variable {parameter.envvar}"
                self._add(parameter.name, Given(text, Rank.ENVIRONMENT, origin, f"the {origin}"))

    def _add_values(
        self,
        values: Mapping[str, Any] | BaseModel,
        rank: Rank,
        origin: str,
        subject: str,
        *,
        is_recorded: bool = False,
    ) -> None:
        seen: set[str] = set()
        where = f"in the {origin}" if rank is not Rank.DEFAULT else "in defaults="
        for name, value in flatten(self._nodes, values, self.problems, where):
            parameter = self._of_name.get(name)
            if name in seen:
                self.problems.append(f"{name} is given twice, {where}.")
            seen.add(name)
            if rank is Rank.FILE and not is_recorded and not self._counts(name, parameter, value, origin):
                continue
            self._add(name, Given(value, rank, origin, subject.format(name=name)))

    def _add(self, name: str, given: Given) -> None:
        before = self.given.get(name)
        if before is None or before.rank <= given.rank:
            self.given[name] = given

    def _counts(self, name: str, parameter: Parameter | None, value: Any, origin: str) -> bool:
        """Whether a params file's value is one: a masked secret is none, and what has one inside cannot be used."""
        if parameter is None or parameter.is_secret:
            return value != MASK and (parameter is None or parameter.allow_from_file)
        place = masked_place(value) if parameter.allow_from_file else None
        stronger = self.given.get(name)
        if place is not None and (stronger is None or stronger.rank < Rank.FILE):
            variable = f", or the environment variable {parameter.envvar}" if parameter.envvar else ""
            self.problems.append(
                f"{name}{place} is a secret that was not recorded (it is {MASK!r} in the {origin}): give "
                f"{parameter.option} as a whole{variable}."
            )
        return parameter.allow_from_file
