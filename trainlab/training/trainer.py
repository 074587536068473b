"""Trainer: the whole training loop, from the first batch to the last checkpoint.

A boundary is the instant after a finished batch at which something is due: a report, a validation,
a checkpoint or the end. Only there are metrics copied to the host, files written and the slow hooks
called. Between two boundaries the loop does nothing but fetch a batch, train it and count.
"""

import logging
import math
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from trainlab.checkpoint import Checkpoint, list_checkpoints
from trainlab.data import BatchStream
from trainlab.distributed import RngState, preserved_rng
from trainlab.errors import (
    InvalidStateError,
    InvalidTypeError,
    InvalidValueError,
    MetricError,
    TrialDefinitionError,
)
from trainlab.schedule import Action, Batch, Plan, TrainUnit
from trainlab.training.callback import CallbackHooks
from trainlab.training.checkpointing import Checkpointing, load_weights_of
from trainlab.training.context import TrialContext
from trainlab.training.evaluation import Evaluator
from trainlab.training.reporting import Reporter
from trainlab.training.result import FitResult
from trainlab.training.signals import StopSignals
from trainlab.training.trial import Trial, check_trial, overrides

__all__ = ["Trainer"]

logger = logging.getLogger("trainlab.training")

POLICIES = ("best", "all", "none")


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
        if not isinstance(trial, Trial):
            raise InvalidTypeError(f"Trainer takes an instance of a trainlab.Trial. Received: {trial!r}.")
        if not isinstance(context, TrialContext):
            raise InvalidTypeError(f"Trainer takes the context that trainlab.init() gave. Received: {context!r}.")
        if getattr(trial, "context", context) is not context:
            raise InvalidTypeError(
                "The Trial was made with another context than this Trainer's. Give both the same one."
            )
        for what, wrapped in (("model", context.models), ("optimizer", context.optimizers)):
            if not wrapped:
                raise TrialDefinitionError(
                    f"{type(trial).__qualname__} wraps no {what}. Define build_{what}, or call "
                    f"context.wrap_{what}(...) "
                    "in __init__ (an __init__ of your own beside build_ hooks calls super().__init__(context))."
                )
        check_trial(trial, validates=False)
        self._trial = trial
        self._stream_state: dict[str, Any] | None = None
        self._last_checkpoint: Path | None = None
        self._broken_off = False
        self.context = context

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
    ) -> FitResult:
        """Train until ``max_length``, counted from the run's beginning; a second call goes on.

        Args:
            checkpoint_period: when to make a checkpoint. Default: only at the end, and as the policy says.
            validation_period: when to validate. Default: only at the end.
            max_length: how long to train, ``Batch(n)`` or ``Epoch(n)``.
            reporting_period: when to report the training metrics. Default ``Batch(100)``.
            checkpoint_policy: "best": a checkpoint after each validation that is the best so far by ``metric``;
                "all": after each validation; "none": after none. Default "best".
            latest_checkpoint: the checkpoint to resume from. Default: start from the beginning.
            step_zero_validation: whether to validate once before the first batch. Default False.
            test_mode: whether to try one batch of training, one of validation and a checkpoint, leaving nothing.
            metric: the validation metric that tells which checkpoint is the best. Default: none is.
            smaller_is_better: whether a smaller value of it is better. Default True.

        Returns:
            Counters, last metrics, best metric and checkpoints.

        Raises:
            InvalidValueError: an argument cannot be used.
            InvalidTypeError: an argument has the wrong type.
            InvalidStateError: the context is closed, or its folder holds checkpoints and none was passed.
            CheckpointError: a checkpoint cannot be read or written.
            SystemExit: a signal ended the run, after a checkpoint was made.
        """
        self._check_open()
        context, progress = self.context, self.context.progress
        plan = Plan(
            max_length=max_length,
            reporting_period=reporting_period,
            validation_period=validation_period,
            checkpoint_period=checkpoint_period,
        )
        self._check_choices(checkpoint_policy, metric, step_zero_validation, test_mode, smaller_is_better)
        self._validates = validation_period is not None or metric is not None or step_zero_validation
        check_trial(self._trial, validates=self._validates)
        checkpoint = self._resume_point(latest_checkpoint)
        if test_mode:
            plan = Plan(max_length=Batch(progress.batches_trained + 1), reporting_period=reporting_period)
        self._plan = plan
        self._policy = context.rules.checkpoint_policy(checkpoint_policy, metric)
        self._metric, self._smaller_is_better, self._test_mode = metric, smaller_is_better, test_mode
        if checkpoint is not None:
            self._last_checkpoint = checkpoint.path
        if self._policy == "best" and metric is None:
            logger.info(
                "No metric is named to fit, so that no best checkpoint is kept. Name one: fit(metric='loss', ...)."
            )
        with ExitStack() as closing:
            closing.push(self._note_end)
            signals = closing.enter_context(StopSignals(context))
            self._open(closing, checkpoint, tries_validation=not step_zero_validation)
            if step_zero_validation and progress.batches_trained == 0:
                self._validate()
            self._broken_off = True
            self._train()
            self._broken_off = False
        logger.info("Trained up to batch %d.", progress.batches_trained)
        self._say_where()
        result = self._result()
        context.stop_requested = False
        if signals.received is not None:
            context.session.ended_by = SystemExit(128 + signals.received)
            raise context.session.ended_by
        return result

    def evaluate(self, latest_checkpoint: str | os.PathLike[str] | None = None) -> dict[str, Any]:
        """Validate without training; generators and modes are left as they were.

        Args:
            latest_checkpoint: a checkpoint to load first. Default: the models as they are.

        Returns:
            The validation metrics by name.

        Raises:
            CheckpointError: the checkpoint cannot be read.
            TrialDefinitionError: the Trial has no evaluation hook.
        """
        self._check_open()
        check_trial(self._trial, validates=True)
        with ExitStack() as closing:
            closing.enter_context(preserved_rng())
            hooks = CallbackHooks(self._trial.build_callbacks())
            hooks.startup(closing, self.context.progress.batches_trained, None)
            if latest_checkpoint is not None:
                load_weights_of(Checkpoint.open(latest_checkpoint), self.context)
            self._validates = True
            evaluator = self._open_evaluator(closing, hooks)
            return {} if evaluator is None else evaluator.run()

    # -- the loop ----------------------------------------------------------------------------

    def _train(self) -> None:
        progress = self.context.progress
        while not self._plan.finished(progress):
            self._train_to_boundary()
            self._at_boundary()
            if self.context.stop_requested:
                break
        if progress.last_checkpoint_batch != progress.batches_trained:
            self._checkpoint()

    def _train_to_boundary(self) -> None:
        context, progress = self.context, self.context.progress
        self._reporter.start_window()
        for model in context.models:
            model.train()
        while True:
            if progress.batches_in_epoch == 0:
                self._start_epoch()
            self._train_batches(self._plan.next_boundary(progress, self._batches.epoch_length))
            if self._batches.exhausted():
                self._end_epoch()
            if context.stop_requested or self._plan.due(progress):
                return

    def _train_batches(self, until: int | None) -> None:
        """Train up to the batch number ``until`` or to the epoch's end: the path of every batch."""
        context, progress = self.context, self.context.progress
        train_batch, count_records = self._trial.train_batch, self._trial.get_batch_length
        end_batch, keep = context.end_batch, self._reporter.window.add
        for batch in self._batches:
            metrics = train_batch(batch=batch, epoch_idx=progress.epochs_trained, batch_idx=progress.batches_trained)
            end_batch()
            keep(metrics)
            progress.count_batch(count_records(batch))
            if progress.batches_trained == until or context.stop_requested:
                return

    def _start_epoch(self) -> None:
        progress = self.context.progress
        self._batches.start_epoch(progress.epochs_trained, state=self._stream_state)
        self._stream_state = None
        for hook in self._hooks.training_epoch_start:
            hook(progress.epochs_trained)

    def _end_epoch(self) -> None:
        progress = self.context.progress
        progress.end_epoch()
        self.context.end_epoch()
        for hook in self._hooks.training_epoch_end:
            hook(progress.epochs_trained - 1)

    def _at_boundary(self) -> None:
        """Report, validate, checkpoint: always in this order, so that a checkpoint holds what judges it."""
        progress = self.context.progress
        if not progress.at_epoch_end:
            progress.records_in_epoch = self._batches.position()
        due = self._plan.due(progress)
        self._reporter.report()
        better = False
        if Action.VALIDATE in due and self._evaluator is not None:
            better = self._validate()
        wanted = self._policy == "all" or (self._policy == "best" and better)
        if Action.CHECKPOINT in due or (Action.VALIDATE in due and wanted):
            self._checkpoint()

    def _validate(self) -> bool:
        """Validate, and tell whether it was the best so far by the metric named to ``fit``."""
        assert self._evaluator is not None  # the callers' condition; kept for the type checker
        progress = self.context.progress
        metrics = self._evaluator.run(limit=1 if self._test_mode else None)
        self._reporter.report_validation(metrics)
        logger.info("Validation after batch %d: %s.", progress.batches_trained, metrics)
        progress.last_validation_batch = progress.batches_trained
        progress.validation_metrics = metrics
        if self._metric is None:
            return False
        value, best = self._value_of(metrics), progress.best_metric
        better = not math.isnan(value) and (best is None or (value < best if self._smaller_is_better else value > best))
        if better:
            progress.best_metric, progress.best_metric_batch = value, progress.batches_trained
            progress.best_checkpoint = None
        return better

    def _checkpoint(self) -> None:
        path = self._checkpointing.save()
        logger.info("Checkpoint %s.", path)
        if self._test_mode:
            Checkpoint.open(path).state()
        else:
            self._last_checkpoint = self.context.session.latest_checkpoint = path

    # -- before and after --------------------------------------------------------------------

    def _open(self, closing: ExitStack, checkpoint: Checkpoint | None, *, tries_validation: bool) -> None:
        """Build what a fit needs, restore it from the checkpoint, and start the callbacks."""
        context, progress = self.context, self.context.progress
        first = progress.batches_trained if checkpoint is None else checkpoint.progress["batches_trained"]
        logger.info(
            "Training from batch %d%s.", first, "" if checkpoint is None else f", resumed from {checkpoint.path}"
        )
        hooks = self._hooks = CallbackHooks(self._trial.build_callbacks())
        hooks.startup(closing, first, None if checkpoint is None else str(checkpoint.path))
        self._batches = self._open_stream(self._trial.build_training_data_loader(), "training")
        closing.callback(self._batches.close)
        self._evaluator = self._open_evaluator(closing, hooks)
        self._reporter = Reporter(context, hooks, records=not self._test_mode)
        root = context.run_dir / "checkpoints"
        if self._test_mode:
            root = Path(closing.enter_context(tempfile.TemporaryDirectory()))
        self._checkpointing = Checkpointing(self._trial, context, hooks, self._batches, root)
        rng = self._restore(checkpoint)
        if progress.batches_in_epoch:
            self._continue_epoch()
        context.training_stream = self._batches
        closing.enter_context(context.training(first))
        closing.callback(self._keep_stream_state)
        closing.callback(context.session.display.close)
        context.session.display.start(progress, self._plan, lambda: self._batches.epoch_length)
        if tries_validation:
            self._try_validation()
        for hook in hooks.training_start:
            hook()
        if rng is not None:
            rng.restore()

    def _restore(self, checkpoint: Checkpoint | None) -> RngState | None:
        """Restore everything but the generators, whose state is returned: they are put back last of all."""
        context = self.context
        if checkpoint is None:
            if context.progress.batches_trained == 0 and not self._test_mode:
                context.session.recorder.restore(None)
            return None
        content = self._checkpointing.restore(checkpoint)
        if not self._test_mode:
            context.session.recorder.restore(content["recording"])
        self._stream_state = content["stream"]
        return RngState.from_state_dict(content["rng_state"])

    def _continue_epoch(self) -> None:
        progress = self.context.progress
        with preserved_rng():
            self._batches.start_epoch(
                progress.epochs_trained,
                records=progress.records_in_epoch,
                batches=progress.batches_in_epoch,
                state=self._stream_state,
            )
        self._stream_state = None

    def _note_end(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self.context.session.ended_by = error

    def _keep_stream_state(self) -> None:
        self._stream_state = self._batches.state_dict()

    def _resume_point(self, latest_checkpoint: str | os.PathLike[str] | None) -> Checkpoint | None:
        if latest_checkpoint is not None:
            return Checkpoint.open(latest_checkpoint)
        context = self.context
        if self._broken_off:
            raise InvalidStateError(
                "The fit before this one was broken off in the middle of a batch, so that nothing "
                "certain is there to go "
                f"on from. Pass latest_checkpoint=ctx.latest_checkpoint (now "
                f"{context.latest_checkpoint}), or begin anew "
                "with a new context and Trial."
            )
        there = list_checkpoints(context.run_dir / "checkpoints")
        if there and context.progress.batches_trained == 0:
            none_valid = "" if context.latest_checkpoint else ", but none of them is valid, see the log"
            raise InvalidStateError(
                f"The run's folder {context.run_dir} holds {len(there)} checkpoints{none_valid}, "
                f"and fit was told to start "
                "from the beginning. To resume, pass latest_checkpoint=ctx.latest_checkpoint. To start anew, use "
                "another run_dir."
            )
        return None

    def _open_stream(self, loader: Any, role: str) -> BatchStream:
        context = self.context
        context.rules.check_loader(loader, checks_enabled=context.checks_loaders)
        warn = context.rules.warns_of_foreign_loader(loader, checks_enabled=context.checks_loaders)
        return BatchStream(
            loader,
            seed=context.get_trial_seed(),
            move=context.mover() if context.moves_batches else None,
            device=context.device,
            data_rank=context.distributed.data_rank,
            data_size=context.distributed.data_size,
            cut_by_len=role == "training" and context.rules.cuts_epochs_by_len,
            role=role,
            warn=warn,
        )

    def _open_evaluator(self, closing: ExitStack, hooks: CallbackHooks) -> Evaluator | None:
        trial = self._trial
        has_hook = overrides(trial, "evaluate_batch") or overrides(trial, "evaluate_full_dataset")
        loader = trial.build_validation_data_loader() if has_hook else None
        if loader is None:
            if self._validates:
                raise TrialDefinitionError(
                    f"A validation is asked for, and {type(trial).__qualname__} has no validation data: "
                    "build_validation_data_loader returned None."
                )
            return None
        evaluator = Evaluator(trial, self.context, hooks, loader, self._open_stream(loader, "validation"))
        closing.callback(evaluator.close)
        return evaluator

    def _try_validation(self) -> None:
        if self._evaluator is None or not self.context.rules.tries_validation or self._test_mode:
            return
        if self._plan.finished(self.context.progress):
            return
        with preserved_rng():
            metrics = self._evaluator.try_first_batch()
        if self._metric is not None:
            self._value_of(metrics)

    def _value_of(self, metrics: dict[str, Any]) -> float:
        if self._metric not in metrics:
            raise MetricError(
                f"The validation gives no metric {self._metric!r}, which fit was told to judge by. "
                f"It gives: {', '.join(map(repr, sorted(metrics)))}."
            )
        try:
            return float(metrics[self._metric])
        except (TypeError, ValueError):
            raise MetricError(
                f"The metric {self._metric!r}, which fit was told to judge by, must be one number. "
                f"Received: {metrics[self._metric]!r}."
            ) from None

    def _check_open(self) -> None:
        if not self.context.session.is_open:
            raise InvalidStateError(
                "The context is closed. Call fit and evaluate inside 'with trainlab.init() as ctx:'."
            )

    def _check_choices(self, policy: Any, metric: Any, *switches: Any) -> None:
        if policy not in POLICIES:
            raise InvalidValueError(
                f"checkpoint_policy must be one of {', '.join(map(repr, POLICIES))}. Received: {policy!r}."
            )
        if metric is not None and not isinstance(metric, str):
            raise InvalidTypeError(f"metric must be the name of a validation metric. Received: {metric!r}.")
        for switch in switches:
            if not isinstance(switch, bool):
                raise InvalidTypeError(
                    f"step_zero_validation, test_mode and smaller_is_better must be True or False. "
                    f"Received: {switch!r}."
                )

    def _say_where(self) -> None:
        if self._test_mode:
            self.context.session.display.say(
                "Test mode: one batch trained, one validated, a checkpoint written and read."
            )
            return
        folder, command = self.context.run_dir, " ".join([Path(sys.executable).name, *sys.argv])
        self.context.session.display.say(
            f"Run folder: {folder}\nLast checkpoint: {self._last_checkpoint}\n"
            f"To go on from it: TRAINLAB_RUN_DIR={folder} {command}"
        )

    def _result(self) -> FitResult:
        progress = self.context.progress.copy()
        best = progress.best_checkpoint
        return FitResult(
            progress=progress,
            metrics=dict(progress.validation_metrics),
            best_metric=progress.best_metric,
            last_checkpoint=self._last_checkpoint,
            best_checkpoint=None if best is None or self._test_mode else self.context.run_dir / "checkpoints" / best,
            stop_reason="max_length" if self._plan.finished(progress) else "stop_requested",
        )
