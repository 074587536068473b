"""The CPUs that a process may use, and how the ranks of a node share them among their threads."""

import logging
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from trainlab.errors import InvalidValueError

if TYPE_CHECKING:
    from trainlab.distributed.context import DistributedContext

__all__ = ["Share", "control_group_values", "cpu_quota", "share_threads", "threads_of_rank", "usable_cpus"]

_logger = logging.getLogger("trainlab.distributed")

_CONTROL_GROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Share:
    """What a rank tells the others about its CPUs.

    Args:
        cpus: those that it may run on.
        quota: how many its control group lets run at once; None: no limit.
        task: which task of SLURM it runs in, and how many CPUs that one was given; None outside.
        asked: the threads that TRAINLAB_CPUS_PER_TASK asks for, or None.
        problem: what is wrong with what it was told.
    """

    cpus: frozenset[int]
    quota: float | None
    task: tuple[str, int] | None
    asked: int | None
    problem: str | None = None


def usable_cpus() -> frozenset[int]:
    """Return the numbers of the CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cpu_quota() -> float | None:
    """How many CPUs the control groups of this process let run at once, as containers limit them.

    Returns:
        The number, such as 2.5; None where there is no limit, or no Linux.
    """
    found = [_parts(text) for text in control_group_values("", "cpu.max")]
    quotas = control_group_values("cpu", "cpu.cfs_quota_us")
    periods = control_group_values("cpu", "cpu.cfs_period_us")
    found += [_parts(f"{quota} {period}") for quota, period in zip(quotas, periods, strict=False)]
    return min((quota for quota in found if quota is not None), default=None)


def control_group_values(controller: str, name: str) -> Iterator[str]:
    """What a file of the control groups of this process says, in its own group and in those around it.

    Args:
        controller: such as "cpu", where each has groups of its own (cgroups' version 1); "" for version 2.
        name: of the file, such as "cpu.max".

    Yields:
        The text, of the innermost group first.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controller not in controllers.split(","):
            continue
        # A container sees its own group as the root, whatever its path is outside.
        root = _CONTROL_GROUPS / controllers if controller else _CONTROL_GROUPS
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if (folder / name).is_file():
                yield (folder / name).read_text(encoding="utf-8").strip()
            if folder == root:
                break


def share_threads(context: "DistributedContext") -> None:
    """Give each rank its part of its node's CPUs for torch's threads; the same call is made on each.

    What the user has set stays: OMP_NUM_THREADS, MKL_NUM_THREADS or ``torch.set_num_threads``. TRAINLAB_CPUS_PER_TASK
    is the number of threads of a rank. Otherwise the ranks that may run on the same CPUs share them, and those of the
    same SLURM task what SLURM gave it, within the quota of the control group.

    Args:
        context: the ranks.

    Raises:
        InvalidValueError: TRAINLAB_CPUS_PER_TASK is no number of CPUs; on every rank.
    """
    own = _own_share()
    if context.size == 1 and own.asked is None and own.problem is None:
        return
    told = context.allgather((context.cross_rank, own))
    for rank, (_, share) in enumerate(told):
        if share.problem:
            raise InvalidValueError(f"{share.problem} On rank {rank}.")
    near = [share for node, share in told if node == context.cross_rank]
    threads = threads_of_rank(own, near)
    if _is_chosen_by_user(own.cpus):
        return
    import torch

    before = torch.get_num_threads()
    if own.asked is None and threads >= before:
        return
    torch.set_num_threads(threads)
    if context.is_chief:
        cpus = len(frozenset().union(*(share.cpus for share in near)))
        counts = [_counted(threads, "thread"), _counted(cpus, "CPU"), _counted(len(near), "rank")]
        _logger.info("%s a rank: %s, %s on this node.", *counts)


def threads_of_rank(own: Share, near: list[Share]) -> int:
    """How many threads a rank uses.

    Args:
        own: what this rank has.
        near: what the ranks of its node have, its own among them.

    Returns:
        At least 1.
    """
    if own.asked is not None:
        return own.asked
    limits = [len(own.cpus) / sum(share.cpus == own.cpus for share in near)]
    if own.task is not None:
        name, cpus = own.task
        limits.append(cpus / sum(share.task is not None and share.task[0] == name for share in near))
    if own.quota is not None:
        limits.append(own.quota / len(near))
    return max(1, math.floor(min(limits)))


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _own_share() -> Share:
    environ = os.environ
    asked, problem = environ.get("TRAINLAB_CPUS_PER_TASK"), None
    if asked is not None and not (asked.isdecimal() and int(asked) > 0):
        problem, asked = f"TRAINLAB_CPUS_PER_TASK is a number of at least 1. Received: {asked!r}.", None
    of_slurm = environ.get("SLURM_CPUS_PER_TASK", "")
    task = None
    if of_slurm.isdecimal() and int(of_slurm) > 0:
        ids = [environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID", "PROCID")]
        task = (".".join(ids), int(of_slurm))
    return Share(usable_cpus(), cpu_quota(), task, None if asked is None else int(asked), problem)


def _is_chosen_by_user(cpus: frozenset[int]) -> bool:
    """Has the user said how many threads there are? torch does not tell: any number that it would not take itself."""
    if "OMP_NUM_THREADS" in os.environ or "MKL_NUM_THREADS" in os.environ:
        return True
    import torch

    # torch takes as many as there are CPUs or, built with MKL, cores.
    machine = frozenset(range(os.cpu_count() or 1))
    usual = {len(cpus), _cores(cpus), len(machine), _cores(machine)}
    return torch.get_num_threads() not in usual


def _cores(cpus: frozenset[int]) -> int:
    """How many cores some CPUs are; two hyperthreads are one."""
    found = set()
    for cpu in cpus:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            found.add(siblings.read_text(encoding="ascii").strip())
        except OSError:
            found.add(str(cpu))
    return len(found)


def _parts(text: str) -> float | None:
    """The CPUs of a quota and a period, "250000 100000": 2.5; "max" and -1 are no limit."""
    quota, _, period = text.partition(" ")
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None
    return limit if limit > 0 else None
