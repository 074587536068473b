"""Platform: where something runs, on how many processes, and what is asked of SLURM."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from trainlab.errors import InvalidTypeError, InvalidValueError

__all__ = ["Platform"]

_Count = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Text = Annotated[str, Field(min_length=1)]

# Options that only SLURM understands, and those that only nodes started by hand do.
_OF_SLURM = {
    "executor",
    "name",
    "folder",
    "partition",
    "account",
    "qos",
    "constraint",
    "mem",
    "gres",
    "nodelist",
    "exclude",
    "time",
    "gpus_per_node",
    "setup",
    "array_parallelism",
    "signal_lead",
    "requeue",
    "max_requeues",
    "extra",
    "wait",
}
_BY_HAND = {"node_rank", "master_addr", "master_port", "run_id", "log_dir", "grace", "max_restarts"}
_TIME = re.compile(r"(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})")


class Platform(BaseModel):
    """Where ``launch`` runs a function, or ``trainlab launch`` a script. Frozen; an unknown option is an error.

    Args:
        device: "cpu", "cuda", "mps", "slurm" (a job is submitted) or "auto": CUDA, then MPS, then the CPU. Default
            "auto".
        processes: ranks on each node. Default: one for each GPU that is visible with CUDA, else one.
        nodes: how many nodes, each of which makes the same call; "1:4" for as many of them as are there, from 1 to 4.
            Default 1.
        cpus_per_task: CPU threads of a rank. Default: the node's CPUs are shared among its ranks.
        ipc_groups: process groups as lists of ranks, each rank in exactly one; a rank finds its own with
            ``trainlab.distributed.get_group()``. Default: one group of all ranks.
        timeout: seconds that ranks wait for each other. Default: the environment variable TRAINLAB_TIMEOUT, or 600.
        max_restarts: how often all ranks are started again after a rank or a node was lost. Default 3.
        seed: what all generators are seeded with before the function is called, the same on each rank. Default: they
            are left alone.
        log_dir: the folder for ``log.rank-N.txt``. Default: the run's folder; where there is no run, a folder in
            ``runs/``.
        grace: seconds that ranks have to come to an end after a signal, then they are killed. Default 60.
        node_rank: the number of this node, for several that are started by hand. Default: found out.
        master_addr: the address of the node that the others find each other at; needed for several nodes.
        master_port: its port. Default 29400; one that is free if there is only one node.
        run_id: a name of this launch that all its nodes share. Default: the master's choice.
        executor: what stands for SLURM: "slurm", "local" (processes of this machine) or "debug" (this process).
            Default "slurm".
        name: the job's name. Default: the function's.
        folder: the job's and the run's folder. Default: a new one in ``runs/<name>/``.
        partition: see sbatch's options, as the following ones.
        account: which account pays.
        qos: the quality of service.
        constraint: features that nodes must have.
        mem: memory of a node, such as "16GB".
        gres: generic resources.
        nodelist: nodes to use.
        exclude: nodes not to use.
        time: the time limit, in minutes or such as "1-12:00:00".
        gpus_per_node: GPUs of a node, with one rank each.
        setup: lines of shell that the job runs before it starts the ranks.
        array_parallelism: how many jobs of an array run at once.
        signal_lead: seconds before the time limit at which training makes a checkpoint and the job is requeued.
            Default 90.
        requeue: whether a job that was preempted or ran out of time goes back into the queue. Default True.
        max_requeues: how often it does for want of time. Default: as often as it takes.
        extra: further options of sbatch by name.
        wait: whether ``launch`` waits for the job and gives its results. Default False: it gives a handle.

    Raises:
        InvalidTypeError: an option is unknown or of a wrong type.
        InvalidValueError: a value cannot be used, or two options contradict each other.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    device: Literal["auto", "cpu", "cuda", "mps", "slurm"] = "auto"
    processes: _Count | None = None
    nodes: _Count | _Text = 1
    cpus_per_task: _Count | None = None
    ipc_groups: Sequence[Sequence[int]] | None = None
    timeout: _Seconds | None = None
    max_restarts: Annotated[int, Field(ge=0)] = 3
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    log_dir: Annotated[Path, Field(strict=False)] | None = None
    grace: _Seconds = 60.0
    node_rank: Annotated[int, Field(ge=0)] | None = None
    master_addr: _Text | None = None
    master_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+=-]{0,99}$")] | None = None
    executor: Literal["slurm", "local", "debug"] = "slurm"
    name: _Text | None = None
    folder: Annotated[Path, Field(strict=False)] | None = None
    partition: _Text | None = None
    account: _Text | None = None
    qos: _Text | None = None
    constraint: _Text | None = None
    mem: _Text | None = None
    gres: _Text | None = None
    nodelist: _Text | None = None
    exclude: _Text | None = None
    time: _Count | _Text | None = None
    gpus_per_node: _Count | None = None
    setup: Sequence[str] = ()
    array_parallelism: _Count | None = None
    signal_lead: _Count = 90
    requeue: bool = True
    max_requeues: Annotated[int, Field(ge=0)] | None = None
    extra: Mapping[str, str | int | bool] = {}
    wait: bool = False

    if not TYPE_CHECKING:  # type checkers see the options above

        def __init__(self, **options: Any) -> None:
            known = list(type(self).model_fields)
            unknown = [name for name in options if name not in known]
            if unknown:
                raise InvalidTypeError(
                    f"Platform has no option {', '.join(map(repr, unknown))}. It has: {', '.join(known)}."
                )
            try:
                super().__init__(**options)
            except ValidationError as error:
                raise InvalidValueError(_told(error)) from None
            _check_together(self)

    @property
    def node_range(self) -> tuple[int, int]:
        """The least and the most nodes.

        Returns:
            Two numbers, equal unless ``nodes`` is a range.
        """
        if isinstance(self.nodes, int):
            return self.nodes, self.nodes
        least, _, most = self.nodes.partition(":")
        return int(least), int(most or least)


