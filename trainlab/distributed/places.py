"""Where a process stands in its job: its rank among all, on its node, and where the chief is found."""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass

from trainlab.distributed.slurm import SlurmStep, number_of, tasks_without_step
from trainlab.errors import InvalidTypeError, InvalidValueError

__all__ = [
    "THIS_HOST",
    "Place",
    "place_of_deepspeed",
    "place_of_environment",
    "place_of_torchrun",
    "port_of_environment",
]

THIS_HOST = "127.0.0.1"

_logger = logging.getLogger("trainlab.distributed")

# As Place has them; those of torchrun, and those that a person sets by hand.
_TORCHRUNS = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE")
_OWN = ("TRAINLAB_LOCAL_RANK", "TRAINLAB_LOCAL_WORLD_SIZE", "TRAINLAB_NODE_RANK", "TRAINLAB_NODES")
_NODES = ("local_rank", "local_size", "cross_rank", "cross_size")

_warned: set[str] = set()


@dataclass(frozen=True)
class Place:
    """Who a process is among those of its job.

    Args:
        rank: of this process among all.
        size: number of processes.
        local_rank: of this process on its node; None where the launcher does not tell: found out by host.
        local_size: number of processes on this node, or None.
        cross_rank: of this node, or None.
        cross_size: number of nodes, or None.
        chief_ip: address of the node of rank 0; None where the launcher does not tell.
        port: where rank 0 is found there, default None.
    """

    rank: int
    size: int
    local_rank: int | None = None
    local_size: int | None = None
    cross_rank: int | None = None
    cross_size: int | None = None
    chief_ip: str | None = None
    port: int | None = None

    def __post_init__(self) -> None:
        self._check("")
        if self.knows_nodes:
            self._check("local_")
            self._check("cross_")
            if max(self.local_size or 1, self.cross_size or 1) > self.size:
                raise InvalidValueError(
                    "There are no more processes on a node, and no more nodes, than processes. Received: "
                    f"size={self.size}, local_size={self.local_size}, cross_size={self.cross_size}."
                )

    @property
    def knows_nodes(self) -> bool:
        """Tell whether the numbers of the nodes are known."""
        return None not in {self.local_rank, self.local_size, self.cross_rank, self.cross_size}

    @property
    def nodes(self) -> tuple[int, int, int, int]:
        """local_rank, local_size, cross_rank and cross_size; those of a process alone if they are not known."""
        return (self.local_rank or 0, self.local_size or 1, self.cross_rank or 0, self.cross_size or 1)

    def _check(self, prefix: str) -> None:
        rank, size = getattr(self, f"{prefix}rank"), getattr(self, f"{prefix}size")
        for name, number in ((f"{prefix}rank", rank), (f"{prefix}size", size)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise InvalidTypeError(f"{name} is an int. Received: {number!r} of type {type(number).__name__}.")
        if size < 1 or not 0 <= rank < size:
            raise InvalidValueError(
                f"{prefix}size is at least 1 and {prefix}rank is between 0 and {prefix}size - 1. "
                f"Received: {prefix}rank={rank}, {prefix}size={size}."
            )


def place_of_environment() -> Place | None:
    """Where the environment says that this process stands: TRAINLAB_RANK and its like, torchrun's, or a SLURM step's.

    Returns:
        The place, by the first of these that are set; None for a process that nobody launched with others. What a
        batch script of SLURM itself runs is such a process, whatever its allocation holds: only ``srun`` makes a step.

    Raises:
        InvalidValueError: A variable is no number or not in its range, or they contradict each other.
        DistributedError: The address of the chief's node cannot be found.
    """
    environ = os.environ
    if _is_set(environ, "TRAINLAB_RANK", "TRAINLAB_WORLD_SIZE", *_OWN):
        return _alone_or(_place_by_hand(environ))
    step = SlurmStep.of(environ)
    if _is_set(environ, "RANK", "WORLD_SIZE") and (step is None or not _is_of_step(environ, step)):
        return _alone_or(place_of_torchrun())
    if step is not None and step.size > 1:
        return _place_of_step(environ, step)
    if step is None and (tasks := tasks_without_step(environ)) > 1 and "srun" not in _warned:
        _warned.add("srun")
        _logger.warning(
            "This process is alone, while its SLURM job has %d tasks: the batch script runs it without srun. If it is "
            "to be one of several, start it with srun: `srun python script.py`.",
            tasks,
        )
    return None


def place_of_torchrun() -> Place:
    """The place that torchrun's variables tell.

    Returns:
        The place; without the numbers of the nodes if the variables for these are not all set.

    Raises:
        InvalidValueError: RANK or WORLD_SIZE is not set, or a variable is no number or not in its range.
    """
    return _place_of_variables(*_TORCHRUNS, launcher="torchrun")


def place_of_deepspeed() -> Place:
    """The place that the variables of DeepSpeed's launcher tell.

    Returns:
        The place; without the numbers of the nodes if the variables for these are not all set.

    Raises:
        InvalidValueError: RANK or WORLD_SIZE is not set, or a variable is no number or not in its range.
    """
    return _place_of_variables("LOCAL_RANK", "LOCAL_SIZE", "CROSS_RANK", "CROSS_SIZE", launcher="deepspeed")


def port_of_environment() -> int:
    """The port at which rank 0 is found.

    Returns:
        The environment variable TRAINLAB_MASTER_PORT, else MASTER_PORT, else 29500.

    Raises:
        InvalidValueError: It is no port's number.
    """
    name = "TRAINLAB_MASTER_PORT" if "TRAINLAB_MASTER_PORT" in os.environ else "MASTER_PORT"
    port = number_of(os.environ, name, 29500)
    if not 0 < port < 65536:
        raise InvalidValueError(f"{name} is between 1 and 65535. Received: {port}.")
    return port


def _place_of_variables(*names: str, launcher: str) -> Place:
    environ = os.environ
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in environ]
    if missing:
        raise InvalidValueError(
            "The environment does not say who this process is. Received: "
            f"{_told(environ, 'RANK', 'WORLD_SIZE') or 'nothing'}, and no {' and no '.join(missing)}. "
            f"Start the program with {launcher}, or use DistributedContext() for a single process."
        )
    known = _numbers_of_nodes(environ, names) if set(names) <= set(environ) else {}
    rank, size = number_of(environ, "RANK"), number_of(environ, "WORLD_SIZE")
    return Place(rank, size, **known, chief_ip=_address(environ), port=_port(environ))


