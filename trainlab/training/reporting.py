"""Reporter: keeps a window's metrics, and tells recorder, display and callbacks of them."""

import logging
import math
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainlab.distributed import launched
from trainlab.errors import MetricError
from trainlab.metrics import RunningMetrics
from trainlab.optim import describe_lrs
from trainlab.recording import LineDisplay, NoDisplay, Record
from trainlab.runs.yaml_text import mask_command
from trainlab.training.callback import CallbackHooks
from trainlab.training.context import TrialContext
from trainlab.training.trial import checked_length

__all__ = ["Reporter", "say_where"]

logger = logging.getLogger("trainlab.training")


class Reporter:
    """Turns the batches of a training window, and validations, into records.

    Args:
        context: the run's context.
        hooks: the callbacks' hooks.
        records: whether anything is written into the run's folder; a trial run writes nothing.
    """

    def __init__(self, context: TrialContext, hooks: CallbackHooks, *, records: bool) -> None:
        self._context = context
        self._hooks = hooks
        self._records = records
        self._began = 0.0
        self._records_before = 0
        self._warned_unstepped = False
        self.window = RunningMetrics(context.rules.metrics)
        # Gives the records that the loop did not count, for only all ranks together know them.
        self.take_count: Callable[[], int] = int

    def start_window(self) -> None:
        """Begin a training window: reducers anew, the clock anew."""
        self._context.reset_reducers()
        self._began = time.perf_counter()
        self._records_before = self._context.progress.records_trained

    def report(self) -> None:
        """End the window: reduce its metrics, warn of what is not finite, and tell everyone."""
        context, progress = self._context, self._context.progress
        batches, seconds = len(self.window), max(time.perf_counter() - self._began, 1e-9)
        first = progress.batches_trained - batches
        window = self.window.collect(
            first,
            want_batches=bool(self._hooks.training_workload_end),
            exchange=context.distributed.exchange if context.distributed.size > 1 else None,
        )
        self._warn_of_non_finite(window.non_finite, first)
        self._warn_of_unstepped()
        reduced = context.reduce_metrics(for_training=True)
        if twice := sorted(window.averages.keys() & reduced.keys()):
            raise MetricError(f"A reducer and train_batch both give the metrics {twice}. Rename one of them.")
        averages = {**window.averages, **reduced}
        if not_finite := sorted(name for name, value in reduced.items() if _is_not_finite(value)):
            last = progress.batches_trained - 1
            logger.warning("NaN or infinity in what reducers gave for batches %d to %d: %s.", first, last, not_finite)
        progress.records_trained += self.take_count()
        records = checked_length(progress.records_trained - self._records_before)
        progress.records_trained = self._records_before + records
        perf = {"batches_per_second": batches / seconds, "records_per_second": records / seconds}
        lrs = describe_lrs({name: w.optimizer for name, w in context.wrapped_optimizers.items()})
        self._tell(self._record("training", averages, lrs, perf))
        progress.last_report_batch = progress.batches_trained
        for hook in self._hooks.training_workload_end:
            counts = {"batches": progress.batches_trained, "epochs": progress.epochs_trained}
            hook(avg_metrics={**counts, **averages}, batch_metrics=window.batch_metrics)

    def report_validation(self, metrics: dict[str, Any]) -> None:
        """Tell of a validation.

        Args:
            metrics: its metrics by name.
        """
        if not_finite := sorted(name for name, value in metrics.items() if _is_not_finite(value)):
            batch = self._context.progress.batches_trained
            logger.warning("NaN or infinity in the validation metrics after batch %d: %s.", batch, not_finite)
        record = self._record("validation", metrics, {}, {})
        logger.info("Validation after batch %d: %s.", record.batch, metrics)
        if self._records:
            self._context.session.series.record(record)
        self._context.session.display.validation_end(record)

    def _tell(self, record: Record) -> None:
        if self._records:
            self._context.session.series.record(record)
        self._context.session.display.report(record)

    def _record(self, kind: Any, metrics: dict[str, Any], optim: dict[str, float], perf: dict[str, float]) -> Record:
        progress = self._context.progress
        return Record(
            kind=kind,
            batch=progress.batches_trained,
            epoch=progress.epochs_trained,
            records=progress.records_trained,
            time=time.time(),
            metrics=metrics,
            optim=optim,
            perf=perf,
        )

    def _warn_of_non_finite(self, found: dict[str, tuple[int, int]], first: int) -> None:
        if found:
            last = self._context.progress.batches_trained - 1
            names = ", ".join(f"{name!r} (batches {a} to {b})" for name, (a, b) in found.items())
            logger.warning("NaN or infinity in the training metrics of batches %d to %d: %s.", first, last, names)

    def _warn_of_unstepped(self) -> None:
        if not self._context.step_was_called and not self._warned_unstepped:
            self._warned_unstepped = True
            logger.warning(
                "No optimizer was stepped in the batches so far: nothing is learnt. "
                "Call context.step_optimizer(optimizer) in train_batch."
            )


def _is_not_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def say_where(context: TrialContext, last_checkpoint: Path | str | None, *, test_mode: bool, stopped: bool) -> None:
    """Tell a person where the run is, and how to go on with it.

    Args:
        context: the run's context.
        last_checkpoint: its newest checkpoint.
        test_mode: whether the run was only tried.
        stopped: whether a signal ended it: then it is told also where nothing is shown.
    """
    if not context.distributed.is_chief:
        return
    if test_mode:
        context.session.display.say("Test mode: one batch was trained, and a checkpoint written and read back.")
        return
    place = str(context.session.folder.place)
    how = f"TRAINLAB_RUN_DIR={shlex.quote(place)} {shlex.join(mask_command(sys.orig_argv))}"
    if context.distributed.size > 1 or launched() is not None:
        how = f"start it again, on any number of ranks, with TRAINLAB_RUN_DIR={shlex.quote(place)}"
    text = f"Run folder: {place}\nLast checkpoint: {last_checkpoint}\nTo go on from it: {how}"
    text = context.session.folder.masking.text(text)  # of a rank the console is copied
    unseen = isinstance(context.session.display, NoDisplay)
    # A warning would not do: it goes to the run's log alone where nobody set up logging.
    (LineDisplay() if stopped and unseen else context.session.display).say(text)
    logger.info("%s", text)
