import json
import os
import shlex
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.cli.programs import trainlab
from tests.runs.made_runs import ROOT, change_record, make_run
from trainlab.cli import main
from trainlab.runs import RunFolder

# A program whose run can be seen without torch: it tells how it was called, and ends with a status of its own.
PROGRAM = """
import json, os, sys
from trainlab.runs import RunFolder
told = {name: value for name, value in os.environ.items() if name.startswith("TRAINLAB_R")}
folder = RunFolder.open(name="program", run_dir=os.environ.get("TRAINLAB_RUN_DIR") or "runs/a")
print(json.dumps({"argv": sys.argv[1:], "environment": told, "cwd": os.getcwd(), "pid": os.getpid()}), flush=True)
if "--hang" in sys.argv:
    sys.stdin.read()
os._exit(7)
"""

EXPERIMENT = """
import trainlab

@trainlab.experiment
@trainlab.parameter("lr", float, default=0.1, envvar="LR")
def train(params):
    return {"loss": params["lr"]}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a program in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "program.py").write_text(PROGRAM)
    return tmp_path


def begin(*arguments: str, module: bool = False) -> None:
    """Run the program, which crashes."""
    what = ["-m", "program"] if module else ["program.py"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *what, *arguments], env=environment, stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 7


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[dict[str, str], list[str], str]:
    """What `trainlab resume --dry-run` would run: variables, words, and what it said beside."""
    assert main(["resume", "--dry-run", *arguments]) == 0
    output, errors = capsys.readouterr()
    words = shlex.split(output)
    assert words[0] == "cd" and words[2] == "&&"
    variables = [word for word in words[3:] if word.startswith("TRAINLAB_")]
    rest = [word for word in words[3:] if word not in variables]
    return dict(word.partition("=")[::2] for word in variables), rest, errors


@pytest.mark.parametrize("module", [False, True])
def test_a_script_or_a_module_is_begun_again_as_it_was(place: Path, module: bool) -> None:
    """The recorded program runs with its own options and further ones, in its folder, and the status is its own."""
    begin("--lr", "0.1", "two words", module=module)
    (place / "elsewhere").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "trainlab", "resume", str(place / "runs" / "a"), "--", "--epochs", "3"],
        cwd=place / "elsewhere",
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    told = json.loads(done.stdout)
    assert told["argv"] == ["--lr", "0.1", "two words", "--epochs", "3"]
    assert told["environment"] == {"TRAINLAB_RUN_DIR": str(place / "runs" / "a"), "TRAINLAB_RESUME": "1"}
    assert told["cwd"] == str(place)
    starts = json.loads((place / "runs" / "a" / "run.json").read_text())["starts"]
    assert [start["status"] for start in starts] == ["crashed", "running"]


def test_a_signal_reaches_the_program(place: Path) -> None:
    """Whoever stops the command stops the program, which is the same process."""
    begin()
    program = [sys.executable, "-m", "trainlab", "resume", "runs/a", "--", "--hang"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(program, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["pid"] == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


def test_a_running_run_is_refused(place: Path) -> None:
    """Two processes never go on with one run: the one that holds it is named."""
    with RunFolder.open(name="a", run_dir=place / "runs" / "a"):
        done = trainlab("resume", str(place / "runs" / "a"))
        assert done.returncode == 2
        assert f"The run is running: process {os.getpid()} on " in done.stderr


def test_an_experiment_goes_on_by_its_params_file(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An experiment is found by its file, or its module in a package, and gets the parameters of its last start."""
    run = make_run(place / "runs" / "a", params={"lr": 0.1})
    (run / "params.yaml").write_text("lr: 0.1\n")
    experiment = {"path": "group/train", "module": "train", "file": f"{place}/program.py", "qualname": "train"}
    change_record(run, experiment=experiment, module="trainlab", status="failed")
    variables, words, errors = command(capsys, "a", "--", "--epochs", "3")
    own = {"TRAINLAB_RUN_DIR": str(run), "TRAINLAB_RESUME": "1"}
    assert variables == {**own, "TRAINLAB_IGNORE_ENVIRONMENT": "1"}
    expected = [sys.executable, "-m", "trainlab", "run", f"{place}/program.py:group/train", "--params-file"]
    assert words == [*expected, str(run / "params.yaml"), "--epochs", "3"]
    assert errors == ""
    change_record(run, params={"lr": 0.1, "epochs": 3})
    _, words, _ = command(capsys, "a")
    assert json.loads(Path(words[6]).read_text()) == {"lr": 0.1, "epochs": 3}
    for module, of_program in (("package.train", None), ("__main__", "package.train")):
        change_record(run, experiment={**experiment, "module": module}, module=of_program or "trainlab")
        assert command(capsys, "a")[1][4] == "package.train:group/train"


def test_the_parameters_of_the_last_start_are_not_those_of_the_environment(place: Path) -> None:
    """A variable that declares a parameter changes nothing of a run that is gone on with."""
    (place / "train.py").write_text(EXPERIMENT)
    environment = {"TRAINLAB_CACHE": str(place / "cache"), "LR": "0.5"}
    assert trainlab("run", "train.py", "--lr", "0.01").returncode == 0
    (run,) = (place / "runs" / "train").iterdir()
    done = trainlab("resume", str(run), **environment)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "run.json").read_text())["params"]["lr"] == 0.01


