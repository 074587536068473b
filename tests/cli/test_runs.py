import csv
import io
import json
import os
import pty
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import trainlab
from tests.runs.made_runs import ROOT, change_record, make_run
from trainlab.cli import main
from trainlab.cli.runs_table import write_runs
from trainlab.recording.jsonl import JsonlBackend
from trainlab.recording.record import Record
from trainlab.runs import RunFolder
from trainlab.runs.listing import find_runs, is_held, read_run
from trainlab.storage import open_store


class Answers:
    """Runs `trainlab runs` here, and gives what it says."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path, status: int = 0) -> str:
        assert main(["runs", *map(str, arguments)]) == status
        output, errors = self._capsys.readouterr()
        assert bool(errors) == (status == 2), errors
        return errors or output

    def of_json(self, *arguments: str | Path) -> Any:
        return json.loads(self(*arguments, "--json"))

    def names(self, *arguments: str | Path) -> list[str]:
        """Which runs are listed, in their order."""
        return [Path(run["path"]).name for run in self.of_json("list", *arguments)]


@pytest.fixture
def runs(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Answers:
    """The command, in a folder with runs of its own: a to c finished with growing lr, d failed, e crashed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    for day, (name, lr, accuracy) in enumerate([("a", 1e-4, 0.95), ("b", 1e-3, 0.85), ("c", 1e-2, 0.99)], 1):
        folder = make_run(
            tmp_path / "runs" / "digits" / name, params={"lr": lr, "same": 1}, metrics={"accuracy": accuracy}
        )
        _begun(folder, f"2026-05-0{day}T12:00:00+00:00")
    folder = make_run(tmp_path / "runs" / "other" / "d", params={"lr": 0.1}, status="failed", error="ValueError: no")
    _begun(folder, "2026-05-04T12:00:00+00:00")
    RunFolder.open(name="e", run_dir=tmp_path / "runs" / "e").close()  # without a word of how it ended
    return Answers(capsys)


def _begun(folder: Path, started: str) -> None:
    change_record(folder, starts=[{"started": started, "ended": started, "status": "finished", "pid": 1, "host": "h"}])


def write_series(folder: Path, *losses: float) -> None:
    series = JsonlBackend(folder / "metrics.jsonl")
    for batch, loss in enumerate(losses, 1):
        series.write(Record("training", batch, 0, batch, 0.0, {"loss": loss}, {"lr": 0.1}))
    series.write(Record("validation", len(losses), 1, len(losses), 0.0, {"accuracy": 0.5}))
    series.close()


def test_list_shows_the_newest_first_with_what_differs(runs: Answers) -> None:
    """A person sees each run's path, status, time, metrics, and parameters in which runs differ or that some lack."""
    lines = runs("list").splitlines()
    assert lines[0].split() == ["RUN", "STATUS", "STARTED", "DURATION", "ACCURACY", "LR", "SAME"]
    assert [line.split()[0] for line in lines[1:]] == ["e", "other/d", "digits/c", "digits/b", "digits/a"]
    assert lines[5].split()[1:] == ["finished", *lines[5].split()[2:4], "0", "s", "0.95", "0.0001", "1"]
    assert lines[1].split()[1] == "crashed"
    assert runs("list", "runs/digits/a").splitlines()[1].split()[1] == "finished"


def test_filters_choose_runs(runs: Answers) -> None:
    """What --where, --status and --tag say holds for every run that is listed, and for no other."""
    assert runs.names("--where", "params.lr < 1e-2 and metrics.accuracy > .9") == ["a"]
    assert runs.names("--where", "status == 'failed' or error == 'ValueError: no'") == ["d"]
    assert runs.names("--where", "started < '2026-05-02 13:00Z'") == ["b", "a"]
    assert runs.names("--status", "failed", "--status", "crashed") == ["e", "d"]
    runs("tag", "digits/a", "digits/b", "+best")
    assert runs.names("--tag", "best") == ["b", "a"]
    assert runs.names("--tag", "best", "--where", "params.lr > 5e-4") == ["b"]
    assert runs("list", "--where", "params.lr > 5") == "None of 5 runs is meant.\n"