def _place_by_hand(environ: Mapping[str, str]) -> Place:
    """The place that a person has set, whatever a launcher says; half of it is a mistake."""
    for names in (("TRAINLAB_RANK", "TRAINLAB_WORLD_SIZE"), _OWN):
        missing = [name for name in names if name not in environ]
        if missing and (names is not _OWN or _is_set(environ, *names)):
            raise InvalidValueError(
                f"{', '.join(names)} are set together. Received: "
                f"{_told(environ, 'TRAINLAB_RANK', 'TRAINLAB_WORLD_SIZE', *_OWN)}, and no {' and no '.join(missing)}."
            )
    known = _numbers_of_nodes(environ, _OWN) if set(_OWN) <= set(environ) else {}
    rank, size = number_of(environ, "TRAINLAB_RANK"), number_of(environ, "TRAINLAB_WORLD_SIZE")
    return Place(rank, size, **known, chief_ip=_address(environ), port=_port(environ))


def _is_of_step(environ: Mapping[str, str], step: SlurmStep) -> bool:
    """Tell whether RANK and WORLD_SIZE only repeat what the step says; refuse those that contradict it.

    A launcher inside of the step (torchrun, one a node) gives each of its processes LOCAL_RANK, which nobody exports
    by hand to all tasks of a step. Ranks that are started by hand, each in a step of its own, are told MASTER_ADDR.
    """
    if "LOCAL_RANK" in environ or "TORCHELASTIC_RUN_ID" in environ:
        return False
    if step.size == 1 and (_address(environ) or number_of(environ, "WORLD_SIZE", 1) == 1):
        return False
    ours = {"RANK": step.rank, "WORLD_SIZE": step.size}
    if any(name in environ and number_of(environ, name) != number for name, number in ours.items()):
        raise InvalidValueError(
            f"The environment says two things about who this process is. Received: {_told(environ, *ours)}, while srun "
            f"started it as task {step.rank} of {step.size} "
            f"({_told(environ, 'SLURM_PROCID', 'SLURM_STEP_NUM_TASKS')}), and not torchrun. Unset "
            f"{' and '.join(name for name in ours if name in environ)}: they are found out; or start torchrun or "
            "`trainlab launch` with srun, one task a node."
        )
    return True


def _place_of_step(environ: Mapping[str, str], step: SlurmStep) -> Place:
    nodes = len(step.tasks)
    chief = _address(environ) or (THIS_HOST if nodes == 1 else step.chief_address(environ))
    return Place(
        step.rank,
        step.size,
        local_rank=step.local_rank,
        local_size=step.tasks[step.node],
        cross_rank=step.node,
        cross_size=nodes,
        chief_ip=chief,
        port=_port(environ) or step.port(environ),
    )


def _alone_or(place: Place) -> Place | None:
    """None for one process that is told no address: it is alone."""
    return None if place.size == 1 and place.chief_ip is None else place


def _numbers_of_nodes(environ: Mapping[str, str], names: tuple[str, ...]) -> dict[str, int]:
    return {field: number_of(environ, name) for field, name in zip(_NODES, names, strict=True)}


def _address(environ: Mapping[str, str]) -> str | None:
    return environ.get("TRAINLAB_MASTER_ADDR") or environ.get("MASTER_ADDR")


def _port(environ: Mapping[str, str]) -> int | None:
    return port_of_environment() if _is_set(environ, "TRAINLAB_MASTER_PORT", "MASTER_PORT") else None


def _is_set(environ: Mapping[str, str], *names: str) -> bool:
    return any(name in environ for name in names)


def _told(environ: Mapping[str, str], *names: str) -> str:
    return ", ".join(f"{name}={environ[name]!r}" for name in names if name in environ)
