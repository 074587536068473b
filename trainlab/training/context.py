"""TrialContext: what a Trial talks to."""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import nn

from trainlab.data import BatchStream, to_device
from trainlab.distributed import Channel, DistributedContext
from trainlab.errors import (
    DistributedError,
    InvalidStateError,
    InvalidTypeError,
    InvalidValueError,
    PeerFailedError,
)
from trainlab.metrics import MetricReducer, MetricStates, ReducerRegistry, holds_torchmetrics
from trainlab.optim import LRScheduler, average_gradients, owned_parameters
from trainlab.parallel import Parallel, users_module
from trainlab.precision import GradientScaling, Precision
from trainlab.schedule import Progress
from trainlab.training.config import RunConfig
from trainlab.training.experimental import ExperimentalContext
from trainlab.training.rules import TrainingRules
from trainlab.training.session import Session
from trainlab.training.sharing import weighted
from trainlab.training.status import RunStatus
from trainlab.training.wrapped import WrappedOptimizer, WrappedScheduler, checked_name

__all__ = ["TrialContext"]

logger = logging.getLogger("trainlab.training")


class TrialContext(RunConfig, RunStatus):
    """Wraps a Trial's models, optimizers and schedulers, and takes its steps.

    Made by ``trainlab.init``; usable in a ``with`` block.

    Attributes:
        models: the wrapped models, in the order of wrapping.
        optimizers: the wrapped optimizers, in the order of wrapping.
        lr_schedulers: the wrapped schedulers as ``trainlab.LRScheduler``, in the order of wrapping.
        distributed: who this process is among the run's processes.
        experimental: switches that may go away.
        progress: every counter of the run.
        device: where models and batches are.
        latest_checkpoint: the newest valid checkpoint of the run (a path; a URL on a remote store), or None.
        run_dir: the run's folder.
    """

    rules: ClassVar[TrainingRules] = TrainingRules()

    def __init__(
        self,
        *,
        hparams: Mapping[str, Any] | None,
        exp_conf: Mapping[str, Any] | None,
        distributed: DistributedContext,
        seed: int,
        aggregation_frequency: int,
        precision: Precision,
        uneven: str,
        session: Session,
        parallel: Parallel | None = None,
    ) -> None:
        super().__init__(hparams=hparams, exp_conf=exp_conf, distributed=distributed, seed=seed)
        self.aggregation_frequency = aggregation_frequency
        self.precision = precision
        self.device = precision.device
        self.uneven = uneven
        self.session = session
        self.parallel = Parallel() if parallel is None else parallel
        # Whether gradients are exchanged with other ranks; an attribute, for it is asked for in every batch.
        self.is_shared = self.parallel.name != "single"
        # Whether a stop can be obeyed at once.
        self.stops_at_once = distributed.size == 1 and not self.parallel.shards
        # Whether closing the context closes the process group, too.
        self.closes_distributed = False
        self.progress = session.progress = Progress()
        self.experimental = ExperimentalContext(self)
        self.reducers = ReducerRegistry()
        self.model_names: list[str] = []
        self.models: list[nn.Module] = []
        self.wrapped_optimizers: dict[str, WrappedOptimizer] = {}
        self.wrapped_schedulers: list[WrappedScheduler] = []
        self.stateful: dict[str, Any] = {}
        self.training_stream: BatchStream | None = None
        # Where the loader was when the fit before this one, or the checkpoint's, ended; given to it once.
        self.stream_state: dict[str, Any] | None = None
        # The enums, named tuples and dataclasses in the state of a fresh run; None until the first fit.
        self.state_classes: dict[str, type] | None = None
        # Whether weights and counters in memory may be of different batches: after an error, or after test_mode.
        self.uncertain = False
        # What this rank's share of the global batch counts; 1 where all ranks have the same number of records.
        self.loss_weight = 1.0
        # The batches trained at the next boundary, if it is foreseen: sharded models exchange gradients there.
        self.exchanges_at: int | None = None
        # Asked for on this rank; and what the loop obeys, which several ranks agree on first.
        self.stop_asked = False
        self.stop_requested = False
        # A signal cannot be taken back by set_stop_requested(False).
        self.signalled = False
        self.step_was_called = False
        self.moves_batches = True
        self.checks_loaders = True
        self._by_identity: dict[int, WrappedOptimizer] = {}
        self._scaling: GradientScaling | None = None
        self._users_scaling: GradientScaling | None = None
        self._profiler: Any = None
        self.initial_batch = 0
        self._sealed = False
        self._unmovable: set[type] = set()
        self._channels: dict[str, Channel] = {}
        # Which of the runs in these processes this is, as the chief counts: each has channels of its own.
        self.run_number = 0
        self.set_scaling()

    # -- what is wrapped ---------------------------------------------------------------------

    def wrap_model(self, model: nn.Module, *, name: str | None = None) -> Any:
        """Register a model: it is moved to the device, trained in the run's precision, and saved.

        What torchmetrics objects inside it have accumulated is saved too, apart from the weights.

        Args:
            model: the module; may be the result of ``torch.compile``.
            name: its name in checkpoints. Default: its number in the order of wrapping.

        Returns:
            The module to call.

        Raises:
            InvalidTypeError: it is no ``nn.Module``.
            InvalidStateError: it is wrapped already, or training has begun.
        """
        self._refuse_once_sealed("wrap_model")
        if not isinstance(model, nn.Module):
            raise InvalidTypeError(f"wrap_model takes an nn.Module. Received: {model!r} ({type(model).__qualname__}).")
        if any(model is known or users_module(model) is users_module(known) for known in self.models):
            raise InvalidStateError(f"This {type(model).__qualname__} is wrapped already. Wrap each model once.")
        name = str(len(self.models)) if name is None else checked_name(name, self.model_names, "model")
        model.to(self.device)
        model = self.parallel.wrap(model)
        self.precision.attach(model)
        self.models.append(model)
        self.model_names.append(name)
        if holds_torchmetrics(users_module(model)):
            # No name of the user's has a dot.
            self.stateful[f"{name}.torchmetrics"] = MetricStates(users_module(model))
        return model

    def wrap_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        backward_passes_per_step: int = 1,
        average_aggregated_gradients: bool | None = None,
        *,
        name: str | None = None,
    ) -> Any:
        """Register an optimizer: it is saved, and stepped through ``step_optimizer``.

        Args:
            optimizer: over parameters of wrapped models.
            backward_passes_per_step: so many ``backward`` calls belong to one step of this optimizer,
                an int ≥ 1. Never divides gradients.
            average_aggregated_gradients: whether gradients that were summed over ``aggregation_frequency``
                batches are divided by it before the step. Default None means yes.
            name: its name in checkpoints. Default: its number in the order of wrapping.

        Returns:
            The same optimizer.

        Raises:
            InvalidTypeError: it is no torch optimizer.
            InvalidValueError: ``backward_passes_per_step`` is below 1, or a parameter is of no wrapped model.
            InvalidStateError: it is wrapped already, or training has begun.
        """
        self._refuse_once_sealed("wrap_optimizer")
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise InvalidTypeError(f"wrap_optimizer takes a torch optimizer. Received: {optimizer!r}.")
        if id(optimizer) in self._by_identity:
            raise InvalidStateError(
                f"This {type(optimizer).__qualname__} is wrapped already. Wrap each optimizer once."
            )
        passes = backward_passes_per_step
        if isinstance(passes, bool) or not isinstance(passes, int) or passes < 1:
            raise InvalidValueError(f"backward_passes_per_step must be an int of at least 1. Received: {passes!r}.")
        parameters = owned_parameters(optimizer)
        self._check_owned(optimizer, parameters)
        name = (
            str(len(self.wrapped_optimizers))
            if name is None
            else checked_name(name, self.wrapped_optimizers, "optimizer")
        )
        if not (average_aggregated_gradients is None or isinstance(average_aggregated_gradients, bool)):
            raise InvalidTypeError(
                f"average_aggregated_gradients must be True, False or None. Received: {average_aggregated_gradients!r}."
            )
        divides = average_aggregated_gradients is not False
        zeroes_itself = type(optimizer).zero_grad is not torch.optim.Optimizer.zero_grad
        wrapped = WrappedOptimizer(name, optimizer, divides, zeroes_itself)
        self.wrapped_optimizers[name] = wrapped
        self.parallel.add_optimizer(optimizer, passes)
        self._by_identity[id(optimizer)] = wrapped
        self.progress.optimizer_steps.setdefault(name, 0)
        return optimizer

    def wrap_lr_scheduler(self, lr_scheduler: Any, step_mode: LRScheduler.StepMode, frequency: int = 1) -> Any:
        """Register a learning rate scheduler: it is saved, and stepped as its mode says.

        Args:
            lr_scheduler: a torch scheduler of a wrapped optimizer.
            step_mode: when it steps, a ``LRScheduler.StepMode``; with MANUAL_STEP you call its ``step`` yourself.
            frequency: it steps at every so-manieth time, an int ≥ 1.

        Returns:
            The same scheduler.

        Raises:
            InvalidTypeError: the mode is no StepMode, or the scheduler no torch scheduler.
            InvalidValueError: the optimizer is not wrapped, or the mode does not suit the scheduler.
            InvalidStateError: it is wrapped already, or training has begun.
        """
        self._refuse_once_sealed("wrap_lr_scheduler")
        wrapped = LRScheduler(lr_scheduler, step_mode, frequency)
        if any(lr_scheduler is known.scheduler.scheduler for known in self.wrapped_schedulers):
            raise InvalidStateError(
                f"This {type(lr_scheduler).__qualname__} is wrapped already. Wrap each scheduler once."
            )
        owner = self._by_identity.get(id(lr_scheduler.optimizer))
        if owner is None:
            raise InvalidValueError(
                f"The optimizer of this {type(lr_scheduler).__qualname__} is not wrapped. Call "
                f"wrap_optimizer on it first."
            )
        self.wrapped_schedulers.append(WrappedScheduler(wrapped, owner.name))
        return lr_scheduler

    def wrap_scaler(self, scaler: Any) -> Any:
        """Register a gradient scaler of your own, so that its state is saved.

        You scale the loss, pass ``scaler=`` to ``step_optimizer``, and call ``update()``.

        Args:
            scaler: a ``torch.amp.GradScaler``.

        Returns:
            The same scaler.

        Raises:
            InvalidStateError: it comes after ``wrap_model``, a second time, or together with fp16 or ``use_amp``.
        """
        self._refuse_once_sealed("wrap_scaler")
        if self._scaling is not None:
            raise InvalidStateError(
                "wrap_scaler cannot be used together with precision='fp16' or experimental.use_amp(), "
                "which scale by themselves."
            )
        if self._users_scaling is not None or self.models:
            raise InvalidStateError("wrap_scaler must be called once, before wrap_model.")
        self._users_scaling = GradientScaling(scaler)
        return scaler

    def wrap_reducer(
        self,
        reducer: Callable[[list[Any]], Any] | MetricReducer,
        name: str | None = None,
        for_training: bool = True,
        for_validation: bool = True,
    ) -> MetricReducer:
        """Register a reducer of your own, whose results join the metrics.

        Args:
            reducer: a MetricReducer, a torchmetrics object (reset and computed by trainlab, updated by you), or a
                function of the list of all values given to ``update``.
            name: the metric's name; None if the result is a dict of metrics.
            for_training: whether it is reduced at each report.
            for_validation: whether it is reduced at each validation.

        Returns:
            The MetricReducer, or an object with ``update(value)`` for a function.

        Raises:
            InvalidStateError: training has begun.
            InvalidTypeError: it is neither.
        """
        self._refuse_once_sealed("wrap_reducer")
        return self.reducers.wrap(reducer, name, for_training, for_validation)

    def register_stateful(self, name: str, stateful: Any) -> Any:
        """Register an object of yours whose state belongs into checkpoints.

        Args:
            name: its name in checkpoints.
            stateful: an object with ``state_dict`` and ``load_state_dict``. Of torchmetrics objects, and of those in a
                module, what they have accumulated is saved too.

        Returns:
            The same object.

        Raises:
            InvalidTypeError: it lacks one of the two methods.
            InvalidStateError: training has begun.
        """
        self._refuse_once_sealed("register_stateful")
        if not (
            callable(getattr(stateful, "state_dict", None)) and callable(getattr(stateful, "load_state_dict", None))
        ):
            raise InvalidTypeError(
                f"register_stateful takes an object with state_dict and load_state_dict. Received: "
                f"{type(stateful).__qualname__}."
            )
        name = checked_name(name, self.stateful, "stateful object")
        holds = holds_torchmetrics(stateful)
        self.stateful[name] = MetricStates(stateful, whole=True) if holds else stateful
        return stateful

    def configure_apex_amp(self, models: Any, optimizers: Any, enabled: bool | None = True, **options: Any) -> Any:
        """Refuse to use NVIDIA's apex, which is no longer maintained.

        Args:
            models: one model or a list.
            optimizers: one optimizer or a list.
            enabled: as in apex.
            **options: as in apex.

        Raises:
            InvalidStateError: always; it names ``precision=`` as the replacement.
        """
        return self.rules.configure_apex_amp(models, optimizers, bool(enabled))

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The wrapped optimizers, in the order of wrapping."""
        return [wrapped.optimizer for wrapped in self.wrapped_optimizers.values()]

    @property
    def lr_schedulers(self) -> list[LRScheduler]:
        """The wrapped schedulers, in the order of wrapping."""
        return [wrapped.scheduler for wrapped in self.wrapped_schedulers]

    @property
    def scaler(self) -> Any:
        """The gradient scaler in use, trainlab's or the wrapped one; None without."""
        scaling = self._scaling or self._users_scaling
        return None if scaling is None else scaling.scaler

    # -- the steps of a batch ----------------------------------------------------------------

    def backward(
        self,
        loss: torch.Tensor,
        gradient: torch.Tensor | None = None,
        retain_graph: bool = False,
        create_graph: bool = False,
    ) -> None:
        """Add the gradients of a loss to the parameters' ``grad``; under fp16 the loss is scaled first.

        Several ranks exchange their gradients here. Where a global batch cannot be shared evenly, the loss is weighted
        by this rank's part of the records, which is right for a loss that is a mean over the records.

        Args:
            loss: a tensor that depends on parameters; 0-dimensional unless ``gradient`` is given.
            gradient: as in ``torch.Tensor.backward``.
            retain_graph: as in ``torch.Tensor.backward``.
            create_graph: as in ``torch.Tensor.backward``.

        Raises:
            InvalidTypeError: the loss is no tensor.
            InvalidValueError: no gradient flows from the loss.
        """
        if not isinstance(loss, torch.Tensor):
            raise InvalidTypeError(f"backward takes a tensor. Received: {loss!r} ({type(loss).__qualname__}).")
        if not loss.requires_grad:
            raise InvalidValueError(
                "backward got a loss that needs no gradient: nothing would be trained. "
                "Compute it from a wrapped model's output, outside torch.no_grad() and without detach()."
            )
        if self.loss_weight != 1.0:
            loss = weighted(loss, self.loss_weight)
        if self._scaling is not None:
            loss = self._scaling.scale(loss)
        if self.is_shared:
            self.parallel.before_backward(loss)
        loss.backward(gradient, retain_graph, create_graph)  # type: ignore[no-untyped-call]

    def step_optimizer(
        self,
        optimizer: torch.optim.Optimizer,
        clip_grads: Callable[[list[torch.Tensor]], Any] | None = None,
        auto_zero_grads: bool = True,
        scaler: Any = None,
        closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step an optimizer and zero its gradients; call it in every ``train_batch``.

        With ``aggregation_frequency`` N it does nothing but on every N-th batch of the run, where the
        summed gradients are divided by N first.

        Args:
            optimizer: a wrapped optimizer.
            clip_grads: a function that clips the gradients of the given parameters in place; called
                after averaging and unscaling.
            auto_zero_grads: whether gradients are zeroed after the step. Must be True with aggregation.
            scaler: a gradient scaler of yours, see ``wrap_scaler``.
            closure: computes the loss anew, for optimizers like LBFGS.

        Raises:
            InvalidValueError: the optimizer is not wrapped, or the options exclude each other.
        """
        wrapped = self._by_identity.get(id(optimizer))
        if wrapped is None:
            raise InvalidValueError(
                f"step_optimizer got a {type(optimizer).__qualname__} that is not wrapped. "
                "Pass what wrap_optimizer returned."
            )
        self.step_was_called = True
        if self.aggregation_frequency > 1 and not self._ends_group(wrapped, auto_zero_grads):
            return
        if self.is_shared:
            closure = self._shared(optimizer, closure)
        if scaler is not None or self._scaling is not None:
            stepped = self._step_scaled(wrapped, clip_grads, scaler, closure)
        else:
            if clip_grads is not None:
                clip_grads(owned_parameters(optimizer))
            optimizer.step() if closure is None else optimizer.step(closure)
            stepped = True
        if stepped:
            self.progress.optimizer_steps[wrapped.name] += 1
        if not auto_zero_grads:
            return
        if wrapped.zeroes_itself:
            optimizer.zero_grad()
        else:
            # What torch's own does, without the record for its profiler, which costs more than all else here.
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def end_batch(self) -> None:
        """Step what steps after a batch: schedulers, the scaler, the profiler. The Trainer calls it."""
        if self.wrapped_schedulers or self._scaling is not None:
            self._end_batch_slowly()
        if self._profiler is not None:
            self._profiler.step()

    def end_epoch(self) -> None:
        """Step the schedulers that step at an epoch's end. The Trainer calls it."""
        for wrapped in self.wrapped_schedulers:
            wrapped.scheduler.step_after_epoch(
                epochs_trained=self.progress.epochs_trained,
                batches_trained=self.progress.batches_trained,
                aggregation=self.aggregation_frequency,
            )

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a block in which operations run in the run's precision; forward passes do so by themselves."""
        return self.precision.autocast()

    def to_device(self, data: Any) -> Any:
        """Move a batch to the run's device; done for you before ``train_batch`` and ``evaluate_batch``.

        Args:
            data: tensors and arrays, in dicts, lists, tuples, named tuples, dataclasses, or anything with ``.to``.

        Returns:
            The same structure on the device; what cannot be moved comes back as it is, with one warning a type.
        """
        return to_device(data, self.device, warned=self._unmovable)

    def mover(self) -> Callable[[Any], Any]:
        """Return ``to_device`` as one function, a call less on the path of every batch."""
        return functools.partial(to_device, device=self.device, warned=self._unmovable)

    def reduce_metrics(self, for_training: bool) -> dict[str, Any]:
        """Reduce the wrapped reducers now; done for you at each report and validation.

        Args:
            for_training: whether those for training are reduced, else those for validation.

        Returns:
            The results by name.
        """
        reduced = self.reducers.reduce(for_training=for_training, exchange=self.distributed.exchange)
        return {name: self.rules.metrics.reduced(name, value) for name, value in reduced.items()}

    def reset_reducers(self) -> None:
        """Reset the wrapped reducers now; done for you before each window and validation."""
        self.reducers.reset()

    def set_profiler(self, *args: Any, **kwargs: Any) -> None:
        """Profile the training with ``torch.profiler``, its trace in the run's TensorBoard folder.

        Args:
            *args: as for ``torch.profiler.profile``.
            **kwargs: as for ``torch.profiler.profile``; ``on_trace_ready`` has a default.
        """
        kwargs.setdefault("on_trace_ready", torch.profiler.tensorboard_trace_handler(str(self.get_tensorboard_path())))
        self._profiler = torch.profiler.profile(*args, **kwargs)

    def channel(self, name: str) -> Channel:
        """Give the channel of a name to the other ranks, which is opened at the first call.

        Args:
            name: what it is for.

        Returns:
            The channel.
        """
        if name not in self._channels:
            self._channels[name] = self.distributed.channel(f"{name} {self.run_number}")
        return self._channels[name]

    def batches_left_in_group(self) -> int:
        """Count the batches until half-accumulated gradients can be saved.

        Sharded models have them in a form of their own until they are exchanged: in the last batch of a group, and in
        one at which a boundary was foreseen.

        Returns:
            0 where they can be saved now.
        """
        if not self.parallel.shards or self.progress.batches_trained == self.exchanges_at:
            return 0
        return -self.progress.batches_trained % self.aggregation_frequency

    # -- for the Trainer ---------------------------------------------------------------------

    @contextlib.contextmanager
    def training(self, stream: BatchStream, initial_batch: int) -> Iterator[None]:
        """Mark the time of a ``fit``: nothing is wrapped any more, the profiler runs.

        Args:
            stream: the training batches, which tell where an epoch ends.
            initial_batch: batches trained before.

        Yields:
            Nothing.
        """
        self._sealed = True
        self.training_stream = stream
        self.initial_batch = initial_batch
        for scheduler in self.wrapped_schedulers:
            scheduler.steps_seen = self.progress.optimizer_steps[scheduler.optimizer_name]
        try:
            with self._profiler or contextlib.nullcontext():
                yield
        finally:
            self.precision.leave_unfinished()

    def close(self, error: BaseException | None = None) -> None:
        """Close the run: its files and its lock; done for you at the end of a ``with`` block and at exit.

        Args:
            error: what ended the run, if it did not end well.
        """
        try:
            self.session.close(error)
        finally:
            self.parallel.close()
            if self.closes_distributed:
                self.distributed.close()

    def __enter__(self) -> "TrialContext":
        """Return the context itself."""
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        """Close the run; an exception goes on, and the other ranks are told of it.

        Raises:
            SystemExit: another rank failed; it has told why, and this one ends with it.
        """
        error = self._failure_of_others() if error is None else self.distributed.watchdog.end(error)
        self.close(error)
        if isinstance(error, PeerFailedError):
            raise SystemExit(1) from None

    # -- inner parts -------------------------------------------------------------------------

    def set_scaling(self) -> None:
        """Scale gradients as the precision asks for."""
        self._scaling = None if self.precision.scaler is None else GradientScaling(self.precision.scaler)

    def _ends_group(self, wrapped: WrappedOptimizer, auto_zero_grads: bool) -> bool:
        """Tell whether this batch ends a group of ``aggregation_frequency``, and if so average its gradients."""
        if not auto_zero_grads:
            raise InvalidValueError(
                "auto_zero_grads=False cannot be used with aggregation_frequency > 1: the summed gradients of one "
                f"group would leak into the next. Received: aggregation_frequency={self.aggregation_frequency}."
            )
        if (self.progress.batches_trained + 1) % self.aggregation_frequency:
            return False
        if wrapped.divides:
            average_gradients(owned_parameters(wrapped.optimizer), self.aggregation_frequency)
        return True

    def _failure_of_others(self) -> BaseException | None:
        """Wait until all ranks have come to the end of the block, or one of them has failed."""
        try:
            self.channel("end").allgather(b"")
        except PeerFailedError as failure:
            return self.distributed.watchdog.end(failure)
        except DistributedError as error:  # a rank has left the block before its end, and without an error
            logger.info("The ranks do not end together: %s", error)
        return None

    def _shared(self, optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None) -> Callable[[], Any] | None:
        """See that gradients are those of all ranks, and that an optimizer that searches by the loss finds the same."""
        if closure is None:
            self.parallel.before_step(optimizer)
            return None

        def averaged() -> Any:
            loss = closure()
            self.parallel.before_step(optimizer)
            value = loss.detach() if isinstance(loss, torch.Tensor) else torch.tensor(loss, dtype=torch.float64)
            mean = self.parallel.average(weighted(value, self.loss_weight))
            return mean if isinstance(loss, torch.Tensor) else mean.item()

        return averaged

    def _step_scaled(self, wrapped: WrappedOptimizer, clip: Any, scaler: Any, closure: Any) -> bool:
        if scaler is not None and self._scaling is not None:
            raise InvalidValueError(
                "scaler= cannot be used together with precision='fp16' or experimental.use_amp(), which "
                "scale by themselves."
            )
        scaling = self._scaling or self._users_scaling
        if scaling is None or (scaler is not None and scaler is not scaling.scaler):
            raise InvalidValueError("This scaler is not wrapped. Call wrap_scaler on it, before wrap_model.")
        if clip is not None:
            scaling.unscale_(wrapped.optimizer)
            clip(owned_parameters(wrapped.optimizer))
        return scaling.step(wrapped.optimizer, closure)

    def _end_batch_slowly(self) -> None:
        trained = self.progress.batches_trained + 1
        if self._scaling is not None and trained % self.aggregation_frequency == 0:
            self._scaling.update()
        for wrapped in self.wrapped_schedulers:
            steps = self.progress.optimizer_steps[wrapped.optimizer_name]
            wrapped.scheduler.step_after_batch(
                batches_trained=trained,
                aggregation=self.aggregation_frequency,
                optimizer_steps_before=wrapped.steps_seen,
                optimizer_steps_after=steps,
            )
            wrapped.steps_seen = steps

    def _refuse_once_sealed(self, call: str) -> None:
        if self._sealed:
            raise InvalidStateError(
                f"{call} must be called before fit: training has begun. Call it in the Trial's __init__."
            )

    def _check_owned(self, optimizer: torch.optim.Optimizer, parameters: Iterable[torch.Tensor]) -> None:
        owned = {id(p) for model in self.models for p in model.parameters()}
        strangers = [tuple(p.shape) for p in parameters if id(p) not in owned]
        if strangers:
            raise InvalidValueError(
                f"{len(strangers)} parameters of this {type(optimizer).__qualname__} are of no wrapped "
                f"model, so they would "
                f"not be saved; their shapes: {strangers[:5]}. Call wrap_model on every model first, "
                f"then make the optimizer."
            )