def test_runs_are_sorted_and_limited(runs: Answers) -> None:
    """The best come first if they are to, and those without the value last, either way."""
    assert runs.names("--sort", "metrics.accuracy") == ["b", "a", "c", *runs.names("--sort", "metrics.accuracy")[3:]]
    assert runs.names("--sort", "metrics.accuracy", "--reverse", "--limit", "2") == ["c", "a"]
    assert runs.names("--reverse", "--limit", "1") == ["a"]
    assert runs.names("--sort", "status")[0] == "e"


def test_the_newest_is_the_latest_in_every_time_zone(runs: Answers) -> None:
    """Runs are in the order of the moments at which they began or ended, whatever time zones those are written in."""
    for name, started in (("a", "2026-11-21T23:30:00+00:00"), ("b", "2026-11-22T01:00:00+02:00")):
        _begun(Path("runs/digits") / name, started)  # a's text is the smaller one
    assert runs.names("runs/digits") == ["a", "b", "c"]
    for key in ("started", "ended"):
        assert runs.names("runs/digits", "--sort", key) == ["c", "b", "a"]
        assert runs.names("runs/digits", "--sort", key, "--reverse") == ["a", "b", "c"]
    _begun(Path("runs/digits/c"), "yesterday")
    assert runs.names("runs/digits", "--sort", "started")[-1] == "c"


