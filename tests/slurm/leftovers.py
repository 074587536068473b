"""What the SLURM of the tests, and a job that is cancelled on it, leave behind: ``python -m tests.slurm.leftovers``.

Where it has namespaces of its own, nobody else's processes and ports come in between, and before and after can be
compared. It prints what there was in between, and what there is still, as JSON.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from contextlib import suppress

import psutil

from tests.slurm import cluster

State = dict[str, set[str]]


def state() -> State:
    """What there is now."""
    sockets, processes = psutil.net_connections("inet"), set()
    for one in psutil.process_iter():
        with suppress(psutil.NoSuchProcess):
            processes.add(f"{one.pid} {one.name()}")
    return {
        "processes": processes,
        "ports": {str(one.laddr) for one in sockets if one.status == psutil.CONN_LISTEN},
        "shared memory": set(os.listdir("/dev/shm")),
        "temporary files": set(os.listdir(tempfile.gettempdir())),
    }


def more(before: State, after: State) -> dict[str, list[str]]:
    return {what: sorted(after[what] - before[what]) for what in before if after[what] - before[what]}


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # With none but 127.0.0.1, SLURM finds no names: to getaddrinfo's AI_ADDRCONFIG that is no address.
    subprocess.run(["ip", "address", "add", "127.0.0.2/8", "dev", "lo"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", "/dev/shm"], check=True)
    before = state()
    with cluster.running() as slurm:
        python = f"{shlex.quote(sys.executable)} -m tests.slurm.training"
        job = slurm.submit(f"srun {python} {slurm.folder}/run --waits 3", "--ntasks=2")
        slurm.wait_for_output(job, "rank 1 waits at 3", 200)
        during = state()
        slurm.cancel(job)
        ended = slurm.wait(job)
    with suppress(TimeoutError):  # who has ended may be there until the namespace's first process has heard of it
        cluster.wait_for(lambda: not more(before, state()), 30, "something is left")
    print(json.dumps({"ended": ended, "during": more(before, during), "left": more(before, state())}))


if __name__ == "__main__":
    main()
