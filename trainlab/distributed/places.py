"""Where a process stands in its job: its rank among all, on its node, and where the chief is found."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from trainlab.distributed.rng import derive_seed
from trainlab.errors import DistributedError, InvalidTypeError, InvalidValueError

__all__ = [
    "THIS_HOST",
    "Place",
    "place_of_deepspeed",
    "place_of_environment",
    "place_of_torchrun",
    "port_of_environment",
]

THIS_HOST = "127.0.0.1"


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
    """Where the launcher says that this process stands: torchrun's variables, else those of a SLURM step.

    Returns:
        The place; None for a process that nobody launched with others. What a batch script of SLURM itself runs is
        such a process, whatever its allocation holds: only ``srun`` makes a step.

    Raises:
        InvalidValueError: A variable is no number or not in its range.
        DistributedError: The address of the chief's node cannot be found.
    """
    environ = os.environ
    if "RANK" in environ and "WORLD_SIZE" in environ:
        place = place_of_torchrun()
        return None if place.size == 1 and "MASTER_ADDR" not in environ else place
    if "SLURM_PROCID" in environ and _number(environ, "SLURM_STEP_NUM_TASKS", 1) > 1:
        return _place_of_slurm(environ)
    return None


def place_of_torchrun() -> Place:
    """The place that torchrun's variables tell.

    Returns:
        The place; without the numbers of the nodes if the variables for these are not all set.

    Raises:
        InvalidValueError: RANK or WORLD_SIZE is not set, or a variable is no number or not in its range.
    """
    return _place_of_variables("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", launcher="torchrun")


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
        The environment variable MASTER_PORT, or 29500.

    Raises:
        InvalidValueError: It is no port's number.
    """
    port = _number(os.environ, "MASTER_PORT", 29500)
    if not 0 < port < 65536:
        raise InvalidValueError(f"MASTER_PORT is between 1 and 65535. Received: {port}.")
    return port


def _place_of_variables(*names: str, launcher: str) -> Place:
    environ = os.environ
    missing = [name for name in ("RANK", "WORLD_SIZE") if name not in environ]
    if missing:
        raise InvalidValueError(
            f"The environment does not say who this process is. Received: no {' and no '.join(missing)}. "
            f"Start the program with {launcher}, or use DistributedContext() for a single process."
        )
    nodes = dict(zip(("local_rank", "local_size", "cross_rank", "cross_size"), names, strict=True))
    known = {field: _number(environ, name) for field, name in nodes.items()} if set(names) <= set(environ) else {}
    port = port_of_environment() if "MASTER_PORT" in environ else None
    rank, size = _number(environ, "RANK"), _number(environ, "WORLD_SIZE")
    return Place(rank, size, **known, chief_ip=environ.get("MASTER_ADDR"), port=port)


def _place_of_slurm(environ: Mapping[str, str]) -> Place:
    cross_rank, cross_size = _number(environ, "SLURM_NODEID", 0), _number(environ, "SLURM_STEP_NUM_NODES", 1)
    size = _number(environ, "SLURM_STEP_NUM_TASKS")
    tasks = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", str(size // cross_size)))
    return Place(
        _number(environ, "SLURM_PROCID"),
        size,
        local_rank=_number(environ, "SLURM_LOCALID"),
        local_size=tasks[min(cross_rank, len(tasks) - 1)],
        cross_rank=cross_rank,
        cross_size=cross_size,
        chief_ip=environ.get("MASTER_ADDR") or _chief_of_slurm(environ, cross_size),
        port=port_of_environment() if "MASTER_PORT" in environ else _port_of_slurm(environ),
    )


def _tasks_per_node(text: str) -> list[int]:
    """The parts of "2(x3),1", [2, 2, 2, 1]."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise InvalidValueError(f"SLURM_STEP_TASKS_PER_NODE is like '2(x3),1'. Received: {text!r}.")
        found += [int(match[1])] * int(match[2] or 1)
    return found


def _chief_of_slurm(environ: Mapping[str, str], nodes: int) -> str:
    if nodes == 1:
        return THIS_HOST
    listed = environ.get("SLURM_STEP_NODELIST", "")
    if listed and shutil.which("scontrol"):
        command = ["scontrol", "show", "hostnames", listed]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0 and done.stdout.split():
            return done.stdout.split()[0]
    address = environ.get("SLURM_LAUNCH_NODE_IPADDR")
    if not address:
        raise DistributedError(
            "The node of rank 0 cannot be found. Received: a SLURM step on "
            f"{nodes} nodes ({listed or 'no SLURM_STEP_NODELIST'}), no answer of `scontrol show hostnames`, and no "
            "SLURM_LAUNCH_NODE_IPADDR. Set MASTER_ADDR to the first node's name."
        )
    return address


def _port_of_slurm(environ: Mapping[str, str]) -> int:
    """The same on all ranks of a step, and most often another one than that of a neighbour's job on the node."""
    # Below the range from which systems hand out ports to clients.
    return 20000 + derive_seed(environ.get("SLURM_JOB_ID", ""), environ.get("SLURM_STEP_ID", "")) % 10000


def _number(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise InvalidValueError(f"The environment variable {name} is a whole number. Received: {text!r}.") from None
