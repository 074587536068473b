"""A round trip among real processes, as training makes it.

``python -m trainlab.cli.round_trip cpu|cuda`` is one rank.
"""

import os
import re
import socket
import subprocess
import sys
import time

from trainlab.cli.facts import Fact
from trainlab.launch.ports import free_port

__all__ = ["PROBES"]

# Two processes that load torch from a cold disk, and find each other.
_PATIENCE = 90.0
_WAIT = "60"
_ANSWER = "the sum is"


def _gloo() -> list[Fact]:
    return [_round_trip("gloo", "cpu", 2)]


def _nccl() -> list[Fact]:
    import torch
    from torch import distributed

    from trainlab.distributed import visible_gpus

    if not (distributed.is_available() and distributed.is_nccl_available() and torch.cuda.is_available()):
        return []
    return [_round_trip("NCCL", "cuda", min(2, len(visible_gpus())))]


def _round_trip(name: str, device: str, size: int) -> Fact:
    """Start the ranks, and tell how long it took or what the first of them said."""
    begun = time.monotonic()
    outputs, statuses, late = _ranks(device, size)
    row = f"{name}, {size} rank{'s' * (size > 1)}"
    expected = f"{_ANSWER} {size * (size + 1) // 2}"
    if not late and not any(statuses) and all(expected in output for output in outputs):
        return Fact("round trip", row, f"{time.monotonic() - begun:.1f} s")
    failed = next((number for number, status in enumerate(statuses) if status), 0)
    said = _last_line(outputs[failed]) or f"rank {failed} ended with status {statuses[failed]}"
    said = f"no end within {_PATIENCE:g} s; {said}" if late else said
    return Fact("round trip", row, "failed", f"{row}: processes here do not reach each other: {said}", _remedy(device))


def _ranks(device: str, size: int) -> tuple[list[str], list[int], bool]:
    """Run the processes to their end: what they printed, their exit statuses, and whether the time was up."""
    port = free_port()
    ranks: list[subprocess.Popen[str]] = []
    end, late, outputs = time.monotonic() + _PATIENCE, False, []
    try:
        for rank in range(size):
            command = [sys.executable, "-m", "trainlab.cli.round_trip", device]
            ranks.append(
                subprocess.Popen(
                    command,
                    env=_environment(rank, size, port),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        for process in ranks:
            try:
                outputs.append(process.communicate(timeout=max(end - time.monotonic(), 0.0))[0])
            except subprocess.TimeoutExpired:
                late = True
                process.kill()
                outputs.append(process.communicate()[0])
    finally:
        for process in ranks:
            process.kill()
            process.wait()
    return outputs, [process.returncode for process in ranks], late


def _environment(rank: int, size: int, port: int) -> dict[str, str]:
    """The variables of a rank; nothing of a job that the doctor itself runs in."""
    of_jobs = re.compile(r"(SLURM|TORCHELASTIC|TRAINLAB)_|(LOCAL_|GROUP_|)(RANK|WORLD_SIZE)$|MASTER_")
    kept = {name: value for name, value in os.environ.items() if not of_jobs.match(name)}
    numbers = {
        "RANK": rank,
        "WORLD_SIZE": size,
        "LOCAL_RANK": rank,
        "LOCAL_WORLD_SIZE": size,
        "GROUP_RANK": 0,
        "GROUP_WORLD_SIZE": 1,
        "MASTER_PORT": port,
        "TRAINLAB_TIMEOUT": _WAIT,
        "OMP_NUM_THREADS": 1,
    }
    return {**kept, "MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def _last_line(output: str) -> str:
    """The line that names the error: the last one that a traceback does not indent."""
    lines = [line for line in output.splitlines() if line.strip() and not line.startswith((" ", "["))]
    return lines[-1].strip() if lines else ""


def _remedy(device: str) -> str:
    named = [name for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if os.environ.get(name)]
    named = [name for name in named if device == "cuda" or name.startswith("GLOO")]
    there = [name for _, name in socket.if_nameindex()]
    if named:
        told = " and ".join(f"{name}={os.environ[name]}" for name in named)
        return f"{told} is set; the interfaces here are {', '.join(there)}: unset it, or name one of these."
    if device == "cuda":
        return "Set NCCL_DEBUG=INFO and run this again to see why; NCCL_SOCKET_IFNAME and NCCL_P2P_DISABLE=1 may help."
    return f"Let this host's name resolve (/etc/hosts), or set GLOO_SOCKET_IFNAME to one of {', '.join(there)}."


def _run(device: str) -> int:
    """What each rank does."""
    import torch
    import torch.distributed

    from trainlab.distributed import open_ranks

    with open_ranks(torch.device(device)) as context:
        number = torch.full((1000,), context.rank + 1, device=device)
        torch.distributed.all_reduce(number)
        told = context.allgather(context.rank)
        if told != list(range(context.size)):
            sys.stdout.write(f"the ranks told {told}\n")
            return 1
        sys.stdout.write(f"{_ANSWER} {int(number.max())}\n")
    return 0


PROBES = {"round trip": [_gloo, _nccl]}

if __name__ == "__main__":
    sys.exit(_run(sys.argv[1]))
