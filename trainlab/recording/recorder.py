"""Recorder: numbers, images and figures of a training loop of one's own."""

import math
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from trainlab.distributed import is_master
from trainlab.distributed.places import place_of_environment
from trainlab.errors import CheckpointMismatchError, InvalidStateError, InvalidTypeError, InvalidValueError
from trainlab.recording.counter import checked_count
from trainlab.recording.earlier import refuse_to_begin_anew
from trainlab.recording.output import BACKENDS, Output
from trainlab.recording.pictures import figure_array, image_array, picture_name
from trainlab.runs.current import current_run

__all__ = ["Recorder"]


class Recorder:
    """Records numbers, images and figures, each at the present count; silent on all ranks but the first.

    After any number of crashes and resumes each step is recorded once: ``load_state_dict`` cuts what a dead process
    recorded after the state was saved, and a run that begins anew in the same folder (its first ``step``, or its second
    ``count``, comes without a ``load_state_dict``) begins its files anew, from the first count that it records. What is
    recorded before either waits until one of them comes.

    Args:
        output_dir: The folder that is written to. Default None: that of the running experiment.
        tensorboard: Whether to write TensorBoard's files, in ``events``. Default True.
        file: Whether to write ``scalars.csv``, ``images/<tag>-<count>.png`` and ``figures/<tag>-<count>.jpg``.
            Default True.
        console: Whether to write a line for each step to ``sys.stderr``. Default False.
        backends: In place of the three: names out of "console", "csv", "jsonl" (``scalars.jsonl``), "tensorboard".
            Pictures are written to files with "csv" or "jsonl".

    Raises:
        InvalidStateError: There is no ``output_dir``, and no experiment is running in this process.
        InvalidValueError: A backend is unknown.
        InvalidTypeError: ``backends`` is no list of names.

    Source: ``pystematic.Recorder``.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] | None = None,
        tensorboard: bool = True,
        file: bool = True,
        console: bool = False,
        *,
        backends: Sequence[str] | None = None,
    ) -> None:
        if backends is None:
            asked = {"tensorboard": tensorboard, "csv": file, "console": console}
            backends = [name for name, is_wanted in asked.items() if is_wanted]
        self._backends = _checked(backends)
        self._folder = _folder(output_dir)
        self._count = 0
        self._is_silent = False
        self._made: Output | None = None
        self._pid = os.getpid()
        # Whether it is settled what becomes of earlier files; if not, where the first record is.
        self._is_placed = False
        self._first: int | None = None

    @property
    def count(self) -> int:
        """The count at which everything is recorded; it can be set.

        Raises:
            InvalidTypeError: What it is set to is no int.
            InvalidStateError: As of ``step``.
        """
        return self._count

    @count.setter
    def count(self, count: int) -> None:
        count = checked_count(count)
        if count != self._count and self._first is not None:
            self._place()
        self._count = count

    def step(self) -> None:
        """Count one more.

        Raises:
            InvalidStateError: The run would begin anew in a folder where it has checkpoints; nothing was removed.
        """
        self._place()
        self._count += 1
        if (output := self._output()) is not None:
            output.write_gathered()

    def scalar(self, tag: str, value: Any) -> None:
        """Record a number.

        Args:
            tag: Its name, such as ``train/loss``.
            value: A number, or a tensor or an array of one element, on any device; it is not waited for here.

        Raises:
            InvalidTypeError: It is no number.
            InvalidValueError: It has several elements, or is greater than any float.
            InvalidStateError: Another recorder writes to the same folder, in this process or another one.
        """
        number = _number(_checked_tag(tag), value)
        if (output := self._output()) is not None:
            self._note_record()
            output.scalar(self._count, tag, number)

    def image(self, tag: str, image: Any) -> None:
        """Record an image.

        Args:
            tag: Its name.
            image: Of PIL; an array of shape (H, W) or (H, W, C); or a tensor of shape (H, W) or (C, H, W), with C of 1,
                3 or 4. Floats count from 0 to 1, integers from 0 to 255.

        Raises:
            InvalidValueError: It is of another shape, or out of range; or the tag is too long for a file's name.
            InvalidTypeError: It is no image.
        """
        array = image_array(image) if self._output() is not None else None
        self._picture("images", _checked_tag(tag), array)

    def figure(self, tag: str, figure: Any) -> None:
        """Record a figure of matplotlib's, which stays open.

        Args:
            tag: Its name.
            figure: The figure.

        Raises:
            InvalidValueError: It is none; or the tag is too long for a file's name.
        """
        array = figure_array(figure) if self._output() is not None else None
        self._picture("figures", _checked_tag(tag), array)

    def params(self, params: Mapping[str, Any]) -> None:
        """Record parameters, in ``recorded_params.yaml`` and as a text in TensorBoard; secrets are masked.

        Args:
            params: By name.

        Raises:
            InvalidTypeError: It is no mapping.
        """
        if not isinstance(params, Mapping):
            raise InvalidTypeError(f"params takes parameters by name. Received: {type(params).__qualname__}.")
        if (output := self._output()) is not None:
            output.params(self._count, params)

    def state_dict(self) -> dict[str, Any]:
        """Give the count, and how far the files were written.

        Returns:
            ``count``, and ``series``: of each file its size; None where nothing is written.
        """
        output = self._output()
        return {"count": self._count, "series": None if output is None else output.position()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from where another recorder was; what was recorded in this folder after that is cut.

        Args:
            state: What ``state_dict`` gave; ``{"count": n}`` alone cuts nothing.

        Raises:
            CheckpointMismatchError: It is no such state.
        """
        if not isinstance(state, Mapping) or not {"count"} <= set(state) <= {"count", "series"}:
            raise CheckpointMismatchError(
                f"The state of a Recorder has the entries 'count' and 'series'. Received: {state!r:.200}."
            )
        self._count = checked_count(state["count"])
        position = state.get("series")
        if (output := self._output()) is None:
            return
        if position is not None:
            output.restore(position, self._count)
        elif self._count:
            output.go_on()
        self._is_placed = self._is_placed or position is not None or bool(self._count)

    def silence(self) -> None:
        """Record nothing any more."""
        self._is_silent = True
        self.close()

    def flush(self) -> None:
        """Hand everything that is recorded to the operating system: a process killed afterwards loses none of it."""
        if self._made is not None:
            self._made.flush()

    def close(self) -> None:
        """Write everything and close the files; what is recorded later opens them again."""
        output, self._made = self._made, None
        if output is not None:
            output.close()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _picture(self, kind: str, tag: str, array: Any) -> None:
        picture_name(kind, tag, self._count)  # which tells of a mistake where it is made
        if array is not None and (output := self._output()) is not None:
            self._note_record()
            output.picture(kind, self._count, tag, array)

    def _note_record(self) -> None:
        if self._first is None:
            self._first = self._count

    def _place(self) -> None:
        """Begin the files anew where nobody has said where to go on."""
        if self._is_placed or (output := self._output()) is None:
            return
        try:
            refuse_to_begin_anew(self._folder)
        except InvalidStateError:
            output.forget()
            raise
        output.begin(self._count if self._first is None else self._first)
        self._is_placed = True

    def _output(self) -> Output | None:
        """What is written to; None where this recorder is silent."""
        if self._is_silent or not is_master():
            return None
        if self._made is None and not _is_first():
            return None
        if os.getpid() != self._pid:
            raise InvalidStateError(
                "A Recorder records in the process that made it, for two would write over each other. Received: a call "
                "in a child process. Return what is to be recorded to the parent."
            )
        if self._made is None:
            self._made = output = Output(self._folder, self._backends)
            weakref.finalize(self, output.close)
            run = current_run()
            if run is not None:
                run.at_end.callback(output.close)
            if self._is_placed:  # it was closed, and goes on with its own files
                output.go_on()
        return self._made


