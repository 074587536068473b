import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from trainlab.errors import InvalidStateError, InvalidValueError, RunFolderError
from trainlab.runs import RunFolder
from trainlab.runs.lent_folder import LentFolder

ROOT = Path(__file__).parents[2]


@contextmanager
def holder(run_dir: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """Another process that holds the folder, and the process id that it printed."""
    program = [sys.executable, "-m", "tests.runs.holder", str(run_dir), *options]
    with subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, int(process.stdout.readline())
        finally:
            process.kill()


def record(folder: RunFolder) -> dict[str, object]:
    """What run.json says."""
    return json.loads((folder.path / "run.json").read_text())


def test_a_new_run_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    """Two runs of one name, started in the same second, do not share a folder, and neither continues anything."""
    with RunFolder.open(name="digits", root=tmp_path) as one, RunFolder.open(name="digits", root=tmp_path) as other:
        assert one.path != other.path
        for folder in (one, other):
            assert folder.path.is_absolute()
            assert folder.path.parent == tmp_path / "digits"
            assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_[a-z0-9]{6}", folder.path.name)
            assert not folder.continues


def test_opening_does_not_touch_the_programs_random_numbers(tmp_path: Path) -> None:
    """The letters of a folder's name are not drawn from the generator that the user seeds."""
    import random

    random.seed(3)
    expected = random.random()
    random.seed(3)
    RunFolder.open(name="digits", root=tmp_path).close()
    assert random.random() == expected


def test_run_dir_names_the_folder_exactly(tmp_path: Path) -> None:
    """With run_dir the folder is that one, made with its parents, and everything has its place in it."""
    with RunFolder.open(name="digits", run_dir=tmp_path / "a" / "b") as folder:
        path = tmp_path / "a" / "b"
        assert folder.path == path
        assert path.is_dir()
        assert (folder.checkpoints, folder.tensorboard) == (path / "checkpoints", path / "tensorboard")
        assert folder.metrics_file == path / "metrics.jsonl"
        assert (folder.log_file, folder.params_file) == (path / "log.txt", path / "params.yaml")


def test_a_relative_run_dir_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that changes its current folder later goes on writing to the same place."""
    monkeypatch.chdir(tmp_path)
    with RunFolder.open(name="digits", run_dir="here") as folder:
        assert folder.path == tmp_path / "here"


def test_a_folder_that_held_a_run_continues_it(tmp_path: Path) -> None:
    """The second start in a folder knows that it is one, and the record has both."""
    RunFolder.open(name="digits", run_dir=tmp_path).close()
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        assert folder.continues
        assert len(record(folder)["starts"]) == 2


def test_a_foreign_folder_is_refused_and_left_alone(tmp_path: Path) -> None:
    """Nothing is mixed into a folder that is no run's; the error names what is in it."""
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(RunFolderError, match="holds no run.*thesis.tex"):
        RunFolder.open(name="digits", run_dir=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_start_killed_before_its_record_does_not_block_the_folder(tmp_path: Path) -> None:
    """What a process leaves that dies in the first instant is not taken for a foreign folder."""
    (tmp_path / "lock").touch()
    (tmp_path / ".run.json.12.tmp").write_text("{")
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        assert not folder.continues


@pytest.mark.parametrize("run_dir", ["file", "file/below"])
def test_a_file_in_the_folders_place_is_named(tmp_path: Path, run_dir: str) -> None:
    """A path that is a file, or leads through one, is a clear error."""
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError, match="a file is in its place"):
        RunFolder.open(name="digits", run_dir=tmp_path / run_dir)


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    """So is a file where new runs' folders are to be made."""
    (tmp_path / "runs").touch()
    with pytest.raises(RunFolderError, match="cannot be made"):
        RunFolder.open(name="digits", root=tmp_path / "runs")


@pytest.mark.parametrize("name", ["", ".", "..", "a/../b", "a//b", "/etc"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    """A run's name is one folder's name, so a new run is always below the root."""
    with pytest.raises(InvalidValueError, match="Received"):
        RunFolder.open(name=name, root=tmp_path)


def test_a_second_process_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    """Two live processes cannot write one run; the error has the other's process id and host."""
    with holder(tmp_path) as (process, pid), pytest.raises(RunFolderError, match=f"held by process {pid} on .* since"):
        assert pid == process.pid
        RunFolder.open(name="digits", run_dir=tmp_path)


def test_being_refused_does_not_free_the_folder(tmp_path: Path) -> None:
    """Asking twice changes nothing, whoever asks."""
    with holder(tmp_path) as (_, pid):
        for _ in range(2):
            with pytest.raises(RunFolderError, match=f"process {pid}"):
                RunFolder.open(name="digits", run_dir=tmp_path)


def test_the_same_process_cannot_open_a_run_twice(tmp_path: Path) -> None:
    """Two contexts over one folder in one program are an error too, by whatever path; after close it is free."""
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "run")
    folder = RunFolder.open(name="digits", run_dir=tmp_path / "run")
    with pytest.raises(RunFolderError, match="This process holds"):
        RunFolder.open(name="digits", run_dir=link)
    folder.close()
    folder.close()
    RunFolder.open(name="digits", run_dir=link).close()


def test_kill_9_frees_the_folder_although_a_forked_child_lives(tmp_path: Path) -> None:
    """A run that was killed can be resumed at once, even if a loader's worker of it is still there."""
    with holder(tmp_path, "fork") as (process, child):
        process.send_signal(signal.SIGKILL)
        process.wait()
        os.kill(child, 0)
        with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
            assert folder.continues
            starts = record(folder)["starts"]
            assert [start["status"] for start in starts] == ["crashed", "running"]
        os.kill(child, signal.SIGKILL)


def test_reading_every_file_of_the_folder_does_not_free_it(tmp_path: Path) -> None:
    """A program that reads or copies its run's folder while it trains still holds it."""
    ask = (
        "import sys; from trainlab.runs import RunFolder; from trainlab.errors import RunFolderError\n"
        "try: RunFolder.open(name='x', run_dir=sys.argv[1])\n"
        "except RunFolderError as error: print(error)"
    )
    asking = [sys.executable, "-c", ask, str(tmp_path)]
    with RunFolder.open(name="digits", run_dir=tmp_path):
        read = {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()}
        assert "lock" in read
        told = subprocess.run(asking, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"held by process {os.getpid()} on" in told
    assert not subprocess.run(asking, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_a_forked_child_neither_holds_nor_frees_nor_writes_the_folder(tmp_path: Path) -> None:
    """What a child does with the run it inherited leaves the parent's lock, record and the child's files alone."""
    program = (
        "import os, sys\nfrom trainlab.runs import RunFolder\n"
        "from trainlab.errors import InvalidStateError, RunFolderError\n"
        "folder = RunFolder.open(name='x', run_dir=sys.argv[1])\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    own = [os.open(os.devnull, os.O_RDONLY) for _ in range(8)]\n"
        "    try: folder.write_record(status='finished')\n"
        "    except InvalidStateError as error: print(error, flush=True)\n"
        "    folder.close()\n"
        "    for descriptor in own: os.close(descriptor)\n"
        "    try: RunFolder.open(name='x', run_dir=sys.argv[1])\n"
        "    except RunFolderError as error: print(error, flush=True)\n"
        "    os._exit(0)\n"
        "print(os.waitpid(child, 0)[1], os.getpid(), folder.record_file.read_text())\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    refused, held, told = done.stdout.split("\n", 2)
    status, pid, text = told.split(" ", 2)
    assert "forked from" in refused
    assert status == "0"
    assert f"held by process {pid} on" in held
    assert json.loads(text)["status"] == "running"


def test_a_run_closed_while_its_child_lives_can_be_opened_at_once(tmp_path: Path) -> None:
    """Closing frees the folder although a child that was forked before lives on."""
    program = (
        "import os, signal, sys\nfrom trainlab.runs import RunFolder\n"
        "for _ in range(20):\n"
        "    folder = RunFolder.open(name='x', run_dir=sys.argv[1])\n"
        "    child = os.fork()\n"
        "    if child == 0: signal.pause()\n"
        "    folder.close()\n"
        "    RunFolder.open(name='x', run_dir=sys.argv[1]).close()\n"
        "    os.kill(child, signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, check=True)


def test_the_record_of_a_continued_run_can_be_read(tmp_path: Path) -> None:
    """Whoever goes on with a run finds what its record said before this start, and cannot change it."""
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        assert folder.record == {}
        folder.write_record(seed=3, status="finished")
        assert folder.record == {}
    before = json.loads((tmp_path / "run.json").read_text())
    with RunFolder.open(name="other", run_dir=tmp_path) as folder:
        folder.write_record(seed=4)
        assert folder.record == before
        assert (folder.record["seed"], folder.record["status"], len(folder.record["starts"])) == (3, "finished", 1)
        with pytest.raises(TypeError):
            folder.record["seed"] = 5  # type: ignore[index]


def test_the_record_tells_what_was_run(tmp_path: Path) -> None:
    """run.json says which command, versions, host and process made the run, and when."""
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        told = record(folder)
    assert told["name"] == "digits"
    assert told["executable"] == sys.executable
    assert len(told["command"]) == len(sys.argv)
    assert told["pid"] == os.getpid()
    assert told["status"] == "running"
    assert told["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"host", "started", "script", "cwd"} <= told.keys()


def test_the_record_has_the_commit_and_whether_it_is_dirty(tmp_path: Path) -> None:
    """The record of a script kept in git names the commit, and says whether the script was changed after it."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", str(tmp_path)]
    (tmp_path / "train.py").write_text(
        "import sys\nimport trainlab\nwith trainlab.init(run_dir=sys.argv[1], progress=False): pass\n"
    )
    for command in (["init", "-q"], ["add", "train.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    for run_dir, dirty in ((tmp_path / "clean", False), (tmp_path / "dirty", True)):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, tmp_path / "train.py", run_dir], check=True, env=environment)
        told = json.loads((run_dir / "run.json").read_text())
        assert told["starts"][0]["git"] == {"commit": commit, "dirty": dirty}
        assert (told["git"]["commit"], told["git"]["dirty"], told["git"]["problem"]) == (commit, dirty, None)
        with (tmp_path / "train.py").open("a") as script:
            script.write("# changed\n")


def test_fields_of_the_record_are_merged(tmp_path: Path) -> None:
    """What was written stays, a resume included, until it is written again."""
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        folder.write_record(seed=3, versions={"torch": "2"}, extra=Path("x"))
        folder.write_record(status="failed", error="ValueError: no")
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        told = record(folder)
        assert (told["seed"], told["extra"], told["status"], told["error"]) == (3, "x", "running", None)
        assert set(told["versions"]) == {"python", "platform", "torch"}
        assert told["starts"][0]["status"] == "failed"


def test_an_unknown_status_is_refused(tmp_path: Path) -> None:
    """A status is one of four words, so that programs can ask for it."""
    words = "one of running, finished, failed, interrupted"
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder, pytest.raises(InvalidValueError, match=words):
        folder.write_record(status="done")


@pytest.mark.parametrize("content", ["", "[]", '{"starts": 3}', "\xff"])
def test_a_spoilt_record_is_an_error_that_names_it(tmp_path: Path, content: str) -> None:
    """A record that cannot be read is not overwritten; and the folder is not left locked."""
    (tmp_path / "run.json").write_bytes(content.encode("latin-1"))
    for _ in range(2):
        with pytest.raises(RunFolderError, match=r"run\.json"):
            RunFolder.open(name="digits", run_dir=tmp_path)
    assert (tmp_path / "run.json").read_bytes() == content.encode("latin-1")


def test_parameters_are_written_for_people_without_secrets(tmp_path: Path) -> None:
    """params.yaml has the parameters, and no password; writing it again replaces it."""
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        folder.write_params({"old": 1})
        folder.write_params({"hparams": {"lr": 0.5}, "wandb": {"api_key": "s3cr3t"}})
        text = folder.params_file.read_text()
    assert text == 'hparams:\n  lr: 0.5\nwandb:\n  api_key: "***"\n'
    assert not [entry for entry in tmp_path.iterdir() if entry.suffix == ".tmp"]


BEGUN_WITH = {
    "hparams": {"lr": 0.5, "layers": [{"width": 3}, {"width": 4}], "old": 1, "a: b": None, "same": [1, []]},
    "seed": 3,
}


def test_a_continued_run_keeps_its_parameters_and_names_what_differs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """params.yaml says what the run was begun with; what it goes on with instead is one warning, in log.txt too."""
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        folder.write_params(BEGUN_WITH)
    text = folder.params_file.read_text()
    hparams = {"lr": 0.25, "layers": [{"width": 3}, {"width": 5}], "new": {"x": 1}, "a: b": 1, "same": [1, []]}
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        folder.attach_log()
        folder.write_params({"hparams": hparams, "seed": 3})
        assert folder.params_file.read_text() == text
    (warning,) = caplog.records
    assert (warning.name, warning.levelname) == ("trainlab.runs", "WARNING")
    named = warning.getMessage().partition("They differ in: ")[2].removesuffix(".").split(", ")
    assert set(named) == {
        "hparams.lr",
        "hparams.layers[1].width",
        "hparams.old",
        "hparams.a: b",
        "hparams.new",
    }
    assert warning.getMessage() in folder.log_file.read_text()


def test_a_run_continued_with_its_own_parameters_is_not_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The order of the keys, a person's comments and another way to write the same are no difference, and stay."""
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        folder.write_params(BEGUN_WITH)
    text = "# the good one\n\n" + yaml.safe_dump(BEGUN_WITH, default_flow_style=True)
    folder.params_file.write_text(text)
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        folder.write_params(dict(reversed(BEGUN_WITH.items())))
        assert folder.params_file.read_text() == text
    assert not caplog.records


def test_a_continued_run_without_parameters_gets_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run that was stopped before its parameters were written has them after its next start."""
    RunFolder.open(name="digits", run_dir=tmp_path).close()
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        folder.write_params({"lr": 1})
        assert folder.params_file.read_text() == "lr: 1\n"
    assert not caplog.records


def test_a_file_that_cannot_be_replaced_is_named(tmp_path: Path) -> None:
    """A failed write is an error with the path, and leaves no half a file."""
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        (tmp_path / "params.yaml").mkdir()
        with pytest.raises(RunFolderError, match=r"params\.yaml cannot be written"):
            folder.write_params({"lr": 1})
        assert not list(tmp_path.glob(".params*"))


def test_the_log_gets_what_trainlab_logs_until_close(tmp_path: Path) -> None:
    """log.txt holds messages from INFO on, each once, until the end; the root logger is left alone."""
    root_handlers = list(logging.getLogger().handlers)
    logger = logging.getLogger("trainlab_test_log")
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        folder.attach_log(logger.name)
        folder.attach_log(logger.name)
        logger.getChild("data").info("read %d records", 3)
        logger.debug("not this")
    logger.warning("after close")
    lines = folder.log_file.read_text().splitlines()
    assert len(lines) == 1
    assert lines[0].endswith("INFO trainlab_test_log.data: read 3 records")
    assert logger.handlers == []
    assert logging.getLogger().handlers == root_handlers


@pytest.mark.parametrize("last_closes_first", [True, False])
def test_two_open_runs_do_not_share_their_messages(tmp_path: Path, last_closes_first: bool) -> None:
    """Each message is in one run's log: that of the run opened last, and once it is closed the one before."""
    logger = logging.getLogger("trainlab_test_logs")
    one, other = (RunFolder.open(name="digits", run_dir=tmp_path / name) for name in ("one", "other"))
    one.attach_log(logger.name)
    logger.info("first")
    other.attach_log(logger.name)
    logger.info("second")
    (other if last_closes_first else one).close()
    logger.info("third")
    (one if last_closes_first else other).close()
    logger.warning("fourth")
    logs = [[line.split()[-1] for line in folder.log_file.read_text().splitlines()] for folder in (one, other)]
    assert logs == ([["first", "third"], ["second"]] if last_closes_first else [["first"], ["second", "third"]])
    assert logger.handlers == []


@pytest.mark.parametrize("level", [logging.NOTSET, logging.INFO, logging.ERROR])
def test_the_loggers_level_is_put_back_after_the_last_run(tmp_path: Path, level: int) -> None:
    """A program's own logging is after its runs what it was before them, in whatever order they close."""
    logger = logging.getLogger("trainlab_test_level")
    logger.setLevel(level)
    one, other = (RunFolder.open(name="digits", run_dir=tmp_path / name) for name in ("one", "other"))
    for folder in (one, other):
        folder.attach_log(logger.name)
        assert logger.level == (level or logging.INFO)
    one.close()
    assert logger.level == (level or logging.INFO)
    other.close()
    assert logger.level == level


def test_a_level_chosen_during_a_run_stays(tmp_path: Path) -> None:
    """Closing a run does not undo what the user set meanwhile."""
    logger = logging.getLogger("trainlab_test_chosen")
    with RunFolder.open(name="digits", run_dir=tmp_path) as folder:
        folder.attach_log(logger.name)
        logger.setLevel(logging.DEBUG)
    assert logger.level == logging.DEBUG


def test_a_closed_folder_is_not_written(tmp_path: Path) -> None:
    """After close another process may own the folder, so each call that writes is refused."""
    folder = RunFolder.open(name="digits", run_dir=tmp_path)
    folder.close()
    for call in (lambda: folder.write_params({}), lambda: folder.write_record(seed=1), folder.attach_log):
        with pytest.raises(InvalidStateError, match="is closed"):
            call()


def test_a_secret_on_the_command_line_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key given as an option is masked in run.json; other options are there as they were."""
    arguments = ["train.py", "--api-key", "s3cr3t", "--token=s3cr3t", "--num-tokens", "64", "--lr=0.1"]
    monkeypatch.setattr(sys, "argv", arguments)
    with RunFolder.open(name="digits", run_dir=tmp_path / "run") as folder:
        told = record(folder)
    shown = ["train.py", "--api-key", "***", "--token=***", "--num-tokens", "64", "--lr=0.1"]
    assert told["command"] == shown
    assert "s3cr3t" not in json.dumps(told)


def test_run_folders_need_no_torch() -> None:
    """A program that only looks after runs starts without loading torch."""
    program = "import sys, trainlab.runs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_log_that_cannot_be_written_is_told_as_such(tmp_path: Path) -> None:
    """With a full disk the end of a local run names its log, and lets go of all: of the folder, and of both logs."""
    (tmp_path / "log.txt").symlink_to("/dev/full")
    (tmp_path / "run.json").write_text("{}")
    for _ in range(2):
        folder = RunFolder.open(name="digits", run_dir=tmp_path)
        folder.attach_log()
        folder.attach_log("digits")
        folder.attach_users_log()
        logging.getLogger("trainlab.test").info("lost")
        with pytest.raises(RunFolderError, match=r"log\.txt cannot be written: No space left on device"):
            folder.close()
        assert not logging.getLogger("trainlab").handlers and not logging.getLogger("digits").handlers
        assert logging.getLogRecordFactory() is logging.LogRecord


def test_a_lent_folder_is_the_owners(tmp_path: Path) -> None:
    """Who is lent a run's folder writes into its log once, and its end closes nothing of the owner's."""
    with RunFolder.open(name="digits", run_dir=tmp_path) as owner:
        lent = LentFolder(owner)
        assert (lent.path, lent.place, lent.params_file, lent.record) == (
            owner.path,
            owner.place,
            owner.params_file,
            owner.record,
        )
        lent.attach_users_log()
        owner.attach_users_log()
        lent.write_record(seed=3, status="failed")
        lent.close()
        logging.getLogger("digits").warning("once")
    assert (tmp_path / "log.txt").read_text().count("once") == 1
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["seed"] == 3 and told["status"] == "running"
