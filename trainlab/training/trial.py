"""Trial: what a user subclasses, and the check that it can be trained."""

import difflib
import inspect
import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trainlab.data import data_length
from trainlab.errors import InvalidTypeError, InvalidValueError, TrialDefinitionError
from trainlab.metrics import Reducer
from trainlab.optim import LRScheduler
from trainlab.training.callback import Callback

if TYPE_CHECKING:
    from trainlab.training.context import TrialContext

__all__ = ["Trial", "check_trial", "checked_length", "overrides", "takes_batch_idx"]

Models = nn.Module | Mapping[str, nn.Module]
Optimizers = torch.optim.Optimizer | Mapping[str, torch.optim.Optimizer]
Schedulers = Any  # an LRScheduler, a torch scheduler, a list or a dict of these, or None


class Trial:
    """A model, its data and its steps: what trainlab trains.

    Two styles. Declarative: override ``build_model`` and ``build_optimizer`` (and
    ``build_lr_scheduler``); ``__init__`` wraps what they return and sets ``self.model``,
    ``self.optimizer`` and ``self.lr_scheduler`` (``self.models``, ``self.optimizers``,
    ``self.lr_schedulers`` for dicts of several). Hand-written: write an ``__init__`` of your own that calls
    ``context.wrap_model`` and ``context.wrap_optimizer`` itself.

    Args:
        context: what ``trainlab.init`` gave.

    Attributes:
        context: the same.
        model: the wrapped model, if ``build_model`` returned one.
        models: the wrapped models by name, if it returned a dict.
        optimizer: the wrapped optimizer, if ``build_optimizer`` returned one.
        optimizers: the wrapped optimizers by name, if it returned a dict.
        lr_scheduler: the wrapped scheduler, or None.
        lr_schedulers: the wrapped schedulers by name, if ``build_lr_scheduler`` returned a dict.
    """

    context: "TrialContext"
    model: Any
    models: dict[str, Any]
    optimizer: Any
    optimizers: dict[str, Any]
    lr_scheduler: Any
    lr_schedulers: dict[str, Any]

    def __init__(self, context: "TrialContext") -> None:
        self.context = context
        if type(self).build_model is Trial.build_model:
            return
        for hook, arguments in _CALLED_BY_INIT.items():
            _check_positions(self, hook, arguments)
        built = self.build_model()
        if isinstance(built, Mapping):
            self.models = {name: context.wrap_model(model, name=name) for name, model in built.items()}
        else:
            self.model = context.wrap_model(built)
        self._wrap_optimizers()

    def _wrap_optimizers(self) -> None:
        models = self.models if hasattr(self, "models") else self.model
        built = self.build_optimizer(models)
        if isinstance(built, Mapping):
            self.optimizers = {n: self.context.wrap_optimizer(o, name=n) for n, o in built.items()}
        else:
            self.optimizer = self.context.wrap_optimizer(built)
        schedulers = self.build_lr_scheduler(self.optimizers if hasattr(self, "optimizers") else self.optimizer)
        self.lr_scheduler = None
        if isinstance(schedulers, Mapping):
            self.lr_schedulers = {name: self._wrap_scheduler(s) for name, s in schedulers.items()}
        elif schedulers is not None:
            self.lr_scheduler = self._wrap_scheduler(schedulers)

    def _wrap_scheduler(self, scheduler: Any) -> Any:
        if isinstance(scheduler, LRScheduler):
            return self.context.wrap_lr_scheduler(scheduler.scheduler, scheduler.step_mode, scheduler.frequency)
        manual = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
        mode = LRScheduler.StepMode.MANUAL_STEP if manual else LRScheduler.StepMode.STEP_EVERY_EPOCH
        return self.context.wrap_lr_scheduler(scheduler, mode)

    def build_model(self) -> Models:
        """Build the model, or a dict of models by name.

        Returns:
            One ``nn.Module``, or several by name; on any device, ``__init__`` moves them.

        Raises:
            TrialDefinitionError: the Trial does not define this hook.
        """
        raise TrialDefinitionError(f"{type(self).__qualname__} does not define build_model.")

    def build_optimizer(self, model: Any) -> Optimizers:
        """Build the optimizer, or a dict of optimizers by name.

        Args:
            model: what ``build_model`` returned, on its device.

        Returns:
            One optimizer, or several by name.

        Raises:
            TrialDefinitionError: the Trial does not define this hook.
        """
        raise TrialDefinitionError(
            f"{type(self).__qualname__} defines build_model and no build_optimizer. Define "
            f"build_optimizer(self, model)."
        )

    def build_lr_scheduler(self, optimizer: Any) -> Schedulers:
        """Build the learning rate scheduler, if there is to be one.

        Args:
            optimizer: what ``build_optimizer`` returned.

        Returns:
            A ``trainlab.LRScheduler`` (a scheduler and when it steps), a torch scheduler (it then steps once an
            epoch; ``ReduceLROnPlateau`` needs a metric, so that you step it yourself, for example in a callback's
            ``on_validation_end``), a dict of these by name, or None.
        """
        return None

    def build_training_data_loader(self) -> Any:
        """Build the loader of the training data.

        Returns:
            A ``trainlab.DataLoader``. Any other iterable of batches works, without exact resume of its order.

        Raises:
            TrialDefinitionError: the Trial does not define this hook.
        """
        raise TrialDefinitionError(
            f"{type(self).__qualname__} does not define build_training_data_loader. Define it, and return a "
            "trainlab.DataLoader."
        )

    def build_validation_data_loader(self) -> Any:
        """Build the loader of the validation data.

        Returns:
            A ``trainlab.DataLoader``, any other iterable of batches, or None: nothing is validated.

        Raises:
            TrialDefinitionError: the Trial does not define this hook.
        """
        raise TrialDefinitionError(f"{type(self).__qualname__} does not define build_validation_data_loader.")

    def build_callbacks(self) -> Mapping[str, Callback]:
        """Build the callbacks; called once by each ``fit``.

        Returns:
            The callbacks by name; they run in this order, and their states are saved by these names.
        """
        return {}

    def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> Any:
        """Train one batch: forward, ``context.backward``, ``context.step_optimizer``.

        Args:
            batch: what the training loader gave, on the device.
            epoch_idx: index of the epoch, from 0.
            batch_idx: index of the batch since the beginning of the run, from 0.

        Returns:
            The metrics by name (numbers or 0-dimensional tensors), or the loss alone.

        Raises:
            TrialDefinitionError: the Trial does not define this hook.
        """
        raise TrialDefinitionError(f"{type(self).__qualname__} does not define train_batch.")

    def evaluate_batch(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        """Evaluate one batch; override this or ``evaluate_full_dataset``.

        Args:
            batch: what the validation loader gave, on the device.
            batch_idx: index of the batch within this validation, from 0.

        Returns:
            The metrics by name: numbers or 0-dimensional tensors, the mean over the batch.

        Raises:
            TrialDefinitionError: the Trial does not define this hook.
        """
        raise TrialDefinitionError(f"{type(self).__qualname__} does not define evaluate_batch.")

    def evaluate_full_dataset(self, data_loader: Any) -> dict[str, Any]:
        """Evaluate the whole validation set at once; override this or ``evaluate_batch``.

        Args:
            data_loader: what ``build_validation_data_loader`` returned; its batches are not moved to the device.

        Returns:
            The metrics by name.

        Raises:
            TrialDefinitionError: the Trial does not define this hook.
        """
        raise TrialDefinitionError(f"{type(self).__qualname__} does not define evaluate_full_dataset.")

    def evaluation_reducer(self) -> Reducer | dict[str, Reducer]:
        """Choose how the batches' validation metrics become one number each.

        Returns:
            One ``Reducer`` for all metrics, or one by name for each. Default ``Reducer.AVG``, weighted by records.
        """
        return Reducer.AVG

    def get_batch_length(self, batch: Any) -> int:
        """Count the records of a batch.

        Args:
            batch: a batch as ``train_batch`` and ``evaluate_batch`` get it.

        Returns:
            By default the length of the first tensor or array found in it.
        """
        return data_length(batch)


_BUILD_HOOKS = (
    "build_model",
    "build_optimizer",
    "build_lr_scheduler",
    "build_training_data_loader",
    "build_validation_data_loader",
    "build_callbacks",
)
_CALLED_WITH = {
    "train_batch": ("batch", "epoch_idx", "batch_idx"),
    "evaluate_batch": ("batch", "batch_idx"),
    "evaluate_full_dataset": ("data_loader",),
}
_CALLED_AT_POSITIONS = {
    "build_training_data_loader": (),
    "build_validation_data_loader": (),
    "build_callbacks": (),
    "evaluation_reducer": (),
    "get_batch_length": ("batch",),
}
_CALLED_BY_INIT = {"build_model": (), "build_optimizer": ("model",), "build_lr_scheduler": ("optimizer",)}
_HOOKS = (*_BUILD_HOOKS, *_CALLED_WITH, "evaluation_reducer", "get_batch_length")
# Names that other frameworks use for the same thing: too far from ours to be found by likeness.
_KNOWN_ELSEWHERE = {
    "training_step": "train_batch",
    "train_step": "train_batch",
    "validation_step": "evaluate_batch",
    "eval_step": "evaluate_batch",
    "eval_batch": "evaluate_batch",
    "configure_optimizers": "build_optimizer",
    "configure_callbacks": "build_callbacks",
    "train_dataloader": "build_training_data_loader",
    "val_dataloader": "build_validation_data_loader",
    "build_train_data_loader": "build_training_data_loader",
}


def overrides(trial: Trial, name: str) -> bool:
    """Tell whether a Trial's class defines a hook itself."""
    return getattr(type(trial), name) is not getattr(Trial, name)


def check_trial(trial: Trial, *, validates: bool) -> None:
    """Find what would go wrong with a Trial before anything is trained.

    Args:
        trial: the user's Trial.
        validates: whether a validation is asked for.

    Raises:
        TrialDefinitionError: a hook is missing, misspelt, given twice or has a wrong signature.
    """
    _check_names(trial)
    for hook in ("train_batch", "build_training_data_loader"):
        if not overrides(trial, hook):
            raise TrialDefinitionError(f"{type(trial).__qualname__} does not define {hook}. Define it.")
    by_batch, at_once = overrides(trial, "evaluate_batch"), overrides(trial, "evaluate_full_dataset")
    if by_batch and at_once:
        raise TrialDefinitionError(
            f"{type(trial).__qualname__} defines both evaluate_batch and evaluate_full_dataset. Keep one of them."
        )
    if validates and not (by_batch or at_once):
        raise TrialDefinitionError(
            f"A validation is asked for, and {type(trial).__qualname__} defines neither evaluate_batch nor "
            "evaluate_full_dataset. Define one of them, or ask for no validation (validation_period, metric, "
            "step_zero_validation)."
        )
    if (by_batch or at_once) and not overrides(trial, "build_validation_data_loader"):
        raise TrialDefinitionError(
            f"{type(trial).__qualname__} evaluates and does not define build_validation_data_loader. Define it, and "
            "return a trainlab.DataLoader."
        )
    for hook, keywords in _CALLED_WITH.items():
        if overrides(trial, hook):
            _check_signature(trial, hook, keywords)
    for hook, arguments in _CALLED_AT_POSITIONS.items():
        _check_positions(trial, hook, arguments)


def takes_batch_idx(trial: Trial) -> bool:
    """Tell whether ``evaluate_batch`` has the parameter ``batch_idx`` (its old form has not)."""
    parameters = inspect.signature(trial.evaluate_batch).parameters.values()
    return any(p.name == "batch_idx" or p.kind is p.VAR_KEYWORD for p in parameters)


def checked_length(records: Any) -> int:
    """Refuse what is no number of records.

    Args:
        records: what ``get_batch_length`` returned.

    Returns:
        The same as an int.

    Raises:
        InvalidTypeError: it is no int.
        InvalidValueError: it is negative.
    """
    try:
        number = operator.index(records)
    except TypeError:
        raise InvalidTypeError(
            f"Trial.get_batch_length must return the number of records as an int. Received: {records!r}. "
            "Return int(...)."
        ) from None
    if number < 0:
        raise InvalidValueError(
            f"Trial.get_batch_length must return a number of records of at least 0. Received: {records!r}."
        )
    return number


def _check_signature(trial: Trial, hook: str, keywords: tuple[str, ...]) -> None:
    signature = inspect.signature(getattr(trial, hook))
    if hook == "evaluate_batch" and not takes_batch_idx(trial):
        keywords = ("batch",)
    try:
        signature.bind(**dict.fromkeys(keywords))
    except TypeError as error:
        wanted = ", ".join(["self", *_CALLED_WITH[hook]])
        raise TrialDefinitionError(
            f"{type(trial).__qualname__}.{hook} cannot be called as the trainer calls it, by keyword: {error}. "
            f"Received: {hook}{signature}. Write it as {hook}({wanted})."
        ) from None


def _check_positions(trial: Trial, hook: str, arguments: tuple[str, ...]) -> None:
    signature = inspect.signature(getattr(trial, hook))
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TrialDefinitionError(
            f"{type(trial).__qualname__}.{hook} cannot be called as trainlab calls it: {error}. "
            f"Received: {hook}{signature}. Write it as {hook}({', '.join(['self', *arguments])})."
        ) from None


def _check_names(trial: Trial) -> None:
    for name in dir(type(trial)):
        if name.startswith("_") or hasattr(Trial, name) or not callable(getattr(type(trial), name, None)):
            continue
        meant = _KNOWN_ELSEWHERE.get(name) or next(iter(difflib.get_close_matches(name, _HOOKS, 1, 0.85)), None)
        if meant is None or overrides(trial, meant):
            continue
        if meant == "evaluate_batch" and overrides(trial, "evaluate_full_dataset"):
            continue
        raise TrialDefinitionError(
            f"{type(trial).__qualname__}.{name} is no hook of a Trial: it would never be called. Did you mean {meant}? "
            f"Rename it (a helper of your own: let its name begin with an underscore). The hooks are: "
            f"{', '.join(_HOOKS)}."
        )
