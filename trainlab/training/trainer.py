"""Trainer: the whole training loop, from the first batch to the last checkpoint.

A boundary is the instant after a finished batch at which something is due (a report, a validation, a
checkpoint, the end) or a stop was asked for. Only there are metrics copied to the host, files written and
the slow hooks called. Between two boundaries the loop does nothing but fetch a batch, train it and count,
and at the end of an epoch call the hooks of epochs. Several ranks agree on a stop at each boundary, and about once a
second in between.
"""

import contextlib
import functools
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Literal

from trainlab.checkpoint import Checkpoint, CheckpointWriter, Retention, SaveMode
from trainlab.distributed import RngState, derive_seed, note, preserved_rng, seed_all
from trainlab.schedule import Action, Batch, Plan, TrainUnit
from trainlab.storage import open_store
from trainlab.training.agreement import Agreement
from trainlab.training.callback import CallbackHooks
from trainlab.training.checkpointing import Checkpointing, content_of, reading, weights_loaded_for_a_while
from trainlab.training.comparing import compare_ranks, compare_weights
from trainlab.training.context import TrialContext
from trainlab.training.judging import Judge
from trainlab.training.opening import (
    check_choices,
    check_open,
    check_trainable,
    folder_of_try,
    open_evaluator,
    open_stream,
    resume_point,
)
from trainlab.training.reporting import Reporter, say_where
from trainlab.training.requeue import end_by_signal, requeues_wanted
from trainlab.training.result import FitResult
from trainlab.training.searching import Searched, length_of_search
from trainlab.training.sharing import SharedStep
from trainlab.training.signals import StopSignals
from trainlab.training.trial import Trial, check_trial, checked_length

__all__ = ["Trainer"]

logger = logging.getLogger("trainlab.training")

# An optimizer that trainlab does not step is taken to have stepped by then.
_BATCHES_BEFORE_TRY = 64


