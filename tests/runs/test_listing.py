import fcntl
import json
import math
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pytest

import trainlab
from tests.runs.made_runs import ROOT, change_record, crash, make_run
from tests.storage.s3 import faulty_s3_store, s3_files
from trainlab.errors import RunFolderError, StorageError
from trainlab.recording.jsonl import JsonlBackend
from trainlab.recording.record import Record
from trainlab.runs import RunFolder
from trainlab.runs.listing import RunInfo, find_runs, is_held, read_run, run_folders
from trainlab.storage import connection, retry


def by_path(runs: list[RunInfo], above: Path) -> dict[str, RunInfo]:
    return {os.path.relpath(run.path, above): run for run in runs}


def read(folder: Path) -> RunInfo:
    run = read_run(folder)
    assert run is not None
    return run


def validate(folder: Path, *losses: float) -> None:
    """Write a series as a Trainer does."""
    series = JsonlBackend(folder / "metrics.jsonl")
    for batch, loss in enumerate(losses, 1):
        series.write(Record("validation", batch, 0, batch, 0.0, {"loss": loss}))
        for step in range(300):
            series.write(Record("training", batch, 0, step, 0.0, {"loss": 9.0, "text": None}, {"lr": 0.1}))
    series.close()


def test_runs_are_found_at_any_depth_and_inside_of_runs(tmp_path: Path) -> None:
    """Runs of scripts, groups, sweeps and those begun inside of others are all listed, and nothing else is."""
    places = ["digits/a", "group/sub/train/b", "sweep_1/0", "search_x/trial-3", "c", "c/runs/inner/d"]
    for place in places:
        make_run(tmp_path / place)
    for other in ("c/checkpoints/e", ".hidden/f", "c/runs/inner/d/other/g"):
        make_run(tmp_path / other)
    (tmp_path / "link").symlink_to(tmp_path / "c")
    (tmp_path / "notes").mkdir()
    assert sorted(by_path(find_runs(tmp_path), tmp_path)) == sorted(places)
    assert sorted(run_folders(tmp_path)) == sorted(str(tmp_path / place) for place in places)
    assert sorted(by_path(find_runs(tmp_path / "c"), tmp_path)) == ["c", "c/runs/inner/d"]


def test_a_run_tells_its_parameters_metrics_and_times(tmp_path: Path) -> None:
    """What a run was begun with and what came of it can be read without its program."""
    params = {"lr": 0.1, "optimizer": {"name": "adam"}}
    run = read(make_run(tmp_path / "a", params=params, metrics={"loss": 0.5}, random_seed=7))
    assert (run.path, run.name, run.status) == (tmp_path / "a", "digits", "finished")
    assert (run.params, run.metrics, run.tags) == (params, {"loss": 0.5}, ())
    assert run.record["random_seed"] == 7
    assert run.started is not None and run.ended is not None and run.started <= run.ended
    assert run.duration is not None and 0 <= run.duration < 60


@pytest.mark.parametrize("status", ["finished", "failed", "interrupted", "preempted"])
def test_a_status_is_what_the_run_wrote(tmp_path: Path, status: str) -> None:
    """How a run ended is told as the run told it."""
    assert read(make_run(tmp_path / "a", status=status)).status == status


def test_a_crashed_run_is_told_from_a_running_one(tmp_path: Path) -> None:
    """A run is running as long as its process lives, and crashed once that is gone without a word."""
    crashed = read(crash(tmp_path / "crashed"))
    assert (crashed.status, crashed.ended, crashed.duration) == ("crashed", None, None)
    with RunFolder.open(name="a", run_dir=tmp_path / "mine"):
        assert read(tmp_path / "mine").status == "running"
    program = [sys.executable, "-m", "tests.runs.holder", str(tmp_path / "other")]
    with subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        running = read(tmp_path / "other")
        assert running.status == "running"
        assert running.duration is not None
        process.kill()
    assert read(tmp_path / "other").status == "crashed"


def test_a_run_of_another_machine_is_taken_at_its_word(tmp_path: Path) -> None:
    """A run on another host that says it runs is not called crashed for a lock that cannot be seen from here."""
    change_record(crash(tmp_path / "a"), host="elsewhere")
    assert read(tmp_path / "a").status == "running"


def test_to_look_at_a_run_changes_nothing(tmp_path: Path) -> None:
    """Listing makes no file and writes none."""
    crash(tmp_path / "a")
    make_run(tmp_path / "b")
    (tmp_path / "b" / "lock").unlink()
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")}
    find_runs(tmp_path)
    assert not is_held(tmp_path / "a")
    assert not is_held(tmp_path / "b")
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*")} == before


