"""Secrets of a run: in no file of it, nor in those of the runs around it."""

import json
import logging
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

import trainlab
from tests.experiments.programs import program, run_of
from tests.experiments.running_programs import only_run
from tests.experiments.test_children import HEAD, TAIL
from tests.experiments.trained_programs import fitted
from trainlab.checkpoint import Checkpoint

# Not in the code, which changes.patch may hold.
SECRET = uuid.uuid4().hex


def leaking(folder: Path, *secrets: str) -> list[str]:
    """The files below a folder that hold one of some texts."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert files
    return [str(path) for path in files if any(secret.encode() in path.read_bytes() for secret in secrets)]


NESTS = f"""{HEAD}
import logging
logger = logging.getLogger("mine")

@trainlab.parameter("api_token", default="")
@trainlab.experiment
def innermost(params):
    raise ValueError("innermost with " + params["api_token"])

@trainlab.parameter("api_token", default="")
@trainlab.experiment
def inner(params):
    trainlab.run_experiment(innermost, {{"api_token": "open-sesame-3"}})

@trainlab.parameter("api_token", default="")
@trainlab.experiment
def train(params):
    if trainlab.is_subprocess():
        raise ValueError("helper with " + params["api_token"])
    process = trainlab.launch_subprocess(api_token="open-sesame-1")
    while process.is_alive():
        time.sleep(0.01)
    logger.warning("the helper has open-sesame-1")
    trainlab.run_experiment(inner, {{"api_token": "open-sesame-2"}})
{TAIL}"""


def test_secrets_of_other_runs_and_helpers_stay_out(tmp_path: Path) -> None:
    """A secret given to a nested run, or to a helper, is in no record and no log, theirs or their starter's."""
    with program(tmp_path, NESTS, "--api-token", "open-sesame-0") as started:
        assert started.wait() == 1, started.said()
    assert not leaking(tmp_path / "runs", "open-sesame")
    log = (run_of(tmp_path) / "log.txt").read_text()
    assert "helper with ***" in log and "the helper has ***" in log and "innermost with ***" in log
    assert "innermost with ***" in json.loads((run_of(tmp_path) / "run.json").read_text())["error"]


RANKS = f"""{HEAD}
import logging, tempfile
from trainlab.distributed import get_rank

def content(path):
    try:
        return path.read_bytes()
    except OSError:  # a folder, or it has gone since it was listed
        return b""

@trainlab.parameter("api_token", default="")
@trainlab.experiment
def train(params):
    if get_rank() == 1:
        files = [Path(folder, name) for folder, _, names in os.walk(tempfile.gettempdir()) for name in names]
        tell("left", [path.name for path in files if params["api_token"].encode() in content(path)])
        logging.getLogger("mine").warning("rank 1 has %s", params["api_token"])
        raise ValueError("refused: " + params["api_token"])
    trainlab.distributed.distributed_barrier()
{TAIL}"""


@pytest.mark.slow
def test_secrets_of_ranks_stay_out(tmp_path: Path) -> None:
    """What a rank logs and fails by has no secret in any log, and none lies in a temporary file once it has begun."""
    (tmp_path / "tmp").mkdir()
    options = ("--distributed", "--nproc-per-node", "2", "--no-cuda", "--api-token", "open-sesame-4711")
    with program(tmp_path, RANKS, *options, TMPDIR=str(tmp_path / "tmp")) as started:
        assert started.wait() == 1, started.said()
        assert json.loads(started.wait_for("left")) == []
    assert not leaking(tmp_path / "runs", "open-sesame")
    log = (run_of(tmp_path) / "log.rank-1.txt").read_text()
    assert log.count("rank 1 has ***") == 2 and "ValueError: refused: ***" in log
    assert "Rank 1 of 2 failed in the main function: ValueError: refused: ***" in started.said()


def test_trainings_of_a_run_have_no_secrets_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No file of a run that trains has a secret, nor what is said of it: its checkpoints, further trainings, logs."""
    command = [sys.executable, "train.py", "--api-token", SECRET, "-t", SECRET]
    monkeypatch.setattr(sys, "argv", command[1:])
    monkeypatch.setattr(sys, "orig_argv", command)

    @trainlab.parameter("api_token")
    @trainlab.experiment(name="train")
    def train(params: dict[str, Any]) -> list[Any]:
        token = params["api_token"]
        hparams = {"lr": 0.1, "api_token": token, "notes": (1, f"with {token}"), "db": {"password": token}}
        with trainlab.init(hparams=hparams) as first:
            fitted(first)
            assert first.get_hparams() == hparams
            checkpoint = first.latest_checkpoint
        with trainlab.init(progress=False, hparams={"lr": 0.1}, run_dir=tmp_path / "exact") as second:
            logging.getLogger("trainlab.test").info("it is %s", token)
            fitted(second)
        with trainlab.init(progress=False) as third:
            return [checkpoint, third.run_dir]

    checkpoint, third = train.run({"output_dir": tmp_path / "runs", "api_token": SECRET})
    assert not leaking(tmp_path, SECRET)
    with Checkpoint.open(checkpoint) as read:
        assert read.hparams == {"lr": 0.1, "api_token": "***", "notes": (1, "with ***"), "db": {"password": "***"}}
    shown = "".join(capsys.readouterr())
    assert "To go on from it:" in shown and SECRET not in shown
    assert "--api-token '***'" in (only_run(tmp_path / "runs", "train") / "log.txt").read_text()
    assert Path(third).parent.name == "train"  # as the experiment, whatever the program is called


def test_a_masked_hyperparameter_is_no_other_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain script with a secret among its hyperparameters is resumed without a word about them."""
    for batches in (2, 4):
        with trainlab.init(
            progress=False, run_dir=tmp_path / "one", hparams={"lr": 0.1, "api_token": SECRET}
        ) as context:
            assert fitted(context, batches).progress.batches_trained == batches
        monkeypatch.setenv("TRAINLAB_RESUME", "1")
    assert not leaking(tmp_path / "one", SECRET)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


DEBUGGED = f"""{HEAD}
@trainlab.parameter("api_token", default="")
@trainlab.experiment
def train(params):
    raise ValueError("refused: " + params["api_token"])
{TAIL}"""


def test_a_debugged_error_is_shown_once_without_secrets(tmp_path: Path) -> None:
    """With --debug the masked traceback is all that is shown: Python's own, with the secret in clear, is not."""
    with program(tmp_path, DEBUGGED, "--debug", "--api-token", "open-sesame") as started:
        assert started.wait() == 1
    assert "refused: ***" in started.said() and "open-sesame" not in started.said()