def test_a_place_may_be_written_in_any_way(runs: Answers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder as a URL, or below a home, is the same folder: paths are shown from there on, and names are found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("runs/digits", f"file://{tmp_path}/runs/digits", "~/runs/digits", f"{tmp_path}/runs/digits/"):
        assert runs("list", place, "--limit", "1").splitlines()[1].split()[0] == "c"
        assert runs("show", "c", "--root", place).startswith(f"{tmp_path}/runs/digits/c\n")


def test_csv_is_safe_to_open(runs: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """No text of a run becomes a formula of a spreadsheet or reaches a terminal raw; lists are JSON, numbers as is."""
    params = {"formula": '=cmd|"/c calc"!A1', "at": "@a", "number": "-1e3", "lr": -0.5, "list": [1, {"x": None}]}
    change_record(Path("runs/digits/a"), params={**params, "red": "\x1b[31m\u202e", "break": "a\nb"})
    ((row),) = csv.DictReader(io.StringIO(runs("list", "runs/digits/a", "--csv")))
    told = {name.removeprefix("params."): text for name, text in row.items() if name.startswith("params.")}
    assert told == {
        **{"formula": '\'=cmd|"/c calc"!A1', "at": "'@a", "number": "-1e3", "lr": "-0.5", "list": '[1, {"x": null}]'},
        **{"red": "\x1b[31m\u202e", "break": "a\nb"},
    }
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    seen = runs("list", "runs/digits/a", "--csv")
    assert "\\x1b[31m\\u202e" in seen and "\x1b" not in seen
    rows = list(csv.reader(io.StringIO(runs("compare", "digits/a", "digits/b", "--csv"))))
    assert ["params.at", "'@a", ""] in rows


def test_numbers_are_told_as_in_the_record(runs: Answers) -> None:
    """Programs read numbers that JSON lacks from `--json` as from run.json itself, huge ones too."""
    change_record(Path("runs/digits/a"), metrics={"loss": "NaN", "up": "Infinity"}, params={"big": 2**5000})
    (told,) = runs.of_json("list", "runs/digits/a")
    assert told["metrics"] == {"loss": "NaN", "up": "Infinity"}
    assert told["params"] == {"big": hex(2**5000)}


def test_programs_get_json_and_csv(runs: Answers) -> None:
    """Every value of the table can be read by a program, under the name that filters have for it."""
    (told,) = runs.of_json("list", "--where", "params.lr == 1e-4")
    assert told["params"] == {"lr": 1e-4, "same": 1}
    assert (told["metrics"], told["status"], told["tags"]) == ({"accuracy": 0.95}, "finished", [])
    assert runs.of_json("list", "--columns", "run,params.lr", "--limit", "2")[1]["params.lr"] == 0.1
    rows = list(csv.DictReader(io.StringIO(runs("list", "--csv", "--sort", "params.lr"))))
    assert [row["params.lr"] for row in rows] == ["0.0001", "0.001", "0.01", "0.1", ""]
    assert [row["metrics.accuracy"] for row in rows] == ["0.95", "0.85", "0.99", "", ""]
    assert {row["status"] for row in rows} == {"finished", "failed", "crashed"}
    assert runs("list", "--csv", "--columns", "run,tags", "--limit", "1").splitlines()[0] == "run,tags"


def test_a_table_fits_its_terminal(runs: Answers, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On a screen no line is broken: columns that do not fit are named instead."""
    write_runs(find_runs("runs"), "runs", None, 60)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines[:6])) <= 60
    assert lines[6].startswith("Not shown, for want of room: params.lr, params.same.")
    write_runs(find_runs("runs"), "runs", ["run", "params.lr"], 12)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 12


def test_a_damaged_run_is_listed_with_its_reason(runs: Answers) -> None:
    """One record that is broken is told below the table, and the others are as they are."""
    Path("runs/other/d/run.json").write_text("{")
    text = runs("list")
    assert "damaged: " in text and "other/d: run.json is no JSON" in text
    assert text.count("finished") == 3
    assert runs.names("--status", "damaged") == ["d"]
    assert "Repair the file." in runs("show", "other/d", status=2)
    runs("rm", "other/d", "--yes")
    assert not Path("runs/other/d").exists()


def test_an_empty_place_is_told(runs: Answers, tmp_path: Path) -> None:
    """Where nothing was run a person reads so; a place that is not there is an error."""
    (tmp_path / "empty").mkdir()
    assert runs("list", "empty") == "There are no runs in empty.\n"
    assert "There is no such folder" in runs("list", "nothing", status=2)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["list", "--where", "metrik.a < 1"], "Did you mean metrics?"),
        (["list", "--sort", "metrik.a"], "Did you mean metrics?"),
        (["list", "--columns", "run,statsu"], "Did you mean status?"),
        (["rm", "--where", "statsu == 'failed'", "--yes"], "Did you mean status?"),
        (
            ["list", "--columns", "foo"],
            "no run has 'foo'. A parameter is params.foo, a metric metrics.foo. There are: params",
        ),
        (["list", "--sort", "metrics.acuracy"], "None of 5 runs has 'metrics.acuracy'. Did you mean metrics.accuracy?"),
        (["list", "--sort", "lr"], "A parameter is params.lr, a metric metrics.lr."),
        (["show", "otter/d"], "Did you mean other/d?"),
        (["show", "digit/c"], "Did you mean digits/c?"),
        (["list", "--sort", "params.momentum"], "There are: params.lr, params.same."),
        (["tag", "digits/a", "ünï"], "If it is meant as a tag: +ünï gives it, -ünï takes it away."),
        (["tag", "digits/a", "+two words"], "A tag is one word"),
        (["tag", "digits/a", "+"], "A tag is one word"),
    ],
)
def test_a_wrong_name_is_one_line(runs: Answers, arguments: list[str], told: str) -> None:
    """Names that no run has end the command with what was meant, before anything is done."""
    text = runs(*arguments, status=2)
    assert told in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["lst"], "Did you mean list?"),
        ([], "COMMAND"),
        (["list", "--limit", "0"], "not a number of at least 1"),
        (["list", "--columns", ","], "no name in it"),
        (["list", "--json", "--csv"], "not allowed with"),
        (["compare", "a"], "two runs or more"),
        (["compare", "a", "b", "--csv", "--metric", "train/loss"], "pass --json"),
        (["rm", "--yes"], "name the runs, or tell them by --where"),
        (["rm", "a", "--where", "status == 'a'", "--yes"], "name the runs, or tell them by --where"),
        (["rm", "a"], "no terminal to ask at"),
    ],
)
def test_a_wrong_command_line_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be meant is an error of the command line, with status 2."""
    with pytest.raises(SystemExit) as raised:
        main(["runs", *arguments])
    assert raised.value.code == 2
    assert told in capsys.readouterr().err


def test_a_run_is_meant_by_any_clear_part_of_its_name(runs: Answers) -> None:
    """A path, its end or a part that only one run has means that run; an unclear one lists those it may be."""
    for name in ("runs/digits/a", str(Path("runs/digits/a").resolve()), "digits/a", "igits/a", "a"):
        assert runs("show", name).startswith(f"{Path('runs/digits/a').resolve()}\n")
    assert runs("show", "a", "--root", "runs/digits").startswith(f"{Path('runs/digits/a').resolve()}\n")
    text = runs("show", "digits/", status=2)
    assert "Several runs are meant" in text
    assert [Path(line.strip()).name for line in text.splitlines()[1:]] == ["a", "b", "c"]
    assert "There is no such run" in runs("show", "runs", status=2)
    assert "`trainlab runs list nowhere`" in runs("show", "x", "--root", "nowhere", status=2)


def test_show_tells_all_of_a_run(runs: Answers, tmp_path: Path) -> None:
    """Status, command, commit, parameters with their origins, metrics, starts, checkpoints and files are told."""
    folder = tmp_path / "runs" / "digits" / "a"
    (folder / "checkpoints" / "batch-0000005").mkdir(parents=True)
    (folder / "checkpoints" / "batch-0000005" / "model.safetensors").write_bytes(b"x" * 1500)
    (folder / "changes.patch").write_text("diff")
    change_record(
        folder,
        argv=["train.py", "--name", "two words"],
        origins={"lr": "command line"},
        git={"commit": "abc123", "dirty": True},
        stop_reason="max_length",
        params={"lr": 0.1, "optimizer": {"name": "adam"}},
    )
    runs("tag", "digits/a", "+best")
    text = runs("show", "digits/a")
    begun = datetime.fromisoformat("2026-05-01T12:00:00+00:00").astimezone()
    for told in (
        *("finished (max_length)", "train.py --name 'two words'", "abc123, with changes", "best", "accuracy  0.95"),
        *("lr              0.1   command line", "optimizer.name  adam", "process 1 on h", "batch-0000005  1.5 kB"),
        *("changes.patch", "checkpoints/", f"is in {folder}/changes.patch", f"{begun:%Y-%m-%d %H:%M:%S}"),
    ):
        assert told in text
    told = runs.of_json("show", "digits/a")
    assert told["record"]["git"] == {"commit": "abc123", "dirty": True}
    assert told["checkpoints"] == {"batch-0000005": 1500}
    assert told["files"]["changes.patch"] == 4


def test_show_tells_checkpoints_that_are_elsewhere(runs: Answers, tmp_path: Path) -> None:
    """The checkpoints of a run are listed wherever it keeps them."""
    (tmp_path / "store" / "batch-0000001").mkdir(parents=True)
    change_record(tmp_path / "runs" / "digits" / "a", checkpoint_storage=str(tmp_path / "store"))
    assert f"checkpoints in {tmp_path / 'store'}\n  batch-0000001  0 B" in runs("show", "digits/a")


def test_compare_shows_only_what_differs(runs: Answers, tmp_path: Path) -> None:
    """Of parameters, metrics, versions, packages and commits those are listed that are not the same in all runs."""
    for name, torch in (("a", "2.6"), ("b", "2.6"), ("c", "2.7")):
        folder = tmp_path / "runs" / "digits" / name
        change_record(folder, versions={"torch": torch, "python": "3.11"}, git={"commit": torch, "dirty": False})
        (folder / "packages.txt").write_text(f"numpy==1.{torch}\nscipy==1.0\ntorch=={torch}\n")
    told = runs.of_json("compare", "digits/a", "digits/b")["differences"]
    assert told == {"params.lr": [1e-4, 1e-3], "metrics.accuracy": [0.95, 0.85]}
    lines = runs("compare", "digits/a", "digits/c").splitlines()
    assert lines[0].split() == ["a", "c"]
    assert [line.split()[0] for line in lines[1:]] == [
        *("params.lr", "metrics.accuracy", "git.commit", "versions.torch", "packages.numpy")
    ]
    assert lines[1].split() == ["params.lr", "0.0001", "0.01"]
    assert runs("compare", "digits/a", "digits/a") == "These runs do not differ in what is compared.\n"
    rows = list(csv.reader(io.StringIO(runs("compare", "digits/a", "digits/b", "digits/c", "--csv"))))
    assert rows[1] == ["params.lr", "0.0001", "0.001", "0.01"]


def test_compare_draws_how_metrics_went(runs: Answers, tmp_path: Path) -> None:
    """A falling and a rising loss are told from each other on the terminal, as data, and in a picture."""
    write_series(tmp_path / "runs" / "digits" / "a", 3.0, 2.0, 1.0)
    write_series(tmp_path / "runs" / "digits" / "b", *range(100))
    text = runs("compare", "digits/a", "digits/b", "--metric", "train/loss")
    assert "\ntrain/loss\n  a  █▅▁" in text
    assert "3 … 1 at batch 3" in text and "0 … 99 at batch 100" in text
    rising = text.splitlines()[-1].split()[1]
    assert len(rising) == 40 and sorted(rising) == list(rising)
    series = runs.of_json("compare", "digits/a", "digits/b", "--metric", "train/loss")["series"]
    assert series[0] == {"train/loss": [[1, 3.0], [2, 2.0], [3, 1.0]]}
    told = runs("compare", "digits/a", "digits/b", "--metric", "loss", status=2)
    assert "Received: loss. They have: train/loss, validation/accuracy." in told
    runs("compare", "digits/a", "digits/b", "--plot", "out.png")
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")
    assert "Received: 'out.xyz'" in runs("compare", "digits/a", "digits/b", "--plot", "out.xyz", status=2)


def test_compare_leaves_out_what_it_cannot_read(runs: Answers) -> None:
    """A list of packages in another encoding and lines of a series that are none of ours do not end the comparison."""
    folder = Path("runs/digits/a")
    write_series(folder, 3.0, 2.0)
    (folder / "packages.txt").write_bytes(b"numpy==1.0\n\xff\xfe==2\n")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "validation", "batch": 1, "metrics": []}\n' + "[" * 100_000 + "\n")
    told = runs.of_json("compare", "digits/a", "digits/b", "--metric", "train/loss")
    assert told["series"][0] == {"train/loss": [[1, 3.0], [2, 2.0]]}
    assert told["differences"]["packages.numpy"] == ["1.0", None]


def test_runs_are_looked_for_once(runs: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that names many runs goes through the folder of all runs only once."""
    scan, looked = os.scandir, []
    monkeypatch.setattr(os, "scandir", lambda path: (looked.append(str(path)), scan(path))[1])
    runs("tag", "digits/a", "digits/b", "digits/c", "+best")
    assert looked.count(str(Path("runs/digits").resolve())) == 1


def test_tags_have_the_rights_that_new_files_have(runs: Answers) -> None:
    """Where a person's files are for the person alone, so are the tags."""
    before = os.umask(0o077)
    try:
        runs("tag", "digits/a", "+best")
    finally:
        os.umask(before)
    assert Path("runs/digits/a/tags.json").stat().st_mode & 0o777 == 0o600


def test_a_plot_without_matplotlib_says_what_to_install(runs: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the command names it."""
    write_series(Path("runs/digits/a"), 1.0)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    told = runs("compare", "digits/a", "digits/b", "--plot", "out.png", status=2)
    assert "pip install 'trainlab[plot]'" in told


def test_tags_are_given_and_taken(runs: Answers) -> None:
    """Tags are sorted, of several runs at once, survive the run's going on, and are kept beside its record."""
    record = Path("runs/digits/a/run.json").read_bytes()
    assert runs("tag", "digits/a").endswith("digits/a  no tags\n")
    assert runs("tag", "digits/a", "digits/b", "+old", "+best").count("best old\n") == 2
    assert runs("tag", "digits/a", "-old", "-none").endswith("digits/a  best\n")
    assert list(runs.of_json("tag", "digits/b").values()) == [["best", "old"]]
    assert Path("runs/digits/a/run.json").read_bytes() == record
    RunFolder.open(name="digits", run_dir="runs/digits/a").close()
    assert read_run("runs/digits/a").tags == ("best",)  # type: ignore[union-attr]  # it is there
    assert sorted(path.name for path in Path("runs/digits/a").iterdir()) == [
        "lock",
        "params.yaml",
        "run.json",
        "tags.json",
    ]


def test_a_run_that_records_can_be_tagged(runs: Answers) -> None:
    """A tag does not wait for the end of a run, whose recorder keeps others out of its folder."""
    recorder = trainlab.Recorder("runs/digits/a")
    recorder.scalar("loss", 1.0)
    tag = [sys.executable, "-m", "trainlab", "runs", "tag", "digits/a", "+best"]
    subprocess.run(tag, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60, check=True, stdout=subprocess.DEVNULL)
    recorder.close()
    assert read_run("runs/digits/a").tags == ("best",)  # type: ignore[union-attr]  # it is there


def test_tags_given_at_the_same_time_are_all_kept(runs: Answers) -> None:
    """Several people who tag a run at once do not undo each other's."""
    program = "import sys; from trainlab.cli import main; main(['runs', 'tag', 'digits/a', '+' + sys.argv[1]])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [
        subprocess.Popen([sys.executable, "-c", program, f"t{number}"], env=environment, stdout=subprocess.DEVNULL)
        for number in range(6)
    ]
    assert [process.wait(120) for process in started] == [0] * 6
    assert len(read_run("runs/digits/a").tags) == 6  # type: ignore[union-attr]  # it is there


def test_rm_removes_runs_whole(runs: Answers) -> None:
    """The runs that are named, or of which the filter is true, are gone, and the others stay."""
    make_run(Path("runs/other/d/runs/inner"), status="failed")
    text = runs("rm", "--where", "status == 'failed'", "--dry-run")
    assert "other/d" in text and "inner" not in text
    assert len(find_runs("runs")) == 6
    assert runs("rm", "--where", "status == 'failed'", "--yes").endswith("Removed: 1.\n")
    assert not Path("runs/other/d").exists()
    runs("rm", "digits/a", "b", "--yes")
    assert sorted(path.name for path in Path("runs/digits").iterdir()) == ["c"]
    assert runs("rm", "--where", "status == 'failed'", "--yes") == "There is nothing to remove in runs.\n"


def test_rm_leaves_a_run_that_someone_holds(runs: Answers) -> None:
    """Neither a running run nor one with a running one inside is touched, and the status tells programs."""
    before = sorted(Path("runs").rglob("*"))
    with RunFolder.open(name="digits", run_dir="runs/digits/a"):
        assert "Not removed: " in runs("rm", "digits/a", "--yes", status=1)
    assert sorted(Path("runs").rglob("*")) == before
    with RunFolder.open(name="inner", run_dir="runs/digits/b/runs/inner"):
        assert "is held by" in runs("rm", "digits/b", "--yes", status=1)
    assert Path("runs/digits/b/run.json").exists()
    assert not is_held("runs/digits/b")
    change_record(Path("runs/e"), host="elsewhere")
    assert "pass --elsewhere" in runs("rm", "runs/e", "--yes", status=1)
    runs("rm", "runs/e", "--yes", "--elsewhere")
    assert not Path("runs/e").exists()


def test_rm_looks_for_holders_in_the_whole_folder(runs: Answers) -> None:
    """A run that lives anywhere below a run's folder keeps it from being removed, and so does a folder that is held."""
    inner = Path("runs/digits/a/sweep/s1")
    with RunFolder.open(name="s1", run_dir=inner):
        assert "is held by" in runs("rm", "digits/a", "--yes", status=1)
        (inner / "run.json").unlink()
        assert "is held by" in runs("rm", "digits/a", "--yes", status=1)
    assert Path("runs/digits/a/run.json").exists()
    assert not is_held("runs/digits/a")
    runs("rm", "digits/a", "--yes")
    assert not inner.exists()


def test_rm_does_not_follow_a_link(runs: Answers) -> None:
    """Of a run that is named by a link neither the link goes nor the run, and the run's own path is told."""
    Path("link").symlink_to("runs/digits/a")
    told = runs("rm", "link", "--yes", status=1)
    assert f"This is a link to {Path('runs/digits/a').resolve()}." in told
    assert Path("link").is_symlink()
    assert Path("runs/digits/a/run.json").exists()


@pytest.mark.parametrize("record", ['{"tool": "other"}', "no JSON", '{"status": "finished"}'])
def test_rm_leaves_what_may_be_another_programs(runs: Answers, record: str) -> None:
    """A folder of which nothing tells that it is a run is removed only if that is said, here as at a URL."""
    url = f"memory://{uuid.uuid4()}"
    store = open_store(url)
    for name, content in (("run.json", record), ("log.txt", ""), ("data", "precious")):
        store.publish(f"other/{name}", content.encode())
    shown = Path("runs/other/x")
    shown.mkdir()
    for name in ("run.json", "lock", "data"):
        (shown / name).write_text(record)
    for name in ("other/x", f"{url}/other"):
        told = runs("rm", name, "--yes", status=1)
        assert "Nothing tells that this is a run of trainlab." in told and "pass --damaged" in told
    assert sorted(path.name for path in shown.iterdir()) == ["data", "lock", "run.json"]
    assert (shown / "lock").read_text() == record
    assert store.read("other/data", 100) == b"precious"
    runs("rm", "other/x", f"{url}/other", "--yes", "--damaged")
    assert not shown.exists()
    assert store.folders() == []


@pytest.mark.parametrize("name", ["", " ", "/", "file://"])
@pytest.mark.parametrize("command", [["show"], ["tag"], ["rm", "--yes"], ["compare", "digits/b"]])
def test_an_empty_name_means_no_run(runs: Answers, command: list[str], name: str) -> None:
    """A variable of the shell that is not set names neither the only run there is nor the current folder."""
    shutil.copy("runs/digits/a/run.json", "run.json")
    assert "Received: " in runs(*command, name, "--root", "runs/other", status=2)
    assert "An empty text names no folder." in runs(
        "rm", "--where", "status == 'failed'", "--root", "", "--yes", status=2
    )
    assert len(find_runs("runs")) == 5


def test_rm_names_checkpoints_that_it_leaves(runs: Answers, tmp_path: Path) -> None:
    """Checkpoints in a store of their own are not removed with the run, and it is told where they are."""
    (tmp_path / "store").mkdir()
    change_record(Path("runs/digits/a"), checkpoint_storage=str(tmp_path / "store"))
    assert f"stay where they are: {tmp_path / 'store'}" in runs("rm", "digits/a", "--yes")
    assert (tmp_path / "store").exists()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal as standard input, and where its keys are pressed."""
    keys, screen = pty.openpty()
    with os.fdopen(screen, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield keys
    os.close(keys)


@pytest.mark.parametrize(("answer", "stays"), [(b"y\n", False), (b"n\n", True), (b"\n", True)])
def test_rm_asks_at_a_terminal(
    runs: Answers, terminal: int, answer: bytes, stays: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a yes removes anything."""
    os.write(terminal, answer)
    assert main(["runs", "rm", "digits/a"]) == 0
    assert "Remove 1 of them for ever? [y/N]" in capsys.readouterr().err
    assert Path("runs/digits/a").exists() == stays


def test_all_commands_work_on_a_url(runs: Answers) -> None:
    """Runs on another file system are listed, shown, compared, tagged and removed as those here."""
    url = f"memory://{uuid.uuid4()}"
    for name, lr in (("a", 0.1), ("b", 0.2)):
        with RunFolder.open(name="digits", run_dir=f"{url}/digits/{name}") as run:
            write_series(run.path, 2.0, 1.0)
            run.write_record(params={"lr": lr}, metrics={"loss": lr}, status="finished")
    assert runs.names(url, "--where", "params.lr > .15") == ["b"]
    assert runs("list", url).splitlines()[1].split()[0] in ("digits/a", "digits/b")
    assert runs("show", "digits/a", "--root", url).startswith(f"{url}/digits/a\n")
    assert "params.lr" in runs("compare", f"{url}/digits/a", "b", "--root", url, "--metric", "train/loss")
    assert runs("tag", f"{url}/digits/a", "+best") == f"{url}/digits/a  best\n"
    assert runs.names(url, "--tag", "best") == ["a"]
    runs("rm", "a", "--root", url, "--yes")
    assert runs.names(url) == ["b"]
    change = RunFolder.open(name="digits", run_dir=f"{url}/digits/c")
    change.close()
    assert "pass --elsewhere" in runs("rm", f"{url}/digits/c", "--yes", status=1)
    assert "There is no run at this URL" in runs("show", f"{url}/digits/x", status=2)


def test_a_run_cannot_confuse_a_terminal(runs: Answers) -> None:
    """Control characters in a record are shown, and not sent to the terminal."""
    change_record(Path("runs/digits/a"), params={"lr\x1b": "\x1b[2J"}, error="a\nb")
    assert "\x1b" not in runs("list") + runs("show", "digits/a") + runs("compare", "digits/a", "digits/b")