class Trainer:
    """Trains a Trial, validates it, and makes checkpoints.

    Args:
        trial: your Trial.
        context: the context that it was made with.

    Raises:
        InvalidTypeError: one of the two is something else.
        TrialDefinitionError: the Trial wraps no model or no optimizer, or its hooks are wrong.
    """

    def __init__(self, trial: Trial, context: TrialContext) -> None:
        check_trainable(trial, context)
        self._trial = trial
        self.context = context
        # The signal that ended the last fit, 0 for none; whether a checkpoint was due where none can be made.
        self._signal = 0
        self._owes_checkpoint = False
        # Whether the launcher was told that a batch was trained.
        self._noted = False

    def fit(
        self,
        checkpoint_period: TrainUnit | None = None,
        validation_period: TrainUnit | None = None,
        max_length: TrainUnit | None = None,
        reporting_period: TrainUnit = Batch(100),
        checkpoint_policy: str = "best",
        latest_checkpoint: str | os.PathLike[str] | None = None,
        step_zero_validation: bool = False,
        test_mode: bool = False,
        *,
        metric: str | None = None,
        smaller_is_better: bool = True,
        retention: Retention | None = None,
        checkpoint_mode: SaveMode = "async",
    ) -> FitResult:
        """Train until ``max_length``, counted from the run's beginning; a second call goes on.

        Args:
            checkpoint_period: when to make a checkpoint. Default: only at the end, and as the policy says.
            validation_period: when to validate. Default: only at the end.
            max_length: how long to train, ``Batch(n)`` or ``Epoch(n)``. Default: as the search says that the run is a
                trial of; without one it must be given.
            reporting_period: when to report the training metrics, at the least; every boundary reports.
                Default ``Batch(100)``.
            checkpoint_policy: "best": a checkpoint after each validation that is the best so far by ``metric``;
                "all": after each validation; "none": after none. Default "best".
            latest_checkpoint: the checkpoint to resume from. Default: start from the beginning; where a launch started
                its processes again, in the folder that they had before: go on from its newest.
            step_zero_validation: whether to validate once before the first batch. Default False.
            test_mode: whether to try one batch of training, one of validation and a checkpoint, leaving nothing
                on the disk. Default False.
            metric: the validation metric that tells which checkpoint is the best. Default: none is.
            smaller_is_better: whether a smaller value of it is better. Default True.
            retention: which checkpoints are kept. Default: the last two, and the best one by ``metric``.
            checkpoint_mode: how training goes on while a checkpoint is written. "async": on a copy of its tensors, in
                memory kept for that; "fork": a forked child has the copy (Linux, CPU; otherwise as "async"); "sync":
                it waits. Default "async".

        Returns:
            Counters, last metrics, best metric and checkpoints.

        Raises:
            InvalidValueError: an argument cannot be used.
            InvalidTypeError: an argument has the wrong type.
            InvalidStateError: the context is closed, or a checkpoint must be passed and was not.
            CheckpointError: a checkpoint cannot be read, the state cannot be saved, or the last checkpoint
                cannot be written; one before is logged as an error, and the next is tried.
            SystemExit: a signal n ended the run with 128 + n, after a checkpoint was made, the signal's earlier handler
                was called, and, in a SLURM batch job that SLURM is about to end, the job was requeued.
        """
        context, progress = self.context, self.context.progress
        check_open(context)
        requeues_wanted(os.environ)  # a mistake is told before anything is trained
        check_choices(
            checkpoint_policy,
            metric,
            retention,
            checkpoint_mode,
            step_zero_validation=step_zero_validation,
            test_mode=test_mode,
            smaller_is_better=smaller_is_better,
        )
        self._plan = Plan(
            max_length=length_of_search(context) if max_length is None else max_length,
            reporting_period=reporting_period,
            validation_period=validation_period,
            checkpoint_period=checkpoint_period,
        )
        self._validates = validation_period is not None or metric is not None or step_zero_validation
        check_trial(self._trial, validates=self._validates)
        checkpoint = resume_point(context, latest_checkpoint, uncertain=context.uncertain)
        first_batch = progress.batches_trained if checkpoint is None else checkpoint.progress["batches_trained"]
        if test_mode:
            self._plan = Plan(max_length=Batch(first_batch + 1), reporting_period=reporting_period)
        self._policy = context.rules.checkpoint_policy(checkpoint_policy, metric)
        self._judge = Judge(metric, smaller_is_better)
        self._searched = Searched(context, self._plan, is_try=test_mode)
        self._test_mode, self._step_zero = test_mode, step_zero_validation
        self._untried = context.rules.tries_checkpoint and not test_mode
        self._write_options: dict[str, Any] = {
            "mode": checkpoint_mode if context.rules.writes_beside_training else "sync",
            "retention": context.rules.retention if retention is None else retention,
            "metric": metric,
            "smaller_is_better": smaller_is_better,
        }
        if self._policy == "best" and metric is None:
            logger.info("No metric is named to fit, so that no best checkpoint is kept. Name one: fit(metric='loss').")
        with ExitStack() as closing:
            closing.push(self._end)
            closing.enter_context(context.distributed.guard())
            closing.push(self._name_batch)
            signals = closing.enter_context(StopSignals(context))
            closing.push(functools.partial(self._hand_over, signals))
            self._tell_phase("start")
            self._open(closing, checkpoint, first_batch)
            if not step_zero_validation or first_batch > 0:
                self._try_validation()
            for hook in self._hooks.training_start:
                hook()
            if self._rng is not None:
                self._rng.restore()
            elif context.distributed.rank > 0 and (first_batch == 0 or checkpoint is not None):
                seed_all(derive_seed(context.get_trial_seed(), "rank", context.distributed.rank, first_batch))
            if step_zero_validation and first_batch == 0:
                self._validate()
            context.uncertain = True
            if progress.batches_in_epoch:
                context.stream_state = None  # used by _open
            self._train(signals)
            context.uncertain = test_mode
        logger.info("Trained up to batch %d.", progress.batches_trained)
        say_where(context, context.session.last_checkpoint, test_mode=test_mode, stopped=self._signal > 0)
        if not test_mode and not self._signal:
            context.session.note_fit(self._stop_reason())
        if self._signal:
            # Raised here, where everything is closed; the run's record is written when the context closes.
            context.session.ended_by = self._ended_by
            context.distributed.watchdog.expect_exit()
            raise self._ended_by
        return self._result()

    # -- the loop ----------------------------------------------------------------------------

    def _train(self, signals: StopSignals) -> None:
        """Train from boundary to boundary until the end or a stop; whatever ends it, a checkpoint is there."""
        context, progress = self.context, self.context.progress
        first_batch = progress.batches_trained
        self._tell_phase("train")
        note("resumed", {"batch": first_batch})
        while not self._plan.finished(progress):
            self._train_to_boundary(signals)
            self._at_boundary()
            self._agree(signals)
            if context.stop_requested:
                break
        self._checkpointing.settle(wait=True)
        if progress.last_checkpoint_batch != progress.batches_trained:
            self._checkpoint(final=True)  # a stop at a batch at which none was due, or none was written
        if progress.batches_trained > first_batch:
            self.context.stream_state = self._batches.state_dict()

    def _train_to_boundary(self, signals: StopSignals) -> None:
        """Train one window of batches, over the ends of epochs at which nothing is due."""
        context, progress = self.context, self.context.progress
        self._reporter.start_window()
        for model in context.models:
            model.train()
        while True:
            if progress.batches_in_epoch == 0:
                self._start_epoch()
            self._train_batches(self._until())
            if not self._noted:
                self._noted = True
                note("trained", {"batch": progress.batches_trained})
            if self._untried:
                self._try_checkpoint()
            # Asked, rather than seen: the epoch's last batch may be the boundary's, and nobody may know its length.
            if self._batches.exhausted():
                self._end_epoch()
            if progress.batches_trained == self._agreement.next_batch and not self._plan.due(progress):
                self._agree(signals)
            if context.stop_requested or self._plan.due(progress) or self._can_settle_debt():
                return

    def _until(self) -> int | None:
        """Give the batch up to which may be trained without a look around; None if no boundary can be foreseen."""
        progress = self.context.progress
        boundary = self._plan.next_boundary(progress, self._batches.epoch_length)
        if self.context.parallel.shards:
            self.context.exchanges_at = boundary
        if self._owes_checkpoint:
            group_end = progress.batches_trained + self.context.batches_left_in_group()
            boundary = group_end if boundary is None else min(boundary, group_end)
        looks = self._untried or not self._noted
        return progress.batches_trained + 1 if looks else self._agreement.until(boundary)

    def _train_batches(self, until: int | None) -> None:
        """Train up to the batch number ``until`` or to the epoch's end: the path of every batch."""
        context, progress = self.context, self.context.progress
        train_batch, count_records = self._train_batch, self._count_records
        step_schedulers, keep_metrics = context.end_batch, self._reporter.window.add
        for batch in self._batches:
            metrics = train_batch(batch=batch, epoch_idx=progress.epochs_trained, batch_idx=progress.batches_trained)
            step_schedulers()
            keep_metrics(metrics)
            records = count_records(batch)
            try:
                progress.count_batch(records)
            except TypeError:
                checked_length(records)  # says what it must be; what can be added is looked at in the report
                raise
            if progress.batches_trained == until or context.stop_requested:
                return

    def _start_epoch(self) -> None:
        """Start the loader anew, and call the hooks; an epoch that a resume goes on with was started by ``_open``."""
        progress = self.context.progress
        if self.context.stream_state is None:
            self._batches.start_epoch(progress.epochs_trained)
        else:
            with preserved_rng():  # what is read again on a resume was drawn before the checkpoint
                self._batches.start_epoch(progress.epochs_trained, state=self.context.stream_state)
            self.context.stream_state = None
        for hook in self._hooks.training_epoch_start:
            hook(progress.epochs_trained)

    def _end_epoch(self) -> None:
        """Count the epoch, step the schedulers of epochs, and call the hooks."""
        progress = self.context.progress
        progress.end_epoch()
        self.context.end_epoch()
        for hook in self._hooks.training_epoch_end:
            hook(progress.epochs_trained - 1)

    def _at_boundary(self) -> None:
        """Report, validate, checkpoint: always in this order, so that a checkpoint holds what judges it."""
        context, progress = self.context, self.context.progress
        if not progress.at_epoch_end:
            progress.records_in_epoch = self._batches.position()
        due = self._plan.due(progress)
        if self._agreement.stops_at_once:
            self._checkpointing.settle()
        if progress.last_report_batch != progress.batches_trained:
            self._reporter.report()
        if context.is_shared and Action.VALIDATE in due:
            compare_weights(context)
        is_best = False
        if Action.VALIDATE in due and self._evaluator is not None:
            metrics = self._validate()
            is_best = self._judge.note(metrics, progress)
            self._searched.note(metrics, progress)
        by_policy = Action.VALIDATE in due and (self._policy == "all" or (self._policy == "best" and is_best))
        if Action.CHECKPOINT in due or by_policy or self._owes_checkpoint:
            ends = self._plan.finished(progress) or context.stop_requested
            self._owes_checkpoint = bool(context.batches_left_in_group()) and not ends
            if self._owes_checkpoint and is_best:
                logger.warning(
                    "The validation at batch %d is the best so far, and no checkpoint of sharded models can be made in "
                    "the middle of an accumulation, at a batch that was not foreseen: the next one is a step later.",
                    progress.batches_trained,
                )
            if not self._owes_checkpoint:
                if context.batches_left_in_group():
                    logger.warning(
                        "The training ends at batch %d, which could not be foreseen, in the middle of an accumulation: "
                        "its gradients so far are not in the last checkpoint.",
                        progress.batches_trained,
                    )
                self._checkpoint(final=ends)

    def _agree(self, signals: StopSignals) -> None:
        """Let all ranks see a stop, and a checkpoint that is durable, at the same batch."""
        settled = self._agreement.reach(
            received=signals.received or 0,
            is_settled=self._checkpointing.is_settled,
            is_pruned=self._searched.is_pruned,
        )
        self._signal = self._agreement.signal
        if settled:
            self._checkpointing.settle()

    def _can_settle_debt(self) -> bool:
        """Tell whether a checkpoint that was due in the middle of an accumulation can be made now."""
        return self._owes_checkpoint and not self.context.batches_left_in_group()

    def _validate(self) -> dict[str, Any]:
        """Validate, and tell everyone."""
        assert self._evaluator is not None  # the callers' condition; kept for the type checker
        progress = self.context.progress
        with self._in_phase("validate"):
            metrics = self._evaluator.run(limit=1 if self._test_mode else None)
        self._reporter.report_validation(metrics)
        progress.last_validation_batch = progress.batches_trained
        progress.validation_metrics = metrics
        return metrics

    def _checkpoint(self, *, final: bool) -> None:
        """Make a checkpoint, which is written while training goes on, but for the final one."""
        with self._in_phase("checkpoint"):
            self._checkpointing.save(final=final or self._test_mode)
            if self._test_mode:
                self._checkpointing.read_back()

    def _try_checkpoint(self) -> None:
        """Find out whether the state can be saved at all, as soon as an optimizer has a state."""
        steps = self.context.progress.optimizer_steps.values()
        self._batches_tried += 1
        latest = _BATCHES_BEFORE_TRY + self.context.aggregation_frequency
        if sum(steps) > self._steps_at_start or self._batches_tried == latest:
            self._untried = False
            by_policy = self._policy != "none" and self._plan.validation_period is not None
            self._checkpointing.try_in_memory(before_the_end=by_policy or self._plan.checkpoint_period is not None)

    # -- before and after --------------------------------------------------------------------

    def _open(self, closing: ExitStack, checkpoint: Checkpoint | None, first_batch: int) -> None:
        """Start the callbacks, build the loaders, and restore everything but the generators."""
        context, progress, trial = self.context, self.context.progress, self._trial
        logger.info("Training from batch %d.", first_batch)
        hooks = self._hooks = CallbackHooks(trial.build_callbacks())
        hooks.startup(closing, first_batch, None if checkpoint is None else str(checkpoint.path))
        loader = trial.build_training_data_loader()
        self._batches = open_stream(context, loader, "training")
        closing.callback(self._batches.close)
        self._evaluator = open_evaluator(trial, context, hooks, closing, required=self._validates)
        self._compare_ranks(loader, checkpoint)
        self._reporter = Reporter(context, hooks, records=not self._test_mode)
        self._train_batch, self._count_records = trial.train_batch, trial.get_batch_length
        if context.is_shared:
            shared = SharedStep(trial, context, self._batches, self._reporter.window)
            self._train_batch, self._count_records = shared, shared.count_records
            self._reporter.take_count = shared.take_count
        store = context.session.checkpoints
        if self._test_mode:
            store = open_store(closing.enter_context(folder_of_try(context)))
        writer = CheckpointWriter(
            store,
            pinned=context.device.type == "cuda",
            whole=context.latest_checkpoint,
            before_publish=_nothing if self._test_mode else context.session.secure_series,
            channel=context.channel("checkpoint"),
            rank=context.distributed.rank,
            ranks=context.distributed.size,
            **self._write_options,
        )
        if hooks.checkpoint_write_end and self._write_options["mode"] != "sync":
            logger.info("A callback has on_checkpoint_write_end: training waits while a checkpoint is written.")
        self._checkpointing = Checkpointing(
            trial, context, hooks, loader, self._batches, writer, is_try=self._test_mode
        )
        closing.push(lambda kind, error, traceback: self._checkpointing.close(error))
        # Put back last of all, so that nothing that is done before the first batch can change them.
        self._rng: RngState | None = None
        if checkpoint is not None:
            with checkpoint:
                self._restore(checkpoint)
        elif first_batch == 0 and not self._test_mode:
            context.session.series.restore(None)
        context.parallel.start()  # with the gradients of a half-done accumulation in their place
        if progress.batches_in_epoch:
            with preserved_rng():  # a second fit goes on with the generators as they are
                self._batches.start_epoch(
                    progress.epochs_trained,
                    records=progress.records_in_epoch,
                    batches=progress.batches_in_epoch,
                    state=context.stream_state,
                )
        self._steps_at_start, self._batches_tried = sum(progress.optimizer_steps.values()), 0
        self._agreement, self._owes_checkpoint, self._signal = Agreement(context), False, 0
        closing.enter_context(context.training(self._batches, first_batch))
        closing.callback(context.session.display.close)
        context.session.display.start(progress, self._plan, lambda: self._batches.epoch_length)

    def _restore(self, checkpoint: Checkpoint) -> None:
        logger.info("Resuming from %s.", checkpoint.path)
        content = content_of(checkpoint, self.context.state_classes, self.context)
        self.context.uncertain = True
        self._checkpointing.restore(checkpoint, content)
        if not self._test_mode:
            with reading(checkpoint, "recording"):
                self.context.session.series.restore(content["recording"])
        self.context.stream_state = content["stream"]
        if content["rng_state"]:
            with reading(checkpoint, "rng_state"), preserved_rng():
                self._rng = RngState.from_state_dict(content["rng_state"])
                self._rng.restore()  # to see that the generators take it
        checkpoint.verify()  # files that a callback added, too
        self.context.session.last_checkpoint = checkpoint.path

    def _compare_ranks(self, loader: Any, checkpoint: Checkpoint | None) -> None:
        options = {
            **self._write_options,
            "checkpoint_policy": self._policy,
            "step_zero_validation": self._step_zero,
            "test_mode": self._test_mode,
            "latest_checkpoint": None if checkpoint is None else checkpoint.name,
        }
        streams = (self._batches, None if self._evaluator is None else self._evaluator.stream)
        loaders = (loader, None if self._evaluator is None else self._evaluator.loader)
        compare_ranks(self._trial, self.context, streams, loaders, self._plan, options)

    @contextlib.contextmanager
    def _in_phase(self, name: str) -> Iterator[None]:
        """Let the watchdogs of the ranks know what this one is doing."""
        self._tell_phase(name)
        yield
        self._tell_phase("train")

    def _tell_phase(self, name: str) -> None:
        self._phase = name
        self.context.distributed.phase(name, self.context.progress.batches_trained if name != "start" else None)

    def _name_batch(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Let an error be told with its batch, of which the watchdogs know only every second or so."""
        if error is not None and self._phase == "train":
            self.context.distributed.phase("train", self.context.progress.batches_trained)

    def _try_validation(self) -> None:
        """Evaluate one batch before training, so that a mistake there is found now; it leaves no trace."""
        tries = self.context.rules.tries_validation and not self._test_mode
        if self._evaluator is not None and tries and not self._plan.finished(self.context.progress):
            with preserved_rng():
                metrics = self._evaluator.try_first_batch()
                self._judge.check(metrics)
                self._searched.check(metrics)

    def _hand_over(self, signals: StopSignals, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Once all is saved and closed after a signal, while further ones are still waited for, pass it on."""
        if error is None and self._signal:
            signals.end_process()
            if self.context.session.last_checkpoint is not None:
                note("checkpoint", {"path": str(self.context.session.last_checkpoint)})
            earlier = signals.earlier(self._signal)
            self._ended_by = end_by_signal(self.context.distributed, self._signal, earlier)

    def _end(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self.context.session.ended_by = error
        self.context.signalled = False
        self.context.ask_to_stop(False)
        self.context.stop_requested = False

    def _result(self) -> FitResult:
        progress = self.context.progress.copy()
        return FitResult(
            progress=progress,
            metrics=dict(progress.validation_metrics),
            best_metric=progress.best_metric,
            last_checkpoint=None if self._test_mode else self.context.session.last_checkpoint,
            best_checkpoint=None if self._test_mode else self._checkpointing.best(),
            stop_reason=self._stop_reason(),
        )

    def _stop_reason(self) -> Literal["max_length", "stop_requested", "pruned"]:
        if self._plan.finished(self.context.progress):
            return "max_length"
        return "pruned" if self._agreement.is_pruned else "stop_requested"

    # -- besides training --------------------------------------------------------------------

    def evaluate(self, latest_checkpoint: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Validate without training; weights, generators and modes are left as they were.

        Args:
            latest_checkpoint: a checkpoint whose weights are evaluated. Default: the weights as they are.

        Returns:
            The validation metrics by name.

        Raises:
            CheckpointError: the checkpoint cannot be read.
            TrialDefinitionError: the Trial has no evaluation hook or no validation data.
        """
        check_open(self.context)
        check_trial(self._trial, validates=True)
        with ExitStack() as closing:
            closing.enter_context(self.context.distributed.guard())
            closing.enter_context(self._in_phase("validate"))
            closing.enter_context(preserved_rng())
            self.context.parallel.start()
            hooks = CallbackHooks(self._trial.build_callbacks())
            hooks.startup(closing, self.context.progress.batches_trained, None)
            if latest_checkpoint is not None:
                closing.enter_context(weights_loaded_for_a_while(latest_checkpoint, self.context))
            evaluator = open_evaluator(self._trial, self.context, hooks, closing, required=True)
            assert evaluator is not None  # it is required; kept for the type checker
            return evaluator.run()

    def configure_profiler(
        self,
        sync_timings: bool = True,
        enabled: bool = False,
        begin_on_batch: int = 0,
        end_after_batch: int | None = None,
    ) -> None:
        """Do nothing: there is no cluster to profile for; ``context.set_profiler`` profiles with torch.

        Args:
            sync_timings: not used.
            enabled: not used.
            begin_on_batch: not used.
            end_after_batch: not used.
        """


def _nothing() -> None:
    """Stand in where there is nothing to do."""
