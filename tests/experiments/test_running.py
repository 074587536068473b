"""What is left of a run: its folder, its record, its log, its end."""

import json
import logging
import multiprocessing
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import trainlab
from tests.experiments.running_programs import (
    draws,
    leaks,
    leaves_children,
    logs,
    nested,
    only_run,
    record_of,
)
from tests.launch.launchers import is_gone, until
from trainlab.errors import InvalidStateError, InvalidValueError, RunFolderError
from trainlab.experiments import running


def made(main: Callable[..., Any]) -> Any:
    """An experiment of a function of a test."""
    return trainlab.experiment(name="train")(main)


@contextmanager
def waiting(root: Path, run_dir: Path | None = None) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in the middle of a run that does not end by itself."""
    code = "import sys; from tests.experiments.running_programs import run_waits; run_waits(*sys.argv[1:])"
    folders = [str(root)] if run_dir is None else [str(root), str(run_dir)]
    with subprocess.Popen([sys.executable, "-c", code, *folders]) as process:
        try:
            until(lambda: process.poll() is not None or any(root.rglob("waiting")), lambda: "it did not begin")
            yield process
        finally:
            process.kill()


def test_a_runs_folder_is_named_by_groups_experiment_and_time(tmp_path: Path) -> None:
    """The experiment `nested` of the groups `outer` and `inner` gets outer/inner/nested/<date>_<time>_<id>."""
    folder = Path(nested.run({"output_dir": tmp_path}))
    assert folder.parent == tmp_path / "outer/inner/nested" and folder.is_absolute()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[a-z0-9]{6}", folder.name)
    record = record_of(folder)
    assert record["name"] == record["experiment"]["path"] == "outer/inner/nested"
    assert {path.name for path in folder.iterdir()} >= {"params.yaml", "run.json", "log.txt", "packages.txt"}


def test_two_runs_in_one_second_have_folders_of_their_own(tmp_path: Path) -> None:
    """Runs that begin within a second do not share a folder."""
    assert nested.run({"output_dir": tmp_path}) != nested.run({"output_dir": tmp_path})


def test_a_run_is_replayed_by_its_params_file(tmp_path: Path) -> None:
    """Given back as --params-file, params.yaml gives the same values, the drawn seed and all that comes from it."""
    first = draws.run({"output_dir": tmp_path, "lr": 1e-5, "names": ["x", "n", "1"]})
    file = only_run(tmp_path, "draws") / "params.yaml"
    again = draws.cli(["--params-file", str(file)], exit_on_error=False)
    assert again["params"].pop("params_file") == str(file) and first["params"].pop("params_file") == "None"
    assert again == first
    assert draws.run({"output_dir": tmp_path / "other"})["seeds"] != first["seeds"]


def test_a_seed_seeds_all_generators(tmp_path: Path) -> None:
    """With the same random_seed, random, numpy and torch draw the same in a run, whatever was drawn before."""
    import torch

    experiment = made(lambda values: [torch.rand(3).tolist(), *draws.main(values).values()][:4])
    torch.rand(5)
    values = {"output_dir": tmp_path, "random_seed": 2**40 + 3}
    assert experiment.run(values) == experiment.run(values) != experiment.run({"output_dir": tmp_path})


def test_a_package_that_is_loaded_later_is_seeded_too(tmp_path: Path) -> None:
    """A run waits for neither numpy nor torch; one that the main function loads draws what a seeded one draws."""
    code = (
        "import sys, trainlab\n"
        "@trainlab.experiment\n"
        "def train(params):\n"
        "    assert not {'numpy', 'torch'} & set(sys.modules)\n"
        "    import importlib.util\n"
        "    assert importlib.util.find_spec('numpy') and importlib.util.find_spec('nowhere') is None\n"
        "    import numpy\n"
        "    print(numpy.random.rand())\n"
        "train.run({'random_seed': 7})\n"
        "assert not [one for one in sys.meta_path if 'trainlab' in type(one).__module__]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    import numpy

    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == numpy.random.RandomState(7).rand()


def test_an_experiment_inside_of_another_is_refused(tmp_path: Path) -> None:
    """A run inside a run raises, in any thread, says what to do, makes no folder, and leaves the first run alone."""
    found: list[BaseException] = []

    def inside() -> None:
        try:
            draws.run({"output_dir": tmp_path / "inside"})
        except InvalidStateError as error:
            found.append(error)

    def main(values: dict[str, Any]) -> str:
        inside()
        thread = threading.Thread(target=inside)
        thread.start()
        thread.join()
        return str(trainlab.output_dir)

    assert Path(made(main).run({"output_dir": tmp_path})).is_dir()
    assert len(found) == 2 and not (tmp_path / "inside").exists()
    assert "'train'" in str(found[0]) and "run_experiment" in str(found[0]) and "launch_subprocess" in str(found[0])


def test_what_the_main_function_raises_comes_out_and_is_recorded(tmp_path: Path) -> None:
    """The very exception comes out; run.json has status failed with class and message, log.txt the traceback."""
    error = KeyError("no such thing")

    def main(values: dict[str, Any]) -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        made(main).run({"output_dir": tmp_path})
    folder = only_run(tmp_path, "train")
    record = record_of(folder)
    assert caught.value is error
    assert record["status"] == "failed" and record["error"] == "KeyError: 'no such thing'"
    assert record["starts"][-1]["ended"] and "raise error" in (folder / "log.txt").read_text()


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (SystemExit(0), "finished"),
        (SystemExit(), "finished"),
        (SystemExit(3), "failed"),
        (SystemExit("gave up"), "failed"),
        (SystemExit(143), "interrupted"),
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_how_a_run_ended_is_its_status(tmp_path: Path, raised: BaseException, status: str) -> None:
    """sys.exit(0) is a normal end, another status a failure, Ctrl-C and a signal's status an interruption."""

    def main(values: dict[str, Any]) -> None:
        raise raised

    with pytest.raises(type(raised)):
        made(main).run({"output_dir": tmp_path})
    record = record_of(only_run(tmp_path, "train"))
    assert record["status"] == record["starts"][-1]["status"] == status
    assert (record["error"] is None) == (status == "finished")