def test_a_run_starts_although_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever lists runs in the very instant in which one is begun does not keep it from beginning."""
    make_run(tmp_path / "a")
    looking = os.open(tmp_path / "a" / "lock", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)
    monkeypatch.setattr(time, "sleep", lambda _: os.close(looking))  # the instant is over
    with RunFolder.open(name="a", run_dir=tmp_path / "a"):
        assert is_held(tmp_path / "a")


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("run.json", "{", "run.json is no JSON"),
        ("run.json", "[]", "does not hold what a run's record holds"),
        ("run.json", '{"starts": [1]}', "does not hold what a run's record holds"),
        ("run.json", "{}", "run.json is no run's record of trainlab"),
        ("run.json", '{"tool": "other", "status": "done"}', "run.json is no run's record of trainlab"),
        ("run.json", '{"status": "finished"}', "run.json is no run's record of trainlab"),
        ("run.json", {"started": 1700000000}, "does not hold what a run's record holds as 'started'"),
        ("run.json", {"starts": [{"started": "2026-05-01", "ended": []}]}, "holds as 'ended'"),
        ("run.json", {"starts": [{"git": "a"}]}, "holds as 'git'"),
        ("run.json", {"git": True}, "holds as 'git'"),
        ("run.json", {"versions": 5}, "holds as 'versions'"),
        ("run.json", {"experiment": "train"}, "holds as 'experiment'"),
        ("run.json", {"experiment": {"file": 5}}, "holds as 'file'"),
        ("run.json", {"experiment": {"options": {"lr": 5}}}, "does not hold lists as options of its experiment"),
        ("run.json", {"params": json.loads('{"a":' * 800 + "1" + "}" * 800)}, "run.json is nested too deeply"),
        ("run.json", "[" * 100_000, "run.json is nested too deeply"),
        ("run.json", b"\xff\xfe\xfa", "run.json is no JSON"),
        ("tags.json", "{}", "tags.json is no list of texts"),
        ("tags.json", "best", "tags.json is no JSON"),
        ("tags.json", "[" * 100_000, "tags.json is no JSON"),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(
    tmp_path: Path, file: str, content: str | bytes | dict[str, Any], reason: str
) -> None:
    """A record that cannot be read is listed as damaged with the reason, and all others as they are."""
    make_run(tmp_path / "whole")
    make_run(tmp_path / "damaged")
    if isinstance(content, dict):
        content = json.dumps({"status": "finished", "started": "2026-05-01", **content})
    (tmp_path / "damaged" / file).write_bytes(content.encode() if isinstance(content, str) else content)
    runs = by_path(find_runs(tmp_path), tmp_path)
    assert runs["whole"].status == "finished"
    assert runs["damaged"].status == "damaged"
    assert str(tmp_path / "damaged") in runs["damaged"].reason and reason in runs["damaged"].reason


def test_a_record_that_is_a_folder_is_damaged(tmp_path: Path) -> None:
    """Whatever stands in the place of a record, the list comes to its end."""
    (tmp_path / "a" / "run.json").mkdir(parents=True)
    assert [run.status for run in find_runs(tmp_path)] == ["damaged"]


def test_a_running_run_shows_its_last_validation(tmp_path: Path) -> None:
    """Until a run has ended its metrics are those of its last validation, however long ago that was."""
    folder = crash(tmp_path / "a")
    assert read(folder).metrics == {}
    validate(folder, 3.0, 2.0)
    assert read(folder).metrics == {"loss": 2.0}
    change_record(folder, metrics={"loss": 7.0})
    assert read(folder).metrics == {"loss": 2.0}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "validation", "batch": 3, "metr')  # killed in the middle of a line
    assert read(folder).metrics == {"loss": 2.0}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('\n{"kind": "validation", "metrics": {"loss": "NaN", "up": "Infinity", "none": null}}\n')
        file.write('{"kind": "validation", "metrics": []}\n')
        file.write('{"kind": "validation", "metrics": ' + '{"a":' * 900 + "1" + "}" * 901 + "\n")
        file.write('{"kind": "validation", "metrics": ' + "[" * 100_000 + "\n")
    metrics = read(folder).metrics
    assert math.isnan(metrics["loss"])
    assert (metrics["up"], metrics["none"]) == (math.inf, None)
    change_record(folder, status="finished")
    assert read(folder).metrics == {"loss": 7.0}


def test_parameters_of_a_record_without_them_come_from_the_params_file(tmp_path: Path) -> None:
    """A run whose record has no parameters shows the hyperparameters of its params.yaml."""
    change_record(make_run(tmp_path / "a", params={"lr": 1e-5}), params=None)
    assert read(tmp_path / "a").params == {"lr": 1e-5}
    (tmp_path / "a" / "params.yaml").write_text("a: [")
    assert "params.yaml is no YAML" in read(tmp_path / "a").reason
    (tmp_path / "a" / "params.yaml").unlink()
    assert read(tmp_path / "a").params == {}


def test_a_run_without_hyperparameters_says_so_in_its_record(tmp_path: Path) -> None:
    """Of a run that was given none no other file has to be read to list it; one that goes on keeps those it had."""
    with trainlab.init(run_dir=tmp_path / "a", device="cpu"):
        pass
    (tmp_path / "a" / "params.yaml").write_text("a: [")
    assert (read(tmp_path / "a").status, read(tmp_path / "a").params) == ("finished", {})
    for hparams in ({"lr": 0.1}, None):
        with trainlab.init(run_dir=tmp_path / "b", hparams=hparams, device="cpu"):
            pass
    assert read(tmp_path / "b").params == read(tmp_path / "b").record["params"] == {"lr": 0.1}


def test_a_resumed_run_counts_the_time_that_is_known(tmp_path: Path) -> None:
    """A run begun yesterday and gone on with today has been trained for as long as its starts took."""
    folder = make_run(tmp_path / "a")
    starts = [
        {"started": "2026-05-01T12:00:00+00:00", "ended": "2026-05-01T12:00:30+00:00"},
        {"started": "2026-05-01T13:00:00+00:00", "status": "crashed"},
        {"started": "2026-05-02T12:00:00+00:00", "ended": "2026-05-02T12:00:12+00:00"},
    ]
    change_record(folder, starts=starts)
    run = read(folder)
    assert (run.started, run.ended) == (starts[0]["started"], starts[2]["ended"])
    assert run.duration == 42.0


def test_what_is_no_place_of_runs_is_told(tmp_path: Path) -> None:
    """A misspelt folder or URL is an error, a folder without a run is none, and no run is None."""
    with pytest.raises(RunFolderError, match="There is no such folder"):
        find_runs(tmp_path / "nothing")
    with pytest.raises(RunFolderError, match="There is nothing here"):
        find_runs(f"memory://{uuid.uuid4()}")
    assert find_runs(tmp_path) == []
    assert read_run(tmp_path) is None
    assert read_run(tmp_path / "nothing") is None
    assert read_run(f"memory://{uuid.uuid4()}") is None


def test_runs_at_a_url_are_read_as_those_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below a URL the same runs are found with the same content, also in folders with brackets in their names."""
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    url = f"memory://{uuid.uuid4()}"
    places = ["a", "group/b[1]*", "a/runs/inner/c"]
    for place in [*places, "a/checkpoints/d"]:
        with RunFolder.open(name="n", run_dir=f"{url}/{place}") as run:
            (run.path / "tags.json").write_text('["best"]')
            run.write_record(params={"lr": 0.1}, metrics={"loss": 1.0}, status="finished")
    found = {str(run.path): run for run in find_runs(url)}
    assert sorted(found) == sorted(f"{url}/{place}" for place in places) == sorted(run_folders(url))
    run_info = found[f"{url}/group/b[1]*"]
    assert (run_info.status, run_info.params, run_info.metrics) == ("finished", {"lr": 0.1}, {"loss": 1.0})
    assert run_info.tags == ("best",)
    assert read_run(f"{url}/a") == found[f"{url}/a"]


