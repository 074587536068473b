"""What the jobs of the tests call, and a program that submits one: ``python -m tests.slurm.submitted FOLDER WHAT``."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import trainlab
from tests.training import jobs
from trainlab import Batch
from trainlab.distributed import get_num_processes, get_rank
from trainlab.launch import Platform, launch


def whole_sum(number: int) -> tuple[int, int, float, str]:
    """Meet the other ranks."""
    import torch

    total = torch.tensor([float(number + get_rank())])
    if get_num_processes() > 1:
        torch.distributed.all_reduce(total)
    print(f"rank {get_rank()} is here", flush=True)
    return get_rank(), get_num_processes(), total.item(), os.environ.get("SLURM_NODEID", "")


def train(batches: int, waits_at: int = -1) -> dict[str, Any]:
    """Train in the job's folder; a first attempt waits at a batch until it is asked to stop."""
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    with trainlab.init(progress=False, device="cpu", seed=5) as context:

        def hook(trial: Any, batch: int) -> None:
            if batch == waits_at and attempt == 0:
                print(f"waits at {batch}", flush=True)
                while not context.get_stop_requested():
                    time.sleep(0.01)

        trial = jobs.Noted(context, {"augmented": True, "dropout": 0.3, "scheduler": True, "hook": hook})
        trainlab.Trainer(trial, context).fit(max_length=Batch(batches), reporting_period=Batch(1))
        weights = {name: jobs.whole(value) for name, value in context.models[0].state_dict().items()}
        return {"digest": jobs.digest(weights), "seen": trial.seen, "folder": str(context.run_dir), "attempt": attempt}


def fail_on(rank: int) -> None:
    """One rank makes a mistake, on which the others wait."""
    import torch

    if get_rank() == rank:
        raise ZeroDivisionError(f"a mistake on rank {rank}")
    torch.distributed.barrier()


def square(number: int) -> int:
    """One of the calls of an array."""
    if number == 3:
        raise ValueError("three is not liked")
    return number * number


def wait_for_ever() -> None:
    print("waiting", flush=True)
    while True:
        signal.pause()


def signal_itself(number: int, limit: int) -> int:
    """Get the signal that announces the end, until the function has been started so often; no training."""
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", os.environ.get("TRAINLAB_ATTEMPT", "0")))
    print(f"attempt {attempt}", flush=True)
    if attempt < limit:
        os.kill(os.getpid(), number)
        signal.pause()
    return attempt


def lock() -> Any:
    """Something that cannot be sent."""
    return threading.Lock()


def main(folder: str, what: str) -> None:
    platform = Platform(device="slurm", folder=Path(folder), wait=what == "follow")
    launch(wait_for_ever, platform=platform) if what == "follow" else launch(whole_sum, 1, platform=platform)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(*sys.argv[1:])
