"""What a launched process of a test does: it trains one run or several, in folders that nobody named."""

import os
from collections.abc import Mapping
from typing import Any

import trainlab
from tests.training.jobs import Noted, digest, whole
from trainlab import Batch
from trainlab.distributed import RngState

BATCHES = 18


def train(folder: str, options: list[Mapping[str, Any]], fit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Train runs one after the other below a folder, and tell how each ended; ``options`` as in ``jobs``."""
    os.chdir(folder)
    return [_train(chosen, fit) for chosen in options]


def train_captured(folder: str, options: list[Mapping[str, Any]], fit: Mapping[str, Any]) -> None:
    """As ``train``, with the output in a file, as a launcher has it, and something printed before and after."""
    attempt = os.environ["TRAINLAB_ATTEMPT"]
    log = os.path.join(folder, f"captured-{os.environ['RANK']}-{attempt}")
    captured = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(captured, number)
    os.environ["TRAINLAB_LOG"] = log
    print("before", attempt)
    train(folder, options, fit)
    print("after", attempt)


def _train(options: Mapping[str, Any], fit: Mapping[str, Any]) -> dict[str, Any]:
    with trainlab.init(name="night", progress=False, device="cpu", **options.get("init", {})) as context:
        arguments = {"validation_period": Batch(5), "reporting_period": Batch(3), **fit}
        if options.get("resume"):
            arguments["latest_checkpoint"] = context.latest_checkpoint
        print("latest", context.latest_checkpoint, flush=True)
        trial = Noted(context, options)
        result = trainlab.Trainer(trial, context).fit(max_length=Batch(options.get("batches", BATCHES)), **arguments)
        print("trained", flush=True)
        weights = {key: whole(value) for key, value in trial.model.state_dict().items()}
        return {
            "folder": str(context.run_dir),
            "seen": trial.seen,
            "weights": digest(weights),
            "optimizers": digest([optimizer.state_dict() for optimizer in context.optimizers]),
            "generators": digest(RngState.capture().state_dict()),
            "metrics": result.metrics,
            "progress": result.progress.state_dict(),
        }
