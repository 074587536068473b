"""SlurmStep: the step of SLURM that a process is a task of, as its environment tells."""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from trainlab.distributed.rng import derive_seed
from trainlab.errors import DistributedError, InvalidValueError

__all__ = ["SlurmStep", "in_batch_job", "number_of", "scontrol", "tasks_without_step"]

_SHAPE = ("SLURM_STEP_NUM_TASKS", "SLURM_STEP_NUM_NODES", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID")


@dataclass(frozen=True)
class SlurmStep:
    """What ``srun`` told a task about itself.

    Attributes:
        rank: among the step's tasks.
        size: number of the step's tasks; the allocation may have more.
        local_rank: among those of its node.
        tasks: number of tasks on each of the step's nodes.
        node: which of the step's nodes this is.
    """

    rank: int
    size: int
    local_rank: int
    tasks: tuple[int, ...]
    node: int

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> "SlurmStep | None":
        """Read the step that this process is in.

        Args:
            environ: the environment.

        Returns:
            The step; None outside of one. What a batch script itself runs is in none, also where it was submitted from
            a step, whose variables it then has inherited.

        Raises:
            InvalidValueError: a variable makes no sense.
        """
        if "SLURM_PROCID" not in environ or "SLURM_STEP_NUM_TASKS" not in environ or _step_in_truth() == "batch":
            return None
        size = number_of(environ, "SLURM_STEP_NUM_TASKS")
        if size == 1:
            return cls(0, 1, 0, (1,), 0)
        node, nodes = number_of(environ, "SLURM_NODEID", 0), number_of(environ, "SLURM_STEP_NUM_NODES", 1)
        tasks = _tasks_per_node(environ.get("SLURM_STEP_TASKS_PER_NODE", f"{size // max(nodes, 1)}(x{nodes})"))
        if sum(tasks) != size or len(tasks) != nodes or node >= nodes:
            told = ", ".join(f"{name}={environ[name]!r}" for name in _SHAPE if name in environ)
            raise InvalidValueError(
                "The variables of this SLURM step contradict each other. Received: "
                f"{told}. They are srun's to set: export none of them by hand."
            )
        rank, local_rank = number_of(environ, "SLURM_PROCID"), number_of(environ, "SLURM_LOCALID", 0)
        return cls(rank, size, local_rank, tasks, node)

    def chief_address(self, environ: Mapping[str, str]) -> str:
        """Find the node of rank 0.

        Args:
            environ: the environment.

        Returns:
            Its name or address.

        Raises:
            DistributedError: it cannot be found.
        """
        listed = environ.get("SLURM_STEP_NODELIST", "")
        if listed and shutil.which("scontrol"):
            names = _scontrol("hostnames", listed).split()
            # What SLURM calls a node need not be a name that others know.
            if names:
                return names[0] if _is_known(names[0]) else _address_of_node(names[0])
        address = environ.get("SLURM_LAUNCH_NODE_IPADDR")
        if not address:
            raise DistributedError(
                "The node of rank 0 cannot be found. Received: a SLURM step on "
                f"{len(self.tasks)} nodes ({listed or 'no SLURM_STEP_NODELIST'}), no answer of `scontrol show "
                "hostnames`, and no SLURM_LAUNCH_NODE_IPADDR. Set MASTER_ADDR to the first node's name."
            )
        return address

    @staticmethod
    def port(environ: Mapping[str, str]) -> int:
        """Choose a port: the same on all ranks of a step, and most often another one than that of a neighbour's job.

        Args:
            environ: the environment.

        Returns:
            The port, below the range from which systems hand out ports to clients.
        """
        # The last is srun's own port: another one each time that a job is started, and on each cluster.
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_SRUN_COMM_PORT")
        return 20000 + derive_seed(*(environ.get(name, "") for name in names)) % 10000


def in_batch_job(environ: Mapping[str, str]) -> bool:
    """Tell whether this process belongs to a job that ``sbatch`` submitted, which SLURM can start again.

    Args:
        environ: the environment.

    Returns:
        Whether it does: in its script, or in a step of it.
    """
    # Set in a batch script, and inherited by its steps. Source: Slurm's env_array_for_batch_job (src/common/env.c).
    return environ.get("ENVIRONMENT") == "BATCH" and "SLURM_JOB_ID" in environ


def tasks_without_step(environ: Mapping[str, str]) -> int:
    """Count the tasks of the batch job whose script runs this process itself, without ``srun``.

    Args:
        environ: the environment.

    Returns:
        The number that the job asked for; 1 in a step, in an interactive allocation and outside of SLURM.
    """
    if not in_batch_job(environ):
        return 1
    if "SLURM_STEP_ID" in environ and _step_in_truth() != "batch":
        return 1
    return number_of(environ, "SLURM_NTASKS", 1)


def scontrol(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Ask SLURM, also while it sends signals to all processes of the job, in whatever session they are.

    Args:
        arguments: of ``scontrol``.

    Returns:
        Its status and what it wrote; of a second try, if a signal killed the first.

    Raises:
        OSError: it cannot be started.
        subprocess.TimeoutExpired: it does not answer in a minute.
    """
    for _ in range(2):
        with _signals_blocked():
            done = subprocess.run(
                ["scontrol", *arguments],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                start_new_session=True,
            )
        if done.returncode >= 0:
            break
    return done


def number_of(environ: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Read a whole number.

    Args:
        environ: the environment.
        name: of the variable.
        default: what is given where it is not set, default None: that is an error.

    Returns:
        The number.

    Raises:
        InvalidValueError: it is none.
    """
    text = environ.get(name)
    if text is None and default is not None:
        return default
    try:
        return int(text or "")
    except ValueError:
        raise InvalidValueError(f"The environment variable {name} is a whole number. Received: {text!r}.") from None


def _tasks_per_node(text: str) -> tuple[int, ...]:
    """The parts of "2(x3),1", (2, 2, 2, 1)."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise InvalidValueError(f"SLURM_STEP_TASKS_PER_NODE is like '2(x3),1'. Received: {text!r}.")
        found += [int(match[1])] * int(match[2] or 1)
    return tuple(found)


def _scontrol(*arguments: str) -> str:
    done = scontrol("show", *arguments)
    return done.stdout if done.returncode == 0 else ""


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """What is started in the block inherits it; this process's own signals come to its other threads, or afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _is_known(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def _address_of_node(name: str) -> str:
    """The NodeAddr that SLURM itself uses; else the name."""
    match = re.search(r"\bNodeAddr=(\S+)", _scontrol("node", name))
    return name if match is None else match[1]


def _step_in_truth() -> str | None:
    """The step of the slurmstepd that this process descends from: a number, "batch"…; None where that is not seen.

    Variables cannot tell: ``sbatch`` called in a step gives the new job the variables of that step.
    """
    process = os.getpid()
    with suppress(OSError, ValueError, IndexError):
        while process > 1:
            words = Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            match = re.match(r"slurmstepd: \[\d+\.([\w+]+)\]", words)
            if match is not None:
                return match[1]
            process = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return None