def test_a_terminated_run_is_interrupted_and_no_crash(tmp_path: Path) -> None:
    """SIGTERM outside of any fit ends the run in order, with the signal's exit status and status interrupted."""
    with waiting(tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 128 + signal.SIGTERM
    record = record_of(only_run(tmp_path, "waits"))
    assert record["status"] == "interrupted" and record["error"] == "SystemExit: 143"


def test_a_killed_run_goes_on_with_its_seed_and_is_told_to_have_crashed(tmp_path: Path) -> None:
    """After kill -9 the folder is free, resumes with the drawn seed of its first start, and that start has crashed."""
    folder = tmp_path / "one"
    with waiting(tmp_path, folder) as process:
        process.kill()
    before, params = record_of(folder), (folder / "params.yaml").read_text()
    assert before["status"] == "running"
    experiment = trainlab.experiment(name="waits")(lambda values: values["random_seed"])
    seed = running.run(experiment, experiment.read({"output_dir": tmp_path}), run_dir=folder, resumes=True)
    record = record_of(folder)
    assert seed == before["random_seed"] == record["random_seed"]
    assert [start["status"] for start in record["starts"]] == ["crashed", "finished"]
    assert (folder / "params.yaml").read_text() == params


def test_the_environment_names_the_folder_for_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """TRAINLAB_RUN_DIR and TRAINLAB_RESUME=1 hold for the next run, which keeps params.yaml and tells what differs."""
    monkeypatch.setenv("TRAINLAB_RUN_DIR", str(tmp_path / "one"))
    first = draws.run({"output_dir": tmp_path / "runs"})
    params = (tmp_path / "one/params.yaml").read_text()
    monkeypatch.setenv("TRAINLAB_RUN_DIR", str(tmp_path / "one"))
    monkeypatch.setenv("TRAINLAB_RESUME", "1")
    again = draws.run({"output_dir": tmp_path / "runs", "lr": 3.0})
    assert first["seeds"] == again["seeds"] and not (tmp_path / "runs").exists()
    assert (tmp_path / "one/params.yaml").read_text() == params and "They differ in: lr." in caplog.text
    draws.run({"output_dir": tmp_path / "runs"})
    assert (tmp_path / "runs/draws").exists()
    monkeypatch.setenv("TRAINLAB_RESUME", "yes")
    with pytest.raises(InvalidValueError, match="TRAINLAB_RESUME is 0 or 1. Received: 'yes'"):
        draws.run({"output_dir": tmp_path / "runs"})


def test_the_record_says_what_ran_where_and_from_which_values(tmp_path: Path) -> None:
    """run.json has the experiment, values with their origins, the seed, the program, devices and packages in use."""
    draws.cli(["--output-dir", str(tmp_path), "--lr", "2"], exit_on_error=False)
    folder = only_run(tmp_path, "draws")
    record = record_of(folder)
    assert record["experiment"] == {
        "path": "draws",
        "module": "tests.experiments.running_programs",
        "file": str(Path(__file__).with_name("running_programs.py")),
        "qualname": "draws",
    }
    assert record["params"]["lr"] == 2.0 and record["params"]["random_seed"] == record["random_seed"]
    assert record["origins"]["lr"] == "command line" and record["origins"]["names"] == "default"
    assert record["cwd"] == os.getcwd() and record["argv"] == sys.argv and record["host"]
    assert record["devices"]["cpus"] >= 1 and record["git"]["commit"]
    assert f"\npydantic=={__import__('pydantic').VERSION}\n" in (folder / "packages.txt").read_text()
    assert (folder / "run.json").stat().st_size < 10_000


@pytest.mark.parametrize(
    ("returned", "facts"),
    [
        (0.25, {"result": 0.25}),
        ({"loss": 2, "name": "x", "ok": True}, {"metrics": {"loss": 2}}),
        ("words", {}),
        (True, {}),
    ],
)
def test_numbers_that_the_main_function_returns_are_recorded(tmp_path: Path, returned: Any, facts: Any) -> None:
    """A number is the run's result, numbers by name are its metrics; all else is returned, and not recorded."""
    assert made(lambda values: returned).run({"output_dir": tmp_path}) is returned
    record = record_of(only_run(tmp_path, "train"))
    assert {name: record[name] for name in ("result", "metrics") if name in record} == facts


def test_arrays_and_tensors_of_one_element_are_numbers(tmp_path: Path) -> None:
    """Metrics of numpy and torch are recorded as numbers, and longer ones are left out."""
    import numpy
    import torch

    metrics = {"a": numpy.float32(0.5), "b": torch.tensor(2), "c": torch.ones(3)}
    made(lambda values: metrics).run({"output_dir": tmp_path})
    assert record_of(only_run(tmp_path, "train"))["metrics"] == {"a": 0.5, "b": 2}


def test_secrets_reach_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token and a SecretStr are in no file of a run: not by command line, log, traceback or error, however quoted."""
    token, login = 'to"k\\en=1é', "s3cr et/pass"
    argv = ["--output-dir", str(tmp_path), "--api-token", token, "--login", login]
    monkeypatch.setattr(sys, "argv", ["program.py", *argv, f"--url=x{token}x"])
    with pytest.raises(ValueError, match="refused"):
        leaks.cli(argv, exit_on_error=False)
    folder = only_run(tmp_path, "leaks")
    content = {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    for secret in (token, login):
        for form in (secret, repr(secret)[1:-1], json.dumps(secret)[1:-1], "s3cr%20et"):
            assert not [name for name, text in content.items() if form in text], form
    assert "the token is ***" in content["log.txt"] and "refused: '***'" in content["log.txt"]
    assert record_of(folder)["error"] == "ValueError: refused: '***', https://me:***@host"
    assert record_of(folder)["params"]["api_token"] == record_of(folder)["params"]["login"] == "***"


def test_the_log_has_each_record_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """log.txt has what trainlab and the program's own loggers say, once; basicConfig in a run still works."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers[:] = []
    try:
        logs.run({"output_dir": tmp_path})
    finally:
        root.handlers[:], root.level = handlers, level
    text = (only_run(tmp_path, "logs") / "log.txt").read_text()
    for said in ("from the program", "from the root", "from trainlab"):
        assert text.count(said) == 1
    assert "too detailed" not in text
    assert "shown: from the program" in capsys.readouterr().err
    logging.getLogger("program").warning("after the run")
    assert "after the run" not in (only_run(tmp_path, "logs") / "log.txt").read_text()


def test_processes_that_are_left_running_end_with_the_run(tmp_path: Path) -> None:
    """A process of multiprocessing that the main function leaves behind is ended; one of before the run is not."""
    before = multiprocessing.get_context("fork").Process(target=signal.pause)
    before.start()
    try:
        child = leaves_children.run({"output_dir": tmp_path})
        assert multiprocessing.active_children() == [before]
        with pytest.raises(ProcessLookupError):
            os.kill(child, 0)
    finally:
        before.kill()
        before.join()


def test_a_forked_child_that_leaves_the_main_function_ends_nothing(tmp_path: Path) -> None:
    """sys.exit in a child made by os.fork leaves the run's record and folder to the parent."""

    def main(values: dict[str, Any]) -> str:
        child = os.fork()
        if child == 0:
            sys.exit(3)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        return str(record_of(trainlab.output_dir)["status"])

    main_process = os.getpid()
    try:
        status = made(main).run({"output_dir": tmp_path})
    except SystemExit as ended:
        if os.getpid() != main_process:
            os._exit(int(str(ended.code)))  # the child comes out here
        raise
    assert status == "running" and record_of(only_run(tmp_path, "train"))["status"] == "finished"
    assert not re.search("failed|could not", (only_run(tmp_path, "train") / "log.txt").read_text())


def test_a_full_disk_does_not_hide_what_went_wrong(small_disk: Path) -> None:
    """Where the end cannot be written, what the main function raised comes out; with nothing raised, that comes out."""

    def fill() -> None:
        with pytest.raises(OSError, match="No space"), (small_disk / "large").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def fails(values: dict[str, Any]) -> None:
        fill()
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        made(fails).run({"output_dir": small_disk})
    (small_disk / "large").unlink()
    with pytest.raises(RunFolderError, match="cannot be written: No space"):
        made(lambda values: fill()).run({"output_dir": small_disk})
    with pytest.raises(RunFolderError, match="No space"):
        made(lambda values: None).run({"output_dir": small_disk})
    (small_disk / "large").unlink()
    made(lambda values: None).run({"output_dir": small_disk})


def test_a_main_function_that_deletes_its_folder(tmp_path: Path) -> None:
    """What it raises comes out; if it returns, the missing folder is an error; the next run is not disturbed."""

    def deletes(values: dict[str, Any]) -> None:
        shutil.rmtree(trainlab.output_dir)
        if values["checkpoint"]:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        made(deletes).run({"output_dir": tmp_path, "checkpoint": "x"})
    with pytest.raises(RunFolderError, match=r"run\.json cannot be written"):
        made(deletes).run({"output_dir": tmp_path})
    assert made(lambda values: 3).run({"output_dir": tmp_path}) == 3


def test_a_folder_that_cannot_be_made_is_told_before_the_main_function(tmp_path: Path) -> None:
    """A file in place of output_dir is an error that names it, and nothing runs."""
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="a file is in its place"):
        made(lambda values: pytest.fail("it ran")).run({"output_dir": tmp_path / "file"})
    assert nested.run({"output_dir": tmp_path})


