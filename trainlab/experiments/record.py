"""RunRecord: what is written of an experiment's run, at its start and at its end."""

import contextlib
import inspect
import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trainlab.errors import TrainlabError
from trainlab.experiments.opening import Opened
from trainlab.experiments.read_back import Recorded, recorded
from trainlab.experiments.text_values import option_words
from trainlab.runs import RankOutput
from trainlab.runs.ending import status_of, told_error
from trainlab.runs.listing import value_at
from trainlab.runs.plain_numbers import plain_number, plain_numbers
from trainlab.runs.shown_warnings import ShownWarnings
from trainlab.runs.surroundings import describe_devices, record_surroundings
from trainlab.runs.yaml_text import mask_command

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment
    from trainlab.experiments.values import Values

__all__ = ["RunRecord"]

logger = logging.getLogger("trainlab.experiments")


class RunRecord:
    """The time between a run's first file and its last: what is logged goes to its log, and its end is written down.

    Args:
        experiment: what is run.
        opened: the run, which is closed at the end of the block.
    """

    def __init__(self, experiment: "Experiment", opened: Opened) -> None:
        self._experiment, self._opened, self._folder = experiment, opened, opened.folder
        self._output: RankOutput | None = None
        self._warnings: ShownWarnings | None = None
        self._returned: dict[str, Any] = {}
        self._pid = os.getpid()

    def __enter__(self) -> "RunRecord":
        """Write what is known at the start."""
        folder, values = self._folder, self._opened.values
        try:
            folder.masking.add(values.secrets)
            folder.attach_log()
            folder.attach_users_log()
            self._warnings = ShownWarnings(_say if self._opened.is_chief else _say_nothing)
            self._output = RankOutput.open(folder.path, self._opened.rank, folder.masking)
            if self._opened.is_chief:
                self._write_start()
            logger.info("Run of %s in %s.", self._experiment.path, folder.place)
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def note_returned(self, returned: Any) -> None:
        """Note what the main function returned, for the record.

        Args:
            returned: a number, numbers by name, what ``fit`` returned, or anything else, which is not recorded.
        """
        self._returned = _facts_of(returned)

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Write how the run has ended, and close its folder.

        Raises:
            TrainlabError: that cannot be done, and nothing else has gone wrong.
            OSError: as TrainlabError.
        """
        if os.getpid() != self._pid:
            return  # a forked child that comes out of the main function has nothing to say about its parent's run
        problems: list[Exception] = []
        try:
            with contextlib.ExitStack() as closing:
                closing.callback(_attempt, self._folder.close, problems)
                if self._output is not None:
                    closing.callback(self._output.close)  # before its last lines are copied to a store
                _attempt(lambda: self._write_end(error), problems)
            if error is None and problems:
                raise problems[0]
            for problem in problems:
                # What ended the run is what a person must see; this may be its consequence (a full disk).
                logger.error("The end of the run could not be written down: %s", problem)
        finally:
            if self._warnings is not None:
                self._warnings.close()

    def _write_end(self, error: BaseException | None) -> None:
        if status_of(error) == "failed":
            logger.info("The run has failed.", exc_info=error)
        failure = self._opened.failure_behind(error) if self._opened.is_chief else None
        status, told = (status_of(error), told_error(error)) if failure is None else ("failed", failure)
        self._folder.write_record(status=status, error=told, **self._returned)

    def _write_start(self) -> None:
        folder, values = self._folder, self._opened.values
        found = recorded(self._experiment, values)
        params = {name: value for name, value in found.params.items() if name != "params_file"}
        if found.differing:
            logger.warning(
                "The parameters %s are read from params.yaml as other values than this run has, so that it gives "
                "another run: their validators change what they have made, or their types have no plain form.",
                ", ".join(found.differing),
            )
        folder.write_params(params)
        main = inspect.unwrap(self._experiment.main)
        file = Path(inspect.getfile(main)).resolve()  # of a notebook none that is there
        code = file.parent if file.is_file() else Path.cwd()
        folder.write_record(
            experiment={
                "path": self._experiment.path,
                "module": main.__module__,
                "file": str(file) if file.is_file() else None,
                "qualname": main.__qualname__,
                **_given_anew(self._experiment, values, params, found),
            },
            params=params,
            origins=dict(values.origins),
            random_seed=values.params["random_seed"],
            argv=mask_command(sys.argv),
            git=record_surroundings(code, folder.path),
            devices=describe_devices(),
        )
        folder.push()


def _given_anew(
    experiment: "Experiment", values: "Values", params: Mapping[str, Any], found: Recorded
) -> dict[str, Any]:
    """What a repetition needs beside ``params.yaml``: values that no file may set, and where secrets come from.

    And what to know of it: defaults that are not in the file, and parameters that it gives other values.
    """
    options: dict[str, list[str]] = {}
    variables: dict[str, str] = {}
    for parameter in experiment.parameters:
        if parameter.name in values.secret_names:
            variables |= {parameter.name: parameter.envvar} if parameter.envvar else {}
        elif not parameter.allow_from_file and parameter.name not in {"params_file", *found.left_out}:
            options[parameter.name] = option_words(parameter, value_at(params, parameter.name))
    needed = {"options": {name: words for name, words in options.items() if words}, "variables": variables}
    told = {**needed, "left_out": found.left_out, "not_read_back": found.differing}
    return {name: one for name, one in told.items() if one}


def _facts_of(returned: Any) -> dict[str, Any]:
    fit = sys.modules.get("trainlab.training.result")
    if fit is not None and isinstance(returned, fit.FitResult):
        return {"metrics": plain_numbers(returned.metrics), "stop_reason": returned.stop_reason}
    if isinstance(returned, Mapping):
        found = plain_numbers(returned)
        others = {str(name): type(value).__name__ for name, value in returned.items() if str(name) not in found}
        return {name: told for name, told in (("metrics", found), ("not_numbers", others)) if told}
    number = plain_number(returned)
    return {} if number is None else {"result": number}


def _attempt(step: Callable[[], object], problems: list[Exception]) -> None:
    """Take a step of the end, after which the others are taken in any case."""
    try:
        step()
    except (OSError, TrainlabError) as problem:
        problems.append(problem)


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _say_nothing(line: str) -> None:
    """Stand in on the ranks whose warnings only their logs show."""
