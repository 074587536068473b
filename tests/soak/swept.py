"""What the soak of sweeps runs: ``python -m tests.soak.swept FOLDER RUNS``, as often as it takes."""

import sys
import time
from pathlib import Path

from pydantic import BaseModel

import trainlab
from trainlab.sweeps import run_parameter_sweep

_STEPS, _SECONDS = 20, 0.05


class Steps(BaseModel):
    """The parameters of ``count``."""

    number: int


@trainlab.experiment
def count(params: Steps) -> float:
    """Count on from where a killed start has come to."""
    steps = trainlab.output_dir / "steps"
    done = len(steps.read_text().splitlines()) if steps.exists() else 0
    for step in range(done, _STEPS):
        time.sleep(_SECONDS)
        with steps.open("a") as file:
            file.write(f"{step}\n")
    return float(params.number)


if __name__ == "__main__":
    folder, runs = Path(sys.argv[1]), int(sys.argv[2])
    numbers = [{"number": number} for number in range(runs)]
    run_parameter_sweep(count, numbers, 2, name="soak", output_dir=folder)