def test_a_run_on_a_store_works_in_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a URL for output_dir the run's files are there at the end; output_dir is the folder that it works in."""
    import fsspec

    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path))

    def main(values: dict[str, Any]) -> None:
        (trainlab.output_dir / "mine.txt").write_text("kept")

    made(main).run({"output_dir": f"memory://{tmp_path.name}/runs"})
    store = fsspec.filesystem("memory")
    (found,) = store.ls(f"/{tmp_path.name}/runs/train", detail=False)
    assert store.cat(f"{found}/mine.txt") == b"kept"
    assert json.loads(store.cat(f"{found}/run.json"))["status"] == "finished"


def test_a_root_may_be_a_url_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--output-dir file:///data/runs` makes runs in /data/runs, and nowhere below the current folder."""
    monkeypatch.chdir(tmp_path)
    train = made(lambda params: None)
    train.cli(["--output-dir", f"file://{tmp_path / 'there'}"])
    (folder,) = (tmp_path / "there" / "train").iterdir()
    assert record_of(folder)["status"] == "finished"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_another_experiments_run_is_not_gone_on_with(tmp_path: Path) -> None:
    """A folder with the run of one experiment is refused by another one, and left as it is."""
    values = made(lambda params: None).read({"output_dir": tmp_path})
    running.run(made(lambda params: None), values, run_dir=tmp_path / "run")
    before = (tmp_path / "run" / "run.json").read_text()
    other = trainlab.experiment(name="other")(lambda params: None)
    with pytest.raises(RunFolderError, match="run of another experiment, 'train'"):
        running.run(other, other.read({}), run_dir=tmp_path / "run", resumes=True)
    assert json.loads(before)["experiment"] == record_of(tmp_path / "run")["experiment"]


