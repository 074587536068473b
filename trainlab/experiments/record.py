"""RunRecord: what is written of an experiment's run, at its start and at its end."""

import inspect
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from trainlab.errors import TrainlabError
from trainlab.experiments.opening import Opened
from trainlab.experiments.text_values import option_words
from trainlab.runs import RankOutput
from trainlab.runs.ending import status_of, told_error
from trainlab.runs.listing import value_at
from trainlab.runs.masking import Masking
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
            folder.masking = Masking(values.secrets)
            folder.attach_log()
            folder.attach_users_log()
            self._warnings = ShownWarnings(_say if self._opened.is_chief else _say_nothing)
            self._output = RankOutput.open(folder.path, self._opened.rank)
            if self._opened.is_chief:
                self._write_start({name: value for name, value in values.plain().items() if name != "params_file"})
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
        if status_of(error) == "failed":
            logger.info("The run has failed.", exc_info=error)
        failure = self._opened.failure_behind(error) if self._opened.is_chief else None
        status, told = (status_of(error), told_error(error)) if failure is None else ("failed", failure)
        try:
            try:
                self._folder.write_record(status=status, error=told, **self._returned)
            finally:
                if self._output is not None:
                    self._output.close()  # before its last lines are copied to a store
                self._folder.close()
        except (OSError, TrainlabError) as failure:
            if error is None:
                raise
            # What ended the run is what a person must see; this may be its consequence (a full disk).
            logger.error("The end of the run could not be written down: %s", failure)
        finally:
            if self._warnings is not None:
                self._warnings.close()

    def _write_start(self, params: dict[str, Any]) -> None:
        folder, values = self._folder, self._opened.values
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
                **_given_anew(self._experiment, values, params),
            },
            params=params,
            origins=dict(values.origins),
            random_seed=values.params["random_seed"],
            argv=mask_command(sys.argv),
            git=record_surroundings(code, folder.path),
            devices=describe_devices(),
        )
        folder.push()


def _given_anew(experiment: "Experiment", values: "Values", params: Mapping[str, Any]) -> dict[str, Any]:
    """What a repetition needs beside ``params.yaml``: values that no file may set, and where secrets come from."""
    options: dict[str, list[str]] = {}
    variables: dict[str, str] = {}
    for parameter in experiment.parameters:
        if parameter.name in values.secret_names:
            variables |= {parameter.name: parameter.envvar} if parameter.envvar else {}
        elif not parameter.allow_from_file and parameter.name != "params_file":
            options[parameter.name] = option_words(parameter, value_at(params, parameter.name))
    found = {"options": {name: words for name, words in options.items() if words}, "variables": variables}
    return {name: told for name, told in found.items() if told}


def _facts_of(returned: Any) -> dict[str, Any]:
    fit = sys.modules.get("trainlab.training.result")
    if fit is not None and isinstance(returned, fit.FitResult):
        return {"metrics": plain_numbers(returned.metrics), "stop_reason": returned.stop_reason}
    if isinstance(returned, Mapping):
        found = plain_numbers(returned)
        return {"metrics": found} if found else {}
    number = plain_number(returned)
    return {} if number is None else {"result": number}


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _say_nothing(line: str) -> None:
    """Stand in on the ranks whose warnings only their logs show."""
