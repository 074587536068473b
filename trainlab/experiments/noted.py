"""Noted: what was given for an experiment, what is wrong with it, and the secrets that no message may show."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainlab.errors import InvalidValueError
from trainlab.experiments.given import Given, Rank, shortened
from trainlab.experiments.nested_values import secrets_in
from trainlab.experiments.parameters import Parameter
from trainlab.experiments.values import secret_text
from trainlab.runs.masking import Masking
from trainlab.runs.yaml_text import secrets_of_text

__all__ = ["Noted", "needed", "secrets_of"]


class Noted:
    """Shared by what makes the values of one run.

    Args:
        given: by the parameter's name.
        problems: what is known to be wrong already; is added to.

    Attributes:
        given: by the parameter's name.
        problems: what is wrong, each a sentence.
        failed: the names of the parameters and models that something is wrong with.
        counted: of what was given what has been used.
    """

    def __init__(self, given: Mapping[str, Given], problems: list[str]) -> None:
        self.given, self.problems = given, problems
        self.failed: set[str] = set()
        self.counted: dict[str, Given] = {}
        self._hidden: list[str] = []
        self._read: dict[tuple[int, int], tuple[Parameter, Any, Any]] = {}

    def tell(self, name: str, problem: str) -> None:
        """Note what is wrong with a parameter."""
        self.problems.append(problem)
        self.failed.add(name)

    def hide(self, texts: Sequence[str]) -> None:
        """Note secrets that no message may show."""
        self._hidden += texts

    def scrubbed(self, text: str) -> str:
        """A text without the secrets."""
        return Masking(dict.fromkeys(self._hidden)).text(text)

    def received(self, given: Given | None, parameter: Parameter, value: Any) -> str:
        """How a value was given, for a message; one that was not given itself."""
        if given is not None:
            return given.received(parameter, self.scrubbed)
        return shortened(value, self.scrubbed)

    def look_for_secrets(self, parameter: Parameter) -> None:
        """Note the secrets of what was given for a parameter and of its default, which may turn out to be wrong."""
        self.hide(secrets_of(parameter, parameter.default))
        given = self.given.get(parameter.name)
        if given is None:
            return
        self.hide(secrets_of(parameter, given.value))
        if parameter.form not in ("yaml", "pairs"):
            return
        value = self.raw(parameter, given)
        self.hide(secrets_of(parameter, value))
        if given.rank in (Rank.COMMAND_LINE, Rank.ENVIRONMENT) and not isinstance(value, (Mapping, list)):
            self.hide_words(given.value)

    def hide_words(self, words: Any) -> None:
        """Note what stands under names of secrets in words that cannot be read."""
        texts = words if isinstance(words, list) else [words]
        self.hide([secret for text in texts for secret in secrets_of_text(str(text))])

    def raw(self, parameter: Parameter, given: Given | None) -> Any:
        """What was given, as data; None if it was not, or cannot be read."""
        try:
            return None if given is None else self._converted(parameter, given)[0]
        except InvalidValueError:
            return None

    def converted(self, parameter: Parameter, given: Given) -> Any:
        """What pydantic is given for a parameter; what is wrong with the words is noted."""
        try:
            return self._converted(parameter, given)[1]
        except InvalidValueError as error:
            self.tell(parameter.name, f"{given.subject} {error}")
            return given.value

    def _converted(self, parameter: Parameter, given: Given) -> tuple[Any, Any]:
        key = (id(parameter), id(given))
        if key not in self._read:
            value = given.value_for(parameter)
            self._read[key] = (parameter, value, given.input_for(parameter, value))
        return self._read[key][1:]


def secrets_of(parameter: Parameter, value: Any) -> list[str]:
    """The texts of the secrets of a parameter's value."""
    found = secrets_in(value, parameter.annotation)
    return [*secret_text(value), *found] if parameter.is_secret else found


def needed(parameter: Parameter) -> str:
    """Say that a parameter lacks a value."""
    variable = f", or the environment variable {parameter.envvar}" if parameter.envvar else ""
    return f"{parameter.option} is needed: give it{variable}, or {parameter.name} in a params file or a call."
