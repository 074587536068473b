import json
import os
import pty
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import trainlab
from tests.checkpoint.samples import rewrite
from tests.launch.launchers import until
from trainlab.checkpoint import Checkpoint, CheckpointWriter, Entry, Retention, Snapshot
from trainlab.checkpoint.pruning import run_kept_from_starting
from trainlab.cli import main
from trainlab.errors import RunFolderError
from trainlab.runs import RunFolder
from trainlab.storage import Store, open_store

ROOT = Path(__file__).parents[2]
LOSSES = (0.5, 0.125, float("nan"), 0.25)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))


def fill(store: Store) -> None:
    """Write four checkpoints, each validated."""
    writer = CheckpointWriter(store, mode="sync", retention=Retention(keep_last=None))
    tied = torch.ones(2, 3)
    model = {"w": tied, "tied": tied, "c": torch.zeros(5, dtype=torch.complex64), "n": torch.tensor(1)}
    for epoch, loss in enumerate(LOSSES, 1):
        progress: dict[str, Any] = {"batches_trained": 10 * epoch, "epochs_trained": epoch}
        progress.update(last_validation_batch=10 * epoch, validation_metrics={"loss": loss})
        snapshot = Snapshot(
            weights={"model": {"0": model}, "ema": {"0": {"w": tied}}},
            state={"moment": torch.zeros(7)},
            details={"progress": progress, "hparams": {"lr": 1e-3, "sizes": (1, 2)}, "trial_class": "digits:Trial"},
        )
        writer.start(snapshot, Entry.of(writer.next_name(10 * epoch), 0, progress), wait=True)
        assert writer.settle()


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """The checkpoints of a run."""
    folder = tmp_path / "run" / "checkpoints"
    fill(open_store(folder))
    return folder


@pytest.fixture
def mixed(checkpoints: Path) -> Path:
    """The same, with a damaged one, an unfinished one, one of another name, and folders of others."""
    flip(checkpoints / "batch-0000020" / "ema.safetensors")
    (checkpoints / "batch-0000050").mkdir()
    (checkpoints / "batch-0000050" / "state.json").touch()
    (checkpoints / "batch-0000050" / ".unfinished").touch()
    trainlab.save_checkpoint({}, checkpoints / "by hand")
    (checkpoints / "notes").mkdir()
    (checkpoints / "foreign").mkdir()
    (checkpoints / "foreign" / "manifest.json").write_text("{}")
    return checkpoints


