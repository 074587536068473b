"""What a run was configured with: hyperparameters, batch sizes, experiment configuration, seed."""

import logging
from collections.abc import Mapping
from typing import Any

from trainlab.distributed import DistributedContext
from trainlab.errors import InvalidValueError
from trainlab.runs.masking import MASK

__all__ = ["RunConfig"]

logger = logging.getLogger("trainlab.training")


class RunConfig:
    """The configuration of a run, as a Trial reads it from its context.

    Args:
        hparams: the hyperparameters by name, or None.
        exp_conf: the experiment's configuration, or None.
        distributed: who this process is among the run's processes.
        seed: the run's seed, an int ≥ 0.

    Attributes:
        given_hparams: the hyperparameters as given, or None.
        given_exp_conf: the experiment's configuration as given, or None.
        distributed: who this process is among the run's processes.
    """

    def __init__(
        self,
        *,
        hparams: Mapping[str, Any] | None,
        exp_conf: Mapping[str, Any] | None,
        distributed: DistributedContext,
        seed: int,
    ) -> None:
        self.given_hparams = None if hparams is None else dict(hparams)
        self.given_exp_conf = None if exp_conf is None else dict(exp_conf)
        self.distributed = distributed
        self._seed = seed

    def get_hparams(self) -> dict[str, Any]:
        """Return all hyperparameters by name.

        Raises:
            InvalidValueError: none were given to ``trainlab.init``.
        """
        if self.given_hparams is None:
            raise InvalidValueError("This run has no hyperparameters. Give them: trainlab.init(hparams={...}).")
        return self.given_hparams

    def get_hparam(self, name: str) -> Any:
        """Return one hyperparameter.

        Args:
            name: its name.

        Raises:
            InvalidValueError: there is none of this name, or its value was left out of the checkpoint that it is from.
        """
        hparams = self.get_hparams()
        if name not in hparams:
            raise InvalidValueError(
                f"There is no hyperparameter {name!r}. There are: {', '.join(map(repr, sorted(map(str, hparams))))}."
            )
        if hparams[name] == MASK:
            raise InvalidValueError(
                f"The value of the hyperparameter {name!r} is not known: its name, or its text, is that of a secret, "
                f"which no checkpoint holds. Give it: load_trial_from_checkpoint_path(..., hparams={{{name!r}: ...}})."
            )
        if name == "global_batch_size":
            logger.warning(
                "get_hparam('global_batch_size') is the size as given; get_global_batch_size() and "
                "get_per_slot_batch_size() tell the sizes in use."
            )
        return hparams[name]

    def get_experiment_config(self) -> dict[str, Any]:
        """Return the experiment's configuration, as given to ``trainlab.init(exp_conf=...)``.

        Raises:
            InvalidValueError: none was given.
        """
        if self.given_exp_conf is None:
            raise InvalidValueError("This run has no experiment configuration. Give it: trainlab.init(exp_conf={...}).")
        return self.given_exp_conf

    def get_data_config(self) -> dict[str, Any]:
        """Return the part ``data`` of the experiment's configuration; empty if it has none.

        Raises:
            InvalidValueError: there is no experiment configuration.
        """
        data: dict[str, Any] = self.get_experiment_config().get("data", {})
        return data

    def get_global_batch_size(self) -> int:
        """Return the number of records in a batch over all ranks.

        Returns:
            The hyperparameter ``global_batch_size``, rounded down to a multiple of the number of ranks.

        Raises:
            InvalidValueError: there is no such hyperparameter, or it is not an int that suffices for all ranks.
        """
        return self.get_per_slot_batch_size() * self.distributed.size

    def get_per_slot_batch_size(self) -> int:
        """Return the number of records in a batch on one rank.

        Raises:
            InvalidValueError: there is no hyperparameter ``global_batch_size``, or it is not an
                int that suffices for all ranks.
        """
        size, ranks = self.get_hparams().get("global_batch_size"), self.distributed.size
        if size is None:
            raise InvalidValueError(
                "The batch size getters need the hyperparameter 'global_batch_size'. "
                "Give it: trainlab.init(hparams={'global_batch_size': 64})."
            )
        if isinstance(size, bool) or not isinstance(size, int):
            raise InvalidValueError(f"The hyperparameter 'global_batch_size' must be an integer. Received: {size!r}.")
        if size < ranks:
            raise InvalidValueError(
                f"The hyperparameter 'global_batch_size' must be at least the number of ranks, {ranks}. "
                f"Received: {size}."
            )
        if size % ranks:
            logger.warning(
                "global_batch_size %d does not divide by %d ranks: %d is used.", size, ranks, size // ranks * ranks
            )
        return size // ranks

    def get_trial_seed(self) -> int:
        """Return the run's seed."""
        return self._seed

    def get_experiment_id(self) -> int:
        """Return 0: there is no cluster that numbers experiments; ``run_dir`` names a run."""
        return 0

    def get_trial_id(self) -> int:
        """Return 0: there is no cluster that numbers trials; ``run_dir`` names a run."""
        return 0
