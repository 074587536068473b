"""Runs whose checkpoints, or whose whole folder, are on a store: memory:// and a real S3 server."""

import json
import logging
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import trainlab
from tests.storage.s3 import FaultyProxy, faulty_s3_store, s3_files, s3_store
from tests.training.trials import LineTrial, weights
from trainlab import Batch
from trainlab.checkpoint import Checkpoint
from trainlab.errors import CheckpointError, InvalidStateError
from trainlab.storage import connection, retry


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the local cache, empty."""
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, dict[str, Any], FaultyProxy]]:
    """A bucket behind a proxy that can be told to fail; nothing pauses before it tries again."""
    monkeypatch.setattr(retry, "PAUSES", (0.0,) * len(retry.PAUSES))
    monkeypatch.setattr(connection, "S3FS_TRIES", 1)
    with faulty_s3_store() as parts:
        yield parts


@pytest.fixture(params=["memory", "s3"])
def place(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[str, Any]]]:
    """The URL of an empty place, and its storage_options."""
    if request.param == "memory":
        yield f"memory://{uuid.uuid4().hex}", {}
    else:
        with s3_store() as (url, options):
            yield f"{url}/runs/a", options


def train(context: trainlab.TrialContext, batches: int, **arguments: Any) -> tuple[LineTrial, trainlab.FitResult]:
    """Train a run on to so many batches, with a checkpoint every four, and close it."""
    trial = LineTrial(context)
    options = {"checkpoint_period": Batch(4), "latest_checkpoint": context.latest_checkpoint, **arguments}
    try:
        result = trainlab.Trainer(trial, context).fit(max_length=Batch(batches), **options)
    finally:
        context.close()
    return trial, result


def test_checkpoints_on_a_store(open_run: Any, place: tuple[str, dict[str, Any]], cache: Path) -> None:
    """With checkpoint_storage a run of any machine goes on from the store, to the same bits; nothing stays local."""
    url, options = place
    whole, _ = train(open_run(run_dir="whole"), 22)
    train(open_run(run_dir="first", checkpoint_storage=url, storage_options=options), 14)
    shutil.rmtree("first")
    shutil.rmtree(cache, ignore_errors=True)
    context = open_run(run_dir="second", checkpoint_storage=url, storage_options=options)
    assert context.latest_checkpoint == f"{url}/batch-0000014"
    trial, result = train(context, 22)
    assert [batch for _, batch in trial.seen] == list(range(14, 22))
    assert weights(trial) == weights(whole)
    assert result.last_checkpoint == f"{url}/batch-0000022"
    assert not Path("second/checkpoints").exists()


def test_a_run_remembers_where_its_checkpoints_are(open_run: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A run that is continued without checkpoint_storage goes on from where they are; another place is told of."""
    train(open_run(run_dir="here", checkpoint_storage="there"), 5)
    trial, _ = train(open_run(run_dir="here"), 8)
    assert [batch for _, batch in trial.seen] == [5, 6, 7]
    assert sorted(path.name for path in Path("there").iterdir() if path.is_dir()) == ["batch-0000005", "batch-0000008"]
    assert "had its checkpoints" not in caplog.text
    open_run(run_dir="here", checkpoint_storage="elsewhere")
    assert "had its checkpoints in" in caplog.text and "elsewhere" in caplog.text


@pytest.mark.slow
def test_a_whole_run_on_a_store(open_run: Any, place: tuple[str, dict[str, Any]], cache: Path) -> None:
    """With a URL as run_dir all is on the store: from another machine the run goes on, each step recorded once."""
    url, options = place
    whole, _ = train(open_run(run_dir="whole"), 22, reporting_period=Batch(3))
    train(open_run(run_dir=url, storage_options=options), 14, reporting_period=Batch(3))
    shutil.rmtree(cache, ignore_errors=True)
    context = open_run(run_dir=url, storage_options=options)
    trial, _ = train(context, 22, reporting_period=Batch(3))
    assert weights(trial) == weights(whole)

    def steps(folder: Path) -> list[tuple[str, int]]:
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return sorted((record["kind"], record["batch"]) for record in records)

    # In between it was stopped at batch 14.
    assert steps(context.run_dir) == sorted({*steps(Path("whole")), ("training", 14), ("validation", 14)})
    assert len(list((context.run_dir / "tensorboard").iterdir())) >= 1


def test_weights_are_read_by_url(open_run: Any, place: tuple[str, dict[str, Any]]) -> None:
    """evaluate, load_trial_from_checkpoint_path, load_weights and Checkpoint.open take the URL of a checkpoint."""
    url, options = place
    trained, _ = train(open_run(run_dir="first", checkpoint_storage=url, storage_options=options), 5)
    path = f"{url}/batch-0000005"
    context = open_run(run_dir="second", checkpoint_storage=url, storage_options=options)
    fresh = LineTrial(context)
    before = weights(fresh)
    scores = trainlab.Trainer(fresh, context).evaluate(latest_checkpoint=path)
    assert weights(fresh) == before
    loaded: Any = trainlab.load_trial_from_checkpoint_path(path, LineTrial, storage_options=options)
    assert weights(loaded) == weights(trained)
    trainlab.load_weights(fresh.model, path, storage_options=options)
    assert weights(fresh) == weights(trained)
    assert trainlab.Trainer(fresh, context).evaluate() == scores
    with Checkpoint.open(path, storage_options=options) as checkpoint:
        assert checkpoint.progress["batches_trained"] == 5


