"""A training run that only records: `python training_program.py FOLDER KILLED_AT LENGTH`; killed by itself with -9.

It goes on from the checkpoint of the process before, if there is one; a checkpoint comes every fifth batch.
"""

import json
import os
import signal
import sys
from pathlib import Path

from tests.recording.reports import report
from trainlab.recording import JsonlBackend, Series, TensorBoardBackend

folder, killed_at, length = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
checkpoint = folder / "checkpoint.json"
tensorboard = TensorBoardBackend(folder / "tensorboard")
series = Series(folder, [JsonlBackend(folder / "metrics.jsonl"), tensorboard])
tensorboard.writer.add_text("built", "by a Trial", 0)
saved = json.loads(checkpoint.read_text()) if checkpoint.exists() else None
series.restore(saved and saved["recording"])
for batch in range(saved["batch"] + 1 if saved else 1, length + 1):
    series.record(report(batch))
    tensorboard.writer.add_scalar("mine", batch, batch)
    if batch % 5 == 0:
        checkpoint.write_text(json.dumps({"batch": batch, "recording": series.state_dict()}))
    if batch == killed_at:
        series.flush()
        os.kill(os.getpid(), signal.SIGKILL)
series.close()