def _checked(names: Sequence[str]) -> list[str]:
    if not isinstance(names, Iterable):
        raise InvalidTypeError(
            f"backends is a list of names. Received: {names!r}. Allowed: {', '.join(map(repr, BACKENDS))}."
        )
    given = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in given if name not in BACKENDS]
    if unknown:
        raise InvalidValueError(
            f"There is no such backend of a Recorder. Received: {', '.join(map(repr, unknown))}. "
            f"Allowed: {', '.join(map(repr, BACKENDS))}."
        )
    return given


def _folder(output_dir: str | os.PathLike[str] | None) -> Path:
    if output_dir is not None:
        return Path(output_dir).expanduser().absolute()
    run = current_run()
    if run is None:
        raise InvalidStateError(
            "A Recorder writes to the folder of the running experiment, and none is running. Pass output_dir, or make "
            "it in the main function of an experiment."
        )
    if run.pid != os.getpid() and not run.is_subprocess:
        raise InvalidStateError(
            f"The run in {run.output_dir} is that of this process's parent, whose Recorder writes there. Pass an "
            "output_dir of its own."
        )
    return run.output_dir


def _is_first() -> bool:
    """Whether this process is the one that records, as far as its start tells: the ranks may not have met yet."""
    run = current_run()
    if run is not None and run.is_subprocess:
        return False
    place = place_of_environment()
    return place is None or place.rank == 0


def _checked_tag(tag: Any) -> str:
    if not isinstance(tag, str) or not tag or "\0" in tag:
        raise InvalidTypeError(f"A tag is a text. Received: {tag!r}.")
    return tag


def _number(tag: str, value: Any) -> Any:
    """A float, or a tensor of no dimension on an accelerator, which is read once it is written."""
    if isinstance(value, torch.Tensor | np.ndarray | np.generic):
        if math.prod(value.shape) != 1:
            raise InvalidValueError(
                f"A scalar is one number. Received: shape {tuple(value.shape)} for {tag!r}. Reduce it, as with mean()."
            )
        if isinstance(value, torch.Tensor) and not value.is_complex():
            value = value.detach().reshape(())
            return float(value) if value.device.type == "cpu" else value.clone()
        value = value.item()
    if isinstance(value, int | float):
        try:
            return float(value)
        except OverflowError:
            raise InvalidValueError(
                f"A scalar is recorded as a float, and this is greater than any. Received: an int of "
                f"{value.bit_length()} bits for {tag!r}."  # type: ignore[union-attr]
            ) from None
    raise InvalidTypeError(f"A scalar is a real number. Received: {value!r:.100} for {tag!r}.")