def test_of_threads_one_runs_and_the_others_leave_nothing(tmp_path: Path) -> None:
    """Several threads that start an experiment at once make one run; the others get an error, and no folder."""
    begun, refused = threading.Event(), []
    train = made(lambda params: begun.wait(120))

    def start() -> None:
        try:
            train.run({"output_dir": tmp_path})
        except InvalidStateError as error:
            refused.append(str(error))
            if len(refused) == 3:
                begun.set()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 3
    (folder,) = (tmp_path / "train").iterdir()
    assert record_of(folder)["status"] == "finished"


class Untellable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_that_cannot_be_told_is_recorded(tmp_path: Path) -> None:
    """Also an exception whose text raises comes out as it is, and leaves a failed run whose folder is closed."""
    error = Untellable()

    def main(values: dict[str, Any]) -> None:
        raise error

    experiment = made(main)
    for _ in range(2):
        with pytest.raises(Untellable) as caught:
            experiment.run({"output_dir": tmp_path})
        assert caught.value is error
    records = [record_of(folder) for folder in (tmp_path / "train").iterdir()]
    assert [(record["status"], record["error"]) for record in records] == [
        ("failed", "Untellable: <its message cannot be told>")
    ] * 2
    assert not logging.getLogger("trainlab").handlers


def test_a_huge_error_does_not_fill_the_record(tmp_path: Path) -> None:
    """Of an error's text the record has the beginning, cut where no half of a secret is left; the log has all."""

    def main(values: dict[str, Any]) -> None:
        raise ValueError("x" * 9_980 + values["api_token"] + "y" * 1_000_000)

    with pytest.raises(ValueError):
        trainlab.parameter("api_token")(made(main)).run({"output_dir": tmp_path, "api_token": "open-sesame-4711"})
    folder = only_run(tmp_path, "train")
    assert record_of(folder)["error"].endswith("x***yyyyy… and 999995 characters more")
    assert (folder / "log.txt").stat().st_size > 1_000_000


