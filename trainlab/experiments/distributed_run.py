"""An experiment on several processes: ``--distributed`` and its like, by way of ``trainlab.launch``."""

import logging
import os
from typing import TYPE_CHECKING, Any

from trainlab.errors import InvalidValueError
from trainlab.experiments.determinism import CUBLAS_WORKSPACE
from trainlab.launch import Platform, launch
from trainlab.launch.ports import free_port
from trainlab.launch.worker import environment

if TYPE_CHECKING:
    from trainlab.experiments.definition import Experiment
    from trainlab.experiments.values import Values

__all__ = ["run_distributed", "wants_launch"]

logger = logging.getLogger("trainlab.experiments")


def wants_launch(values: "Values") -> bool:
    """Tell whether a run is to be started on processes of its own, which this one is not one of.

    Args:
        values: its parameters'.

    Returns:
        False without ``distributed``; in a process that torchrun, SLURM or a launch has started as one of several; and
        with ``debug``, which is told.
    """
    if not values.params["distributed"]:
        return False
    from trainlab.distributed import is_distributed
    from trainlab.distributed.places import place_of_environment

    if is_distributed() or place_of_environment() is not None:
        return False
    if values.params["debug"]:
        logger.warning("debug: the run is in this process alone, and `distributed` is not done.")
        return False
    return True


def run_distributed(
    experiment: "Experiment", values: "Values", *, run_dir: str | os.PathLike[str] | None, resumes: bool
) -> Any:
    """Run an experiment on the processes that its parameters ask for, and wait for them.

    Args:
        experiment: which one.
        values: its parameters'.
        run_dir: the run's folder exactly; None for a new one.
        resumes: whether to go on with the run in it.

    Returns:
        What the main function returned on rank 0.

    Raises:
        RankFailedError: a rank failed; the first cause, with its traceback.
        InvalidValueError: the parameters do not fit each other, or this machine.
        SystemExit: the ranks ended in good order after a signal.
    """
    platform = _platform(values)
    # The ranks open CUDA before their run begins.
    variables = {}
    if values.params["deterministic"]:
        variables = {name: os.environ.get(name, value) for name, value in CUBLAS_WORKSPACE.items()}
    if platform.nodes == 1 and platform.processes == 1:
        variables |= _alone(platform.master_port or free_port())
    with environment(variables):
        results = launch(_Rank(experiment, values, run_dir, resumes), platform=platform)
    return results[0]  # type: ignore[index]  # no handle: this is no job of SLURM


class _Rank:
    """What each rank does; its name is the experiment's."""

    def __init__(
        self, experiment: "Experiment", values: "Values", run_dir: str | os.PathLike[str] | None, resumes: bool
    ) -> None:
        self.__name__ = experiment.name
        self._experiment, self._values, self._run_dir, self._resumes = experiment, values, run_dir, resumes

    def __call__(self) -> Any:
        from trainlab.distributed import is_master
        from trainlab.experiments.running import run

        result = run(self._experiment, self._values, run_dir=self._run_dir, resumes=self._resumes)
        return result if is_master() else None


def _platform(values: "Values") -> Platform:
    params = values.params
    given = {name for name, origin in values.origins.items() if origin != "default"}
    options: dict[str, Any] = {
        "device": "auto" if params["cuda"] else "cpu",
        "processes": params["nproc_per_node"],
        "nodes": params["nnodes"],
    }
    if "node_rank" in given:
        options["node_rank"] = params["node_rank"]
    if "master_port" in given or params["nnodes"] > 1:
        options["master_port"] = params["master_port"]
    if params["nnodes"] > 1:
        if "master_addr" not in given:
            raise InvalidValueError(
                f"Several nodes find each other at one of them. Received: nnodes={params['nnodes']}, and no "
                "master_addr. Start the same on each node, with --master-addr (or MASTER_ADDR) naming the first."
            )
        options["master_addr"] = params["master_addr"]
    return Platform(**options)


def _alone(port: int) -> dict[str, str]:
    """The variables of a single rank, which has a process group all the same."""
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    numbers = {name: str(int(name.endswith("SIZE"))) for name in names}
    return {**numbers, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
