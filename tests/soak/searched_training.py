"""What the soak of searches runs: a training of a few steps, with a checkpoint of its own after each."""

import json
import time
from pathlib import Path
from typing import Any

import trainlab
from trainlab.experiments.searched import report

STEPS = 10


@trainlab.experiment
@trainlab.parameter("lr", float, default=0.1, search=trainlab.Search(1e-4, 1.0, log=True))
@trainlab.parameter("depth", int, default=1, search=trainlab.Search(1, 4))
@trainlab.parameter("seconds", float, default=0.05)
def train(params: dict[str, Any]) -> dict[str, float]:
    checkpoint = Path(trainlab.output_dir) / "checkpoint.json"
    state = {"step": 0, "lr": params["lr"], "depth": params["depth"]}
    if checkpoint.exists():
        state = json.loads(checkpoint.read_text(encoding="utf-8"))
        if (state["lr"], state["depth"]) != (params["lr"], params["depth"]):
            raise AssertionError(f"begun with {state}, gone on with {params}")
    loss = 0.0
    for step in range(state["step"] + 1, STEPS + 1):
        time.sleep(params["seconds"])  # the work
        loss = abs(params["lr"] - 0.01) + params["depth"] + 1 / step
        report(loss, step)
        new = checkpoint.with_suffix(".new")
        new.write_text(json.dumps({**state, "step": step}), encoding="utf-8")
        new.replace(checkpoint)
    return {"loss": abs(params["lr"] - 0.01) + params["depth"] + 1 / STEPS}