def test_the_first_thing_that_goes_wrong_at_the_end_is_told(tmp_path: Path) -> None:
    """If neither the record nor the log can be written, the error is the record's; the folder is let go."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "log.txt").symlink_to("/dev/full")

    def main(values: dict[str, Any]) -> None:
        (folder / ".run.json.tmp").mkdir()

    with pytest.raises(RunFolderError, match=r"run\.json cannot be written"):
        running.run(made(main), made(main).read({}), run_dir=folder)
    (folder / ".run.json.tmp").rmdir()
    with pytest.raises(RunFolderError, match=r"log\.txt cannot be written: No space left"):
        running.run(made(lambda values: 3), made(lambda values: 3).read({}), run_dir=folder)
    assert record_of(folder)["result"] == 3


@pytest.mark.parametrize("closing", ["2>&-", "2>/dev/full", "2>&1 | true"])
def test_a_warning_that_nobody_can_be_shown_ends_no_run(tmp_path: Path, closing: str) -> None:
    """A run whose standard error is closed, full or read by nobody has its warnings in the log, and goes on."""
    code = (
        "import logging, trainlab\n"
        "@trainlab.experiment\n"
        "def train(params):\n"
        "    for _ in range(3):\n"
        "        logging.getLogger('trainlab.test').warning('careful')\n"
        "train.run({})\n"
    )
    (tmp_path / "train.py").write_text(code)
    subprocess.run(["bash", "-c", f"{sys.executable} train.py {closing}"], cwd=tmp_path, check=False, timeout=120)
    until(lambda: record_of(only_run(tmp_path / "runs", "train"))["status"] != "running", lambda: "it goes on")
    folder = only_run(tmp_path / "runs", "train")
    assert record_of(folder)["status"] == "finished" and (folder / "log.txt").read_text().count("careful") == 3


def test_a_signal_does_not_wait_for_git(tmp_path: Path) -> None:
    """SIGTERM while git looks at a huge tree ends the run and git at once, and not when its time is over."""
    (tmp_path / ".git").mkdir()
    place = tmp_path / "git.pid"
    # More than fits into a pipe: it goes on when it is being read.
    fake = "[[ $* == *rev-parse* ]] && { echo /; echo abc; exit; }\nhead -c 200000 /dev/zero\n"
    (tmp_path / "git").write_text(f"#!/bin/bash\n{fake}echo $$ > {shlex.quote(str(place))}\nexec sleep 600\n")
    (tmp_path / "git").chmod(0o755)
    (tmp_path / "train.py").write_text(
        "import trainlab\nfrom trainlab.runs import surroundings\n"
        "surroundings._GIT_SECONDS = surroundings._PATCH_SECONDS = 600.0\n"
        "@trainlab.experiment\ndef train(params): pass\ntrain.run({})\n"
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": os.getcwd()}
    with subprocess.Popen([sys.executable, "train.py"], cwd=tmp_path, env=environment) as process:
        until(lambda: place.exists() and place.read_text(), lambda: "git was not asked")
        process.terminate()
        assert process.wait(timeout=120) == 143
    until(lambda: is_gone(int(place.read_text())), lambda: "git is left")
    assert record_of(only_run(tmp_path / "runs", "train"))["status"] == "interrupted"