def test_a_damaged_params_file_keeps_no_run_from_going_on(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The record has the parameters, too: they are taken from there, and the file is named."""
    run = make_run(place / "runs" / "a", params={"lr": 0.1})
    (run / "params.yaml").write_text("a: [1,")
    experiment = {"path": "train", "module": "train", "file": f"{place}/program.py", "qualname": "train"}
    change_record(run, experiment=experiment, status="failed")
    _, words, errors = command(capsys, "a")
    assert json.loads(Path(words[6]).read_text()) == {"lr": 0.1}
    assert f"{run}/params.yaml" in errors


def test_a_copy_of_parameters_is_never_cut_off(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reads the parameters while another program is begun with the same reads whole ones."""
    run = make_run(place / "runs" / "a", params={"lr": 0.1})
    experiment = {"path": "train", "module": "train", "file": f"{place}/program.py", "qualname": "train"}
    change_record(run, experiment=experiment, status="failed", params={"lr": 0.2})
    copy = Path(command(capsys, "a")[1][6])
    before = copy.stat().st_ino
    assert command(capsys, "a")[1][6] == str(copy)
    assert copy.stat().st_ino != before  # another file in its place, and not the same one written again
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_run_on_a_store_goes_on_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The program is given the run's URL, and a copy of its parameters that it can read."""
    url = f"memory://{uuid.uuid4()}/a"
    experiment = {"path": "train", "module": "train", "file": f"{place}/program.py", "qualname": "train"}
    with RunFolder.open(name="a", run_dir=url) as run:
        run.write_record(params={"lr": 0.5}, experiment=experiment, status="interrupted")
    variables, words, _ = command(capsys, url)
    assert variables["TRAINLAB_RUN_DIR"] == url
    assert json.loads(Path(words[6]).read_text()) == {"lr": 0.5}


@pytest.mark.parametrize(
    ("recorded", "given", "expected"),
    [
        (["--token=***", "--lr", "1"], ["--token", "x"], ["--lr", "1", "--token", "x"]),
        (["--token", "***", "--lr", "1"], ["--token=x"], ["--lr", "1", "--token=x"]),
        (["--store", "s3://me:***@host", "a"], ["--store", "s3://x"], ["a", "--store", "s3://x"]),
        (["--token=***", "--lr", "1"], [], "--token. "),
        (["--token", "***"], ["--lr", "2"], "--token. "),
        (["s3://me:***@host"], [], "s3://me:***@host. "),
    ],
)
def test_a_hidden_secret_is_asked_for(
    place: Path, recorded: list[str], given: list[str], expected: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """No program is begun with *** for its token: it is told which option has to be given again, and how."""
    run = make_run(place / "runs" / "a", status="failed")
    change_record(run, argv=["program.py", *recorded], script="program.py", cwd=str(place), module=1)
    if isinstance(expected, list):
        assert command(capsys, "a", "--", *given)[1][2:] == expected
        return
    assert main(["resume", "a", "--dry-run", "--", *given]) == 2
    text = capsys.readouterr().err
    assert f"Secrets of the command line were not recorded: {expected}" in text
    assert "Give them again at the end: -- " in text


def test_what_is_odd_is_told_before_the_program_begins(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A finished run, one that another host may hold and one of several processes go on, with a word about it."""
    run = make_run(place / "runs" / "a")
    change_record(run, script="program.py", cwd=str(place), module=1, ranks=4)
    told = command(capsys, "a")[2]
    assert (
        "This run has finished, by a loop of its own: what it does not keep in a checkpoint, it does all again." in told
    )
    assert "last on 4 processes" in told
    change_record(run, batches_trained=8)
    assert (
        "This run has finished: there is something to do only if it is told to train for longer."
        in command(capsys, "a")[2]
    )
    change_record(run, status="running", host="elsewhere", ranks=1)
    assert "on elsewhere works in it, which cannot be seen from here" in command(capsys, "a")[2]
    change_record(run, status="interrupted")
    assert command(capsys, "a")[2] == ""


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"cwd": "/not/there"}, "The folder that the run was begun in is not there"),
        ({"script": "other.py"}, "The run's script is not there"),
        (
            {"script": "other.py"},
            "Bring it back; or begin the program where it is now, for a resume with TRAINLAB_RUN_",
        ),
        ({"experiment": {"path": "a", "module": "other", "file": "/not/other.py"}}, "The run's script is not there"),
        ({"script": 1}, "typed in or in a notebook"),
        ({"command": "x"}, "does not say what began it"),
    ],
)
def test_what_cannot_be_begun_again_is_told(
    place: Path, fields: dict[str, Any], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A program that has gone, or never was in a file, is one error that says so."""
    run = make_run(place / "runs" / "a", status="failed")
    change_record(run, **{"script": "program.py", "cwd": str(place), "module": 1, **fields})
    assert main(["resume", "a"]) == 2
    errors = capsys.readouterr().err
    assert told in errors
    assert errors.count("\n") == 1
