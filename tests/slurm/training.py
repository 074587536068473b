"""What a job of the tests runs on each rank: ``python -m tests.slurm.training FOLDER …``; see ``--help``."""

import argparse
import faulthandler
import os
import pickle
import signal
import sys
import time
from pathlib import Path
from typing import Any

import trainlab
from tests.training import jobs
from trainlab import Batch


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="of the run; what each rank has to tell goes beside it")
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--random", action="store_true", help="with dropout and augmented data")
    parser.add_argument("--waits", type=int, nargs="*", default=[], help="batch at which attempt 0, 1… waits")
    parser.add_argument("--pauses", choices=["early", "late"], help="in attempt 0, before fit or after it")
    parser.add_argument("--breaks", action="store_true", help="in attempt 0, after the pause")
    parser.add_argument("--twice", action="store_true", help="train FOLDER-plain afterwards, without --random")
    parser.add_argument("--found", action="store_true", help="FOLDER has runs/, and the run is found there")
    parser.add_argument("--raises", help="RANK:BATCH, where a mistake is made")
    parser.add_argument("--killed", help="RANK:BATCH, where it kills itself")
    parser.add_argument("--handler", action="store_true", help="set handlers of the user's before")
    parser.add_argument("--faulthandler", action="store_true", help="let SIGUSR1 dump a traceback, in C")
    parser.add_argument("--caught", action="store_true", help="catch what ends fit")
    return parser.parse_args(arguments)


def say(text: str) -> None:
    """One line that lines of other ranks do not get into."""
    os.write(1, f"{text}\n".encode())


def pause(options: argparse.Namespace, rank: int, when: str) -> None:
    """Wait for a file that is named after the run."""
    if options.pauses != when or os.environ.get("SLURM_RESTART_COUNT", "0") != "0":
        return
    say(f"rank {rank} pauses")
    while not options.folder.with_name(f"{options.folder.name}.go").exists():
        time.sleep(0.01)
    if options.breaks:
        raise ZeroDivisionError("what a signal does to a subprocess")


def train(options: argparse.Namespace) -> None:
    attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    place = {"name": "found"} if options.found else {"run_dir": options.folder}
    if options.found:
        options.folder.mkdir(exist_ok=True)
        os.chdir(options.folder)
    with trainlab.init(progress=False, device="cpu", seed=5, **place) as context:
        rank = context.distributed.rank

        def hook(trial: Any, batch: int) -> None:
            if options.killed == f"{rank}:{batch}":
                os.kill(os.getpid(), signal.SIGKILL)
            if batch in options.waits[attempt : attempt + 1]:
                say(f"rank {rank} waits at {batch} in attempt {attempt}")
                while not context.get_stop_requested():
                    time.sleep(0.01)
            if options.raises == f"{rank}:{batch}":
                raise ZeroDivisionError("a mistake of the user's")

        chosen = {"augmented": True, "dropout": 0.3, "scheduler": True} if options.random else {"scheduler": True}
        pause(options, rank, "early")
        trial = jobs.Noted(context, {**chosen, "hook": hook})
        before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)}
        say(f"rank {rank} of {context.distributed.size} starts attempt {attempt} at {time.time():.3f}")
        try:
            trainlab.Trainer(trial, context).fit(
                max_length=Batch(options.batches),
                reporting_period=Batch(1),
                latest_checkpoint=None if options.found else context.latest_checkpoint,
            )
        except SystemExit as ended:
            say(f"rank {rank} ends with {ended.code} at {time.time():.3f}")
            if options.caught:
                say(f"rank {rank} has its handlers: {before == {n: signal.getsignal(n) for n in before}}")
            raise
        pause(options, rank, "late")
        weights = {name: jobs.whole(value) for name, value in context.models[0].state_dict().items()}
        told = {"weights": weights, "digest": jobs.digest(weights), "seen": trial.seen, "rank": rank}
        place = options.folder.with_name(f"{options.folder.name}.rank-{rank}")
        place.write_bytes(pickle.dumps(told))
        say(f"rank {rank} has trained to the end")


class Task:
    """A training that submitit submits, and puts back into the queue."""

    def __init__(self, *arguments: str) -> None:
        self.arguments = arguments

    def __call__(self) -> None:
        main(list(self.arguments))

    def checkpoint(self) -> Any:
        from submitit.helpers import DelayedSubmission

        say("submitit asks for a checkpoint")
        return DelayedSubmission(self)


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    if options.handler:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, lambda number, frame: say(f"the user's handler got {number}, {frame is not None}"))
    if options.faulthandler:
        faulthandler.register(signal.SIGUSR1)
    train(options)
    if options.twice:
        options.folder, options.random = options.folder.with_name(f"{options.folder.name}-plain"), False
        train(options)


if __name__ == "__main__":
    main(sys.argv[1:])
