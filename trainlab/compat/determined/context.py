"""The contexts of ``determined.pytorch``, and what opens them."""

import os
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch

from trainlab import training
from trainlab.compat.determined.rules import DeterminedRules
from trainlab.distributed import DistributedContext
from trainlab.metrics import MetricReducer
from trainlab.training import ExperimentalContext, TrainingRules, Trial, TrialContext, open_context

__all__ = [
    "CheckpointLoadContext",
    "PyTorchExperimentalContext",
    "PyTorchTrialContext",
    "init",
    "load_trial_from_checkpoint_path",
]


class PyTorchTrialContext(TrialContext):
    """A context that decides as Determined does, where trainlab decides otherwise.

    Args:
        **arguments: those of ``trainlab.training.TrialContext``; ``init`` is the way to make one.
    """

    rules: ClassVar[TrainingRules] = DeterminedRules()
    experimental: "PyTorchExperimentalContext"

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.experimental = PyTorchExperimentalContext(self)

    def __enter__(self) -> "PyTorchTrialContext":
        """Return the context itself."""
        return self


class CheckpointLoadContext(PyTorchTrialContext):
    """The context of a Trial that was loaded from a checkpoint and is not trained.

    Args:
        **arguments: see ``PyTorchTrialContext``; ``load_trial_from_checkpoint_path`` makes one.
    """


class PyTorchExperimentalContext(ExperimentalContext):
    """Reached as ``context.experimental``; the three methods for reducers are now those of the context itself.

    Args:
        context: the context that it acts on.
    """

    def __init__(self, context: TrialContext) -> None:
        super().__init__(context)
        self._of = context

    def wrap_reducer(
        self,
        reducer: Callable[[list[Any]], Any] | MetricReducer,
        name: str | None = None,
        for_training: bool = True,
        for_validation: bool = True,
    ) -> MetricReducer:
        """Do what ``context.wrap_reducer`` does.

        Args:
            reducer: a MetricReducer, or a function of the list of all values given to ``update``.
            name: the metric's name; None if the result is a dict of metrics.
            for_training: whether it is reduced at each report.
            for_validation: whether it is reduced at each validation.

        Returns:
            The MetricReducer, or an object with ``update(value)`` for a function.
        """
        return self._of.wrap_reducer(reducer, name, for_training, for_validation)

    def reduce_metrics(self, for_training: bool) -> dict[str, Any]:
        """Do what ``context.reduce_metrics`` does.

        Args:
            for_training: whether those for training are reduced, else those for validation.

        Returns:
            The results by name.
        """
        return self._of.reduce_metrics(for_training)

    def reset_reducers(self) -> None:
        """Do what ``context.reset_reducers`` does."""
        self._of.reset_reducers()


def init(
    *,
    hparams: Mapping[str, Any] | None = None,
    exp_conf: Mapping[str, Any] | None = None,
    distributed: DistributedContext | None = None,
    aggregation_frequency: int = 1,
    enable_tensorboard_logging: bool = True,
    name: str | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    seed: int | None = None,
    precision: str = "fp32",
    device: str | torch.device | None = None,
    progress: bool = True,
    uneven: str = "scale",
) -> PyTorchTrialContext:
    """Open a run and return its context, to be used in a ``with`` block.

    The first five arguments are Determined's; the others are trainlab's own, as in ``trainlab.init``.

    Args:
        hparams: the hyperparameters by name. Default none.
        exp_conf: the experiment's configuration. Default none.
        distributed: who this process is among several. Default: alone.
        aggregation_frequency: so many batches' gradients are summed for one optimizer step. Default 1.
        enable_tensorboard_logging: whether trainlab writes its own TensorBoard series. Default True.
        name: of the folder of the run's folder. Default: the script's name.
        run_dir: exactly the run's folder; if it holds a run, that run goes on. Default: ``TRAINLAB_RUN_DIR``, or else
            a new folder under ``runs``.
        seed: of all random generators. Default: ``TRAINLAB_SEED``, or else 0.
        precision: "fp32", "bf16" or "fp16".
        device: where models and batches are. Default: a GPU if there is one.
        progress: whether to show a bar or lines. Default True.
        uneven: what becomes of an uneven last global batch on several ranks. Default "scale".

    Returns:
        The context, to be given to the Trial and to the Trainer.

    Raises:
        InvalidValueError: an argument cannot be used.
        InvalidTypeError: an argument has the wrong type.
        RunFolderError: the folder is held by another process, or is no run's.
    """
    context = open_context(
        PyTorchTrialContext,
        hparams=hparams,
        exp_conf=exp_conf,
        distributed=distributed,
        aggregation_frequency=aggregation_frequency,
        name=name,
        run_dir=run_dir,
        seed=seed,
        precision=precision,
        device=device,
        enable_tensorboard_logging=enable_tensorboard_logging,
        progress=progress,
        uneven=uneven,
    )
    return cast(PyTorchTrialContext, context)


def load_trial_from_checkpoint_path(
    path: str | os.PathLike[str],
    trial_class: type[Trial] | None = None,
    trial_kwargs: Mapping[str, Any] | None = None,
    torch_load_kwargs: Mapping[str, Any] | None = None,
) -> Trial:
    """Build a Trial with the hyperparameters of a checkpoint, and load its models' weights.

    No code comes from the checkpoint, and none is imported because it names it.

    Args:
        path: the checkpoint's folder.
        trial_class: the Trial's class. Default: the class that the checkpoint names, if its module is imported already.
        trial_kwargs: further keyword arguments of the class. Default none.
        torch_load_kwargs: only ``map_location``, the device to load to. Default: the CPU.

    Returns:
        The Trial, whose context is a ``CheckpointLoadContext``.

    Raises:
        CheckpointError: there is no checkpoint, it is damaged, or its weights do not fit the Trial's models.
        InvalidValueError: the class is not given and not imported, or an option is not known.
    """
    return training.load_trial_from_checkpoint_path(
        path, trial_class, trial_kwargs, torch_load_kwargs, context_class=CheckpointLoadContext
    )