@pytest.mark.slow
def test_a_checkpoint_of_a_store_starts_a_new_local_run(open_run: Any, place: tuple[str, dict[str, Any]]) -> None:
    """A local run goes on from a checkpoint that is given by URL; a run with checkpoints of its own refuses it."""
    url, options = place
    train(open_run(run_dir="first", checkpoint_storage=url, storage_options=options), 5)
    own = f"memory://{uuid.uuid4().hex}"
    context = open_run(
        run_dir="new", checkpoint_storage=own if url.startswith("memory") else url + "/x", storage_options=options
    )
    trial, _ = train(context, 8, latest_checkpoint=f"{url}/batch-0000005")
    assert [batch for _, batch in trial.seen] == [5, 6, 7]
    again = open_run(
        run_dir="new", checkpoint_storage=own if url.startswith("memory") else url + "/x", storage_options=options
    )
    with pytest.raises(InvalidStateError, match="of another run"):
        train(again, 9, latest_checkpoint=f"{url}/batch-0000005")


@pytest.mark.slow
def test_a_damaged_checkpoint_on_a_store_is_passed_over(
    open_run: Any, caplog: pytest.LogCaptureFixture, cache: Path
) -> None:
    """latest_checkpoint names the damaged object of the newest checkpoint and the checkpoint used instead."""
    with s3_store() as (url, options):
        train(open_run(run_dir="first", checkpoint_storage=url, storage_options=options), 9)
        files, name = s3_files(options["endpoint_url"]), f"{url}/batch-0000009/model.safetensors"
        content = bytearray(files.cat_file(name))
        content[-1] ^= 1
        files.pipe_file(name, bytes(content))
        shutil.rmtree(cache, ignore_errors=True)
        context = open_run(run_dir="second", checkpoint_storage=url, storage_options=options)
        assert context.latest_checkpoint == f"{url}/batch-0000008"
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 1 and "model.safetensors" in told[0] and "batch-0000008" in told[0]


def test_a_store_that_refuses_does_not_end_training(
    open_run: Any, faulty: tuple[str, dict[str, Any], FaultyProxy], caplog: pytest.LogCaptureFixture
) -> None:
    """A store that refuses a periodic checkpoint is a loud error; the next one is written, and nothing half is left."""
    url, options, proxy = faulty

    class Refused(LineTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
            if batch_idx in (4, 8):
                write = trainer._checkpointing._writer._in_flight
                if write is not None:
                    write.wait()
                if batch_idx == 4:
                    proxy.fail("denied", times=1, method="PUT", having="state")
            return super().train_batch(batch, epoch_idx, batch_idx)

    context = open_run(run_dir="here", checkpoint_storage=url, storage_options=options)
    trainer = trainlab.Trainer(Refused(context), context)
    trainer.fit(max_length=Batch(12), checkpoint_period=Batch(4))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(told) == 1 and "batch 8" in told[0] and "batch-0000004" in told[0]
    folders = {key.split("/")[1] for key in s3_files(f"http://{proxy.target}").find(url)}
    assert folders == {"batch-0000004", "batch-0000012"}


def test_a_store_that_refuses_the_last_one_is_an_error(
    open_run: Any, faulty: tuple[str, dict[str, Any], FaultyProxy]
) -> None:
    """If the store refuses the last checkpoint, fit raises an error that names it, and the one before is whole."""
    url, options, proxy = faulty

    class Refused(LineTrial):
        def train_batch(self, batch: Any, epoch_idx: int, batch_idx: int) -> dict[str, Any]:
            if batch_idx == 5:
                write = trainer._checkpointing._writer._in_flight
                assert write is not None
                write.wait()
                proxy.fail("denied", times=100, method="PUT")
            return super().train_batch(batch, epoch_idx, batch_idx)

    context = open_run(run_dir="here", checkpoint_storage=url, storage_options=options)
    trainer = trainlab.Trainer(Refused(context), context)
    with pytest.raises(CheckpointError, match="batch-0000006"):
        trainer.fit(max_length=Batch(6), checkpoint_period=Batch(4))
    assert context.latest_checkpoint == f"{url}/batch-0000004"


def test_a_hook_sees_files_of_a_checkpoint_on_a_store(open_run: Any, place: tuple[str, dict[str, Any]]) -> None:
    """on_checkpoint_write_end gets a local folder, and what it adds is in the checkpoint on the store."""
    url, options = place

    class Adding(trainlab.Callback):
        def on_checkpoint_write_end(self, checkpoint_dir: Path) -> None:
            assert (checkpoint_dir / "model.safetensors").is_file()
            (checkpoint_dir / "words.txt").write_text("one two")

    context = open_run(run_dir="here", checkpoint_storage=url, storage_options=options)
    trial = LineTrial(context)
    trial.callbacks = {"adding": Adding()}
    trainlab.Trainer(trial, context).fit(max_length=Batch(3))
    with Checkpoint.open(f"{url}/batch-0000003", storage_options=options) as checkpoint:
        assert checkpoint.files["words.txt"].size == 7