def flip(file: Path) -> None:
    """Change the last bit of a file."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def names(folder: Path) -> list[str]:
    """What is in a folder."""
    return sorted(entry.name for entry in folder.iterdir())


class Answers:
    """Runs commands, and gives what they say."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str | Path, status: int = 0) -> str:
        assert main(["checkpoint", *map(str, arguments)]) == status
        output, errors = self._capsys.readouterr()
        assert bool(errors) == (status == 2), errors
        return output or errors

    def of_json(self, *arguments: str | Path, status: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", status=status))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Answers:
    """A command that is run, and answers."""
    return Answers(capsys)


def test_list_shows_a_runs_checkpoints_in_their_order(mixed: Path, run: Answers) -> None:
    """A run's folder, or that of its checkpoints, lists all there are, the damaged and unfinished ones last."""
    (mixed / "batch-0000020" / "model.safetensors").unlink()
    text = run("list", mixed.parent)
    assert run("list", mixed) == text
    lines = text.splitlines()
    assert [line.split("  ")[0] for line in lines[1:-1]] == [
        *("batch-0000010", "batch-0000030", "batch-0000040", "by hand", "batch-0000020", "batch-0000050")
    ]
    created = datetime.fromisoformat(Checkpoint.open(mixed / "batch-0000010").created).astimezone()
    assert f"{created:%Y-%m-%d %H:%M:%S}" in lines[1]
    assert lines[1].split()[1:3] == ["10", "1"]
    assert lines[1].endswith("loss=0.5")
    assert "unfinished" in lines[6]
    assert lines[7].endswith(
        "model.safetensors: it is missing. Use another checkpoint, or restore the file from a copy."
    )


def test_list_as_json_tells_the_same_for_programs(mixed: Path, run: Answers) -> None:
    """Programs get times as ISO 8601, sizes in bytes, and all numbers as standard JSON."""
    told = run.of_json("list", mixed)
    assert told["place"] == str(mixed)
    by_name = {one["name"]: one for one in told["checkpoints"]}
    assert by_name["batch-0000050"]["condition"] == "unfinished"
    assert by_name["by hand"]["batches_trained"] == 0
    third = by_name["batch-0000030"]
    assert third["location"] == str(mixed / "batch-0000030")
    assert third["validation"] == {"loss": "NaN"}
    assert (third["sequence"], third["batches_trained"], third["epochs_trained"]) == (3, 30, 3)
    assert datetime.fromisoformat(third["created"]).tzinfo is not None
    assert third["size"] == sum(file.stat().st_size for file in (mixed / "batch-0000030").glob("*.safe*")) + len(
        (mixed / "batch-0000030" / "state.json").read_bytes()
    )
    assert third["condition"] == "not verified"


def test_list_reads_the_files_only_when_asked_to(mixed: Path, run: Answers) -> None:
    """One flipped bit is found by --verify, and not looked for without it."""

    def condition(*options: str) -> str:
        listed = run.of_json("list", mixed, *options)["checkpoints"]
        return str(next(one["condition"] for one in listed if one["name"] == "batch-0000020"))

    assert condition() == "not verified"
    assert condition("--verify") == "damaged"


@pytest.mark.parametrize("command", ["list", "verify", "show", "prune"])
def test_where_nothing_is_the_status_tells(tmp_path: Path, run: Answers, command: str) -> None:
    """A folder without checkpoints, or none at all, is one line on stderr and status 2."""
    options = ["--keep-last", "1", "--yes"] if command == "prune" else []
    for place in (tmp_path, tmp_path / "missing"):
        told = run(command, place, *options, status=2)
        assert told.startswith(f"There are no checkpoints. Received: {place}.")
        assert told.count("\n") == 1


def test_show_tells_what_a_checkpoint_holds(checkpoints: Path, run: Answers) -> None:
    """Trial, progress, hyperparameters, files, and every weight with its dtype and shape, tied ones counted once."""
    text = run("show", checkpoints / "batch-0000020")
    assert "trial class  digits:Trial" in text
    assert "  batches_trained        20\n" in text
    assert "  sizes  (1, 2)\n" in text
    assert "parameters   12," in text
    lines = text.splitlines()
    begin = lines.index("weights model '0' in model.safetensors")
    assert [line.split() for line in lines[begin + 1 : begin + 5]] == [
        ["c", "complex64", "[5]"],
        ["n", "int64", "[]"],
        ["tied", "float32", "[2,", "3]", "the", "same", "as", "w"],
        ["w", "float32", "[2,", "3]"],
    ]
    told = run.of_json("show", checkpoints / "batch-0000020")
    assert told["parameters"] == 12
    assert told["hparams"] == {"lr": 1e-3, "sizes": [1, 2]}
    assert told["weights"]["model"]["0"]["tensors"]["c"] == {"dtype": "complex64", "shape": [5]}
    assert (
        told["files"]["ema.safetensors"]["size"] == (checkpoints / "batch-0000020" / "ema.safetensors").stat().st_size
    )


def test_show_reads_no_data(checkpoints: Path, run: Answers) -> None:
    """Weights of any size are shown at once: changed data is not noticed, a changed header is."""
    file = checkpoints / "batch-0000010" / "model.safetensors"
    flip(file)
    run("show", file.parent)
    content = bytearray(file.read_bytes())
    content[2] = 255
    file.write_bytes(content)
    told = run("show", file.parent, status=2)
    assert "its header is said to have" in told and "model.safetensors" in told


def test_show_wants_one_checkpoint(checkpoints: Path, run: Answers) -> None:
    """Whoever asks for a run is told the path of its newest checkpoint."""
    assert f"Pass one of them: {checkpoints / 'batch-0000040'}." in run("show", checkpoints.parent, status=2)


def test_verify_finds_what_is_damaged(mixed: Path, run: Answers) -> None:
    """Each checkpoint is told to be whole, or which file of it is damaged and why; the status tells programs."""
    lines = run("verify", mixed, status=1).splitlines()
    assert "batch-0000010  whole" in lines
    assert "by hand  whole" in lines
    [told] = [line for line in lines if line.startswith("batch-0000020  damaged: ")]
    assert "ema.safetensors" in told
    assert "the content" in told
    assert run("verify", mixed / "batch-0000010") == "batch-0000010  whole\n"
    assert "batch-0000020  damaged" in run("verify", mixed / "batch-0000020", status=1)
    assert run.of_json("verify", mixed, status=1)["whole"] is False
    assert run.of_json("verify", mixed / "by hand")["whole"] is True


def test_verify_tells_what_it_cannot_read(checkpoints: Path, run: Answers) -> None:
    """A checkpoint of a later version is not called whole."""
    rewrite(checkpoints / "batch-0000010", lambda manifest: manifest.update(format_version=1000))
    assert "batch-0000010  unreadable: " in run("verify", checkpoints, status=1)


def test_verify_of_what_was_never_finished_finds_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder with only unfinished checkpoints is no success."""
    (tmp_path / "batch-0000001").mkdir()
    assert main(["checkpoint", "verify", str(tmp_path)]) == 2
    assert "There is no finished checkpoint" in capsys.readouterr().err


def test_prune_keeps_what_the_rules_keep(checkpoints: Path, run: Answers) -> None:
    """The last and the best stay, and the others are gone."""
    text = run("prune", checkpoints.parent, "--keep-last", "1", "--keep-best", "1", "--metric", "loss", "--yes")
    assert names(checkpoints) == ["batch-0000020", "batch-0000040"]
    assert [line.split()[0] for line in text.splitlines()] == ["remove", "keep", "remove", "keep", "Removed:"]


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        (["--keep-last", "3"], "batch-0000020 batch-0000030 batch-0000040"),
        (["--keep-last", "1", "--keep-every", "batch:20"], "batch-0000020 batch-0000040"),
        (["--keep-last", "1", "--keep-every", "epoch:3"], "batch-0000030 batch-0000040"),
        (
            ["--keep-last", "1", "--keep-best", "1", "--metric", "loss", "--larger-is-better"],
            "batch-0000010 batch-0000040",
        ),
    ],
)
def test_the_rules_of_prune(checkpoints: Path, run: Answers, options: list[str], kept: str) -> None:
    """Each rule keeps what it says; --dry-run says so and removes nothing."""
    told = run.of_json("prune", checkpoints, *options, "--dry-run")
    assert len(names(checkpoints)) == 4
    assert told["removed"] == []
    removed = run.of_json("prune", checkpoints, *options, "--yes")["removed"]
    assert removed == told["expired"]
    assert names(checkpoints) == kept.split()


def test_prune_leaves_what_it_cannot_judge(mixed: Path, run: Answers) -> None:
    """Damaged checkpoints, those of other names and other folders stay; unfinished ones go with --rubbish only."""
    (mixed / "batch-0000020" / "state.json").unlink()
    told = run.of_json("prune", mixed, "--keep-last", "1", "--yes")
    assert told["removed"] == ["batch-0000010", "batch-0000030"]
    assert told["left"] == {"batch-0000020": "damaged", "by hand": "its name is not one that runs give"}
    left = ["batch-0000020", "batch-0000040", "batch-0000050", "by hand", "foreign", "notes"]
    assert names(mixed) == left
    assert run.of_json("prune", mixed, "--rubbish", "--yes")["removed"] == ["batch-0000050"]
    assert names(mixed) == [name for name in left if name != "batch-0000050"]


def test_prune_leaves_what_is_being_read(checkpoints: Path, run: Answers) -> None:
    """A checkpoint that someone has open is told, and stays."""
    with Checkpoint.open(checkpoints / "batch-0000010"):
        assert "batch-0000010 is being read, and stays." in run("prune", checkpoints, "--keep-last", "1", "--yes")
    assert names(checkpoints) == ["batch-0000010", "batch-0000040"]


def test_prune_does_not_touch_a_run_that_goes_on(checkpoints: Path, run: Answers) -> None:
    """The run of a live process is refused, named with that process, and pruned once that has ended."""
    (checkpoints.parent / "run.json").write_text("{}")
    program = [sys.executable, "-m", "tests.runs.holder", str(checkpoints.parent)]
    with subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        for place in (checkpoints, checkpoints.parent):
            told = run("prune", place, "--keep-last", "1", "--yes", status=2)
            assert f"held by process {process.pid}" in told
        process.communicate()
    assert len(names(checkpoints)) == 4
    run("prune", checkpoints, "--keep-last", "1", "--yes")
    assert names(checkpoints) == ["batch-0000040"]


def test_a_run_does_not_start_while_it_is_pruned(checkpoints: Path) -> None:
    """A run that is started meanwhile is told who holds its folder, and can be started afterwards."""
    RunFolder.open(name="a", run_dir=checkpoints.parent.with_name("other")).close()
    (checkpoints.parent.with_name("other") / "run.json").rename(checkpoints.parent / "run.json")
    (checkpoints.parent / "lock").touch()
    with (
        run_kept_from_starting(open_store(checkpoints)),
        pytest.raises(RunFolderError, match=f"held by process {os.getpid()} on "),
    ):
        RunFolder.open(name="a", run_dir=checkpoints.parent)
    RunFolder.open(name="a", run_dir=checkpoints.parent).close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A terminal as standard input, and where its keys are pressed."""
    keys, screen = pty.openpty()
    with os.fdopen(screen, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield keys
    os.close(keys)


@pytest.mark.parametrize(("answer", "left"), [(b"y\n", 1), (b"n\n", 4), (b"\n", 4), (b"\x04", 4)])
def test_prune_asks_at_a_terminal(
    checkpoints: Path, terminal: int, answer: bytes, left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A person sees what goes and what stays before anything does, and only a yes removes it."""
    os.write(terminal, answer)
    assert main(["checkpoint", "prune", str(checkpoints), "--keep-last", "1"]) == 0
    output, errors = capsys.readouterr()
    assert "Remove 3 of them for ever? [y/N]" in errors
    assert output.startswith("remove  batch-0000010")
    assert len(names(checkpoints)) == left


def test_ctrl_c_at_the_question_ends_without_a_traceback(checkpoints: Path) -> None:
    """The program, run as it is by a person, removes nothing when it is interrupted, and ends with status 130."""
    keys, screen = pty.openpty()
    # What runs the tests in the background has them ignore Ctrl-C, and their children too.
    heeding = (
        "import runpy, signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "runpy.run_module('trainlab', run_name='__main__', alter_sys=True)"
    )
    program = [sys.executable, "-c", heeding, "checkpoint", "prune", str(checkpoints), "--keep-last", "1"]
    with subprocess.Popen(program, cwd=ROOT, stdin=screen, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        told = process.stderr.read(len("Remove 3 of them for ever? [y/N] "))
        # Python loses a signal that comes in the instant before it waits for a key, until the next one.
        until(lambda: psutil.Process(process.pid).status() == psutil.STATUS_SLEEPING, lambda: "it does not wait")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate()
    os.close(keys)
    os.close(screen)
    assert told.startswith(b"Remove 3")
    assert errors == b""
    assert process.returncode == 130
    assert len(names(checkpoints)) == 4


def test_a_reader_that_went_away_is_no_traceback(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`... verify | head -1` ends quietly."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert main(["checkpoint", "verify", str(checkpoints)]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "COMMAND"),
        (["lst"], "Did you mean list?"),
        (["list"], "PLACE"),
        (["list", "a", "--storage-option", "key"], "not KEY=VALUE"),
        (["prune", "a", "--yes"], "--keep-last is required"),
        (["prune", "a", "--yes", "--rubbish", "--keep-every", "batch:1"], "--keep-last is required"),
        (["prune", "a", "--keep-last", "1"], "no terminal to ask at"),
        (["prune", "a", "--keep-last", "1", "--yes", "--keep-best", "1"], "go together"),
        (["prune", "a", "--keep-last", "1", "--yes", "--metric", "loss"], "go together"),
        (["prune", "a", "--keep-last", "1", "--yes", "--larger-is-better"], "goes with --metric"),
        (["prune", "a", "--keep-last", "1", "--yes", "--keep-every", "records:1"], "not batch:N or epoch:N"),
        (["prune", "a", "--keep-last", "1", "--yes", "--keep-every", "epoch:0"], "not batch:N or epoch:N"),
    ],
)
def test_a_wrong_command_line_is_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be meant is an error of the command line, with status 2, before anything is looked at."""
    with pytest.raises(SystemExit) as raised:
        main(["checkpoint", *arguments])
    assert raised.value.code == 2
    assert told in capsys.readouterr().err


def test_wrong_values_are_told_in_one_line(checkpoints: Path, run: Answers) -> None:
    """A metric that no checkpoint has, a number that is too small, a single checkpoint to prune: nothing is removed."""
    prune = ["prune", checkpoints, "--yes", "--keep-last"]
    told = run(*prune, "1", "--keep-best", "1", "--metric", "accuracy", status=2)
    assert told.startswith("No checkpoint here was validated with this metric. Received: 'accuracy'. They have: loss.")
    assert "keep_last must be at least 1. Received: 0" in run(*prune, "0", status=2)
    one = run("prune", checkpoints / "batch-0000010", "--keep-last", "1", "--yes", status=2)
    assert "Pass the folder that it is in." in one
    assert len(names(checkpoints)) == 4


def test_all_commands_work_on_a_url(run: Answers) -> None:
    """Checkpoints on another file system are listed, shown, verified and pruned as those here."""
    url = f"memory://{uuid.uuid4()}/run"
    fill(open_store(f"{url}/checkpoints"))
    assert run("list", url).count("\n") == 5
    assert run("show", f"{url}/checkpoints/batch-0000010").startswith(f"{url}/checkpoints/batch-0000010\n")
    assert run("verify", url).count("whole") == 4
    run("prune", url, "--keep-last", "1", "--yes")
    assert [one["name"] for one in run.of_json("list", url)["checkpoints"]] == ["batch-0000040"]


def test_storage_options_reach_the_file_system(checkpoints: Path, run: Answers) -> None:
    """Options are passed on, those that are JSON as what they are; a folder of this machine takes none."""
    assert "storage_options" in run("list", checkpoints, "--storage-option", "anon=true", status=2)
    assert "'dirs'" in run("list", "memory://nothing", "--storage-option", 'dirs={"a": 1}', status=2)
    assert main(["checkpoint", "list", "memory://nothing", "--storage-option", "skip_instance_cache=true"]) == 2


def test_a_checkpoint_cannot_confuse_a_terminal(checkpoints: Path, run: Answers) -> None:
    """Control characters that someone put into a manifest are shown, and not sent to the terminal."""
    rewrite(checkpoints / "batch-0000010", lambda manifest: manifest.update(trial_class="a:\x1b[2J\n", created="\x1b"))
    text = run("show", checkpoints / "batch-0000010")
    assert "\x1b" not in text
    assert r"trial class  a:\x1b[2J\n" in text
    assert r"\x1b" in run("list", checkpoints)
