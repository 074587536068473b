"""A command line's words by option: `--x 3`, `--x=3`, `--xs 1 2 3`, `--flag`, `--no-flag`."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from trainlab.errors import InvalidTypeError, did_you_mean
from trainlab.experiments.parameters import Parameter

__all__ = ["Line", "checked_words", "read_line"]

_NEGATIVE = re.compile(r"-(\d|\.\d|\.?inf(inity)?\b|\.?nan\b)", re.IGNORECASE)
_COMPLETION = "--print-completion"


@dataclass
class Line:
    """What stands on a command line.

    Attributes:
        words: of each parameter that is given; of a flag a bool.
        problems: what is wrong with the line, each a sentence.
        wants_help: whether help is asked for.
        completion: the shell for which completion is asked for; None if it is not.
    """

    words: dict[str, list[str] | bool] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    wants_help: bool = False
    completion: str | None = None


def read_line(argv: Sequence[str], parameters: Sequence[Parameter]) -> Line:
    """Divide a command line among the options.

    A word that begins with ``-`` is an option, but for negative numbers; ``--`` ends the options. Of an option that is
    there twice the last one counts; a list's words add up.

    Args:
        argv: the words, without the experiment's name.
        parameters: whose options there are.

    Returns:
        What was found, problems included.

    Raises:
        InvalidTypeError: the line is no list of texts.
    """
    return _Reader(checked_words(argv), parameters).read()


def checked_words(argv: Any) -> list[str]:
    """The words of a command line that a program gives.

    Args:
        argv: what was given.

    Returns:
        The same as a list.

    Raises:
        InvalidTypeError: it is no list of texts.
    """
    if isinstance(argv, str) or not isinstance(argv, Sequence) or not all(isinstance(word, str) for word in argv):
        raise InvalidTypeError(f'A command line is a list of its words, such as ["--lr", "3"]. Received: {argv!r}.')
    return [*argv]


def is_option(word: str) -> bool:
    """Whether a word of a command line is an option rather than a value."""
    return word.startswith("-") and word != "-" and not _NEGATIVE.match(word)


class _Reader:
    def __init__(self, argv: Sequence[str], parameters: Sequence[Parameter]) -> None:
        self._rest = [*argv]
        self._known = {parameter.option: parameter for parameter in parameters}
        self._negated: Mapping[str, Parameter] = {
            f"--no-{parameter.option[2:]}": parameter for parameter in parameters if parameter.is_flag
        }
        self._line = Line()

    def read(self) -> Line:
        after = ""
        while self._rest:
            word = self._rest.pop(0)
            if word == "--":
                self._superfluous(self._rest, "")
                break
            if not is_option(word):
                self._superfluous([word, *self._values()], after)
                continue
            option, equals, value = word.partition("=")
            after = self._spelt(option)
            self._option(after, equals, value)
        return self._line

    def _spelt(self, option: str) -> str:
        """An option as it is called here; torchrun and its like have underscores in theirs."""
        dashed = option.replace("_", "-")
        return dashed if dashed in self._known or dashed in self._negated else option

    def _option(self, option: str, equals: str, value: str) -> None:
        given = [value] if equals else None
        if option in {"-h", "--help"}:
            self._line.wants_help = True
        elif option == _COMPLETION:
            self._line.completion = " ".join(given or self._values()[:1])
        elif option in self._negated:
            self._flag(self._negated[option], option, False, given)
        elif option not in self._known:
            self._unknown(option, given)
        elif self._known[option].is_flag:
            self._flag(self._known[option], option, True, given)
        else:
            self._valued(self._known[option], given)

    def _flag(self, parameter: Parameter, option: str, value: bool, given: list[str] | None) -> None:
        is_own = option == parameter.option
        if given is None:
            self._line.words[parameter.name] = value
        elif is_own and parameter.is_field:
            self._line.words[parameter.name] = given
        else:
            self._line.problems.append(
                f"{option} takes no value: it is {parameter.option} or --no-{parameter.option[2:]}. "
                f"Received: {option}={given[0]}."
            )

    def _valued(self, parameter: Parameter, given: list[str] | None) -> None:
        takes_many = parameter.form in {"words", "pairs"}
        if given is None:
            given = self._values() if takes_many else self._values(1)
        if not given and (not takes_many or parameter.form == "pairs"):
            following = f" Received: {self._rest[0]!r}." if self._rest else ""
            hint = f" A value that begins with a dash is given as {parameter.option}=VALUE." if following else ""
            self._line.problems.append(f"{parameter.option} needs a value.{following}{hint}")
            return
        before = self._line.words.get(parameter.name)
        self._line.words[parameter.name] = [*before, *given] if takes_many and isinstance(before, list) else given

    def _unknown(self, option: str, given: list[str] | None) -> None:
        shown = [name for name, parameter in self._known.items() if not parameter.hidden]
        meant = did_you_mean(option, [*shown, *self._negated, "--help"])
        self._line.problems.append(f"There is no option {option}.{meant or ' --help lists all.'}")
        if given is None:
            self._values()  # they are its own

    def _superfluous(self, words: list[str], option: str) -> None:
        if not words:
            return
        parameter = self._known.get(option) or self._negated.get(option)
        if parameter is None:
            subject = "A value stands after its option, as in --name VALUE"
        elif parameter.is_secret:
            self._line.problems.append(f"{option} takes one value. Received: more than one.")
            return
        elif parameter.form in {"words", "pairs"}:
            subject = f"Several values are given as {option} A B or as {option}=A {option}=B"
        else:
            subject = f"{option} takes {'no' if parameter.is_flag else 'one'} value"
        self._line.problems.append(f"{subject}. Received: {' '.join(map(repr, words))}.")

    def _values(self, most: int | None = None) -> list[str]:
        """The following words that are values, at most so many."""
        found: list[str] = []
        while self._rest and not is_option(self._rest[0]) and len(found) != most:
            found.append(self._rest.pop(0))
        return found