def _told(error: ValidationError) -> str:
    """Each of pydantic's findings in a sentence."""
    found: dict[str, list[str]] = {}
    for problem in error.errors():
        name = str(problem["loc"][0])
        found.setdefault(name, []).append(problem["msg"].removeprefix("Value error, "))
    received = {str(problem["loc"][0]): problem["input"] for problem in reversed(error.errors())}
    sentences = [
        f"{name}{_expected(list(dict.fromkeys(messages)))}. Received: {received[name]!r}."
        for name, messages in found.items()
    ]
    return "Platform: " + " ".join(sentences)


def _expected(messages: list[str]) -> str:
    """Alternatives in one clause, where pydantic has a sentence for each."""
    usual = "Input should be "
    if all(message.startswith(usual) for message in messages):
        return f" should be {' or '.join(message.removeprefix(usual) for message in messages)}"
    return f": {'; or '.join(messages)}"


def _check_together(platform: Platform) -> None:
    """Refuse options that contradict each other."""
    given = platform.model_fields_set
    _check_nodes(platform)
    if platform.device == "slurm":
        wrong, why = given & _BY_HAND, "device='slurm', where the job starts all ranks itself"
    else:
        wrong, why = given & _OF_SLURM, f"device={platform.device!r}, while these are for device='slurm'"
    if wrong:
        raise InvalidValueError(f"Platform: options that do not go together. Received: {sorted(wrong)} with {why}.")
    if platform.device == "mps" and (platform.processes or 1) > 1:
        raise InvalidValueError(f"Apple's GPU trains in one process. Received: processes={platform.processes}.")
    if platform.gpus_per_node is not None and (platform.processes or 1) > platform.gpus_per_node:
        raise InvalidValueError(
            "Each rank has a GPU of its own, so that processes is at most gpus_per_node. Received: "
            f"processes={platform.processes}, gpus_per_node={platform.gpus_per_node}."
        )
    if isinstance(platform.time, str) and not _TIME.fullmatch(platform.time):
        raise InvalidValueError(
            f"time is minutes, or one of SLURM's forms (30, 30:00, 12:00:00, 1-12, 1-12:00:00). Received: "
            f"{platform.time!r}."
        )
    _check_groups(platform)


def _check_nodes(platform: Platform) -> None:
    if isinstance(platform.nodes, str) and not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", platform.nodes):
        raise InvalidValueError(f"nodes is a number, or a range such as '1:4'. Received: {platform.nodes!r}.")
    least, most = platform.node_range
    if least > most:
        raise InvalidValueError(
            f"A range of nodes goes from the least to the most. Received: nodes={platform.nodes!r}."
        )
    if platform.device == "slurm":
        if least != most or (platform.executor != "slurm" and most > 1):
            raise InvalidValueError(
                "A job of SLURM has a fixed number of nodes, and the local and debug executors have one. Received: "
                f"nodes={platform.nodes!r}, executor={platform.executor!r}."
            )
        return
    if most > 1 and platform.master_addr is None:
        raise InvalidValueError(
            f"Several nodes find each other at one of them. Received: nodes={platform.nodes!r} and no master_addr. "
            "Make the same call on each node, with the address of the first as master_addr."
        )
    if platform.node_rank is not None and platform.node_rank >= most:
        raise InvalidValueError(
            f"node_rank is between 0 and nodes - 1. Received: node_rank={platform.node_rank}, nodes={platform.nodes!r}."
        )


def _check_groups(platform: Platform) -> None:
    if platform.ipc_groups is None:
        return
    ranks = [rank for group in platform.ipc_groups for rank in group]
    if not ranks or sorted(ranks) != list(range(len(ranks))) or not all(platform.ipc_groups):
        raise InvalidValueError(
            "ipc_groups are lists of ranks, with each rank from 0 on in exactly one. Received: "
            f"{[list(group) for group in platform.ipc_groups]}."
        )
    least, most = platform.node_range
    size = None if platform.processes is None or least != most else platform.processes * least
    if size is not None and len(ranks) != size:
        raise InvalidValueError(f"ipc_groups name each of the {size} ranks once. Received: {len(ranks)} ranks.")