def test_a_series_at_a_url_is_read_from_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics of a run that trains on a store are those of its last validation there."""
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    url = f"memory://{uuid.uuid4()}"
    folder = RunFolder.open(name="n", run_dir=f"{url}/a")
    validate(folder.path, 3.0, 2.0)
    folder.close()
    (run,) = find_runs(url)
    assert (run.status, run.metrics) == ("running", {"loss": 2.0})


def test_many_runs_on_s3_take_few_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is asked once for each run's record and for one listing of all, and a record that fails is read again."""
    count = 25
    monkeypatch.setattr(retry, "PAUSES", (0.0,) * len(retry.PAUSES))
    monkeypatch.setattr(connection, "S3FS_TRIES", 1)  # it pauses between them
    with faulty_s3_store() as (url, options, proxy):
        files = s3_files(f"http://{proxy.target}")
        record = json.dumps(json.loads((make_run(tmp_path / "a") / "run.json").read_text()))
        for number in range(count):
            files.pipe_file(f"{url}/runs/{number}/run.json", record.encode())
        proxy.requests.clear()
        runs = find_runs(f"{url}/runs", options)
        assert {run.status for run in runs} == {"finished"}
        assert len(runs) == count
        assert len(proxy.requests) <= count + 5
        proxy.fail("denied", times=1, method="GET", having="/7/run.json")
        assert {run.status for run in find_runs(f"{url}/runs", options)} == {"finished"}
        proxy.fail("denied", times=99, method="GET", having="/7/run.json")
        damaged = [run for run in find_runs(f"{url}/runs", options) if run.status == "damaged"]
        assert [str(run.path) for run in damaged] == [f"{url}/runs/7"]
        assert "Forbidden" in damaged[0].reason or "denied" in damaged[0].reason.lower()
    with pytest.raises(StorageError):
        find_runs(f"{url}/runs", options)
