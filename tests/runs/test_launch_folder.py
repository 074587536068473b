"""The folders of the runs of one launch: new ones in its first attempt, the same ones in the later."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from trainlab.errors import RunFolderError
from trainlab.runs import RunFolder, launch_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _command(monkeypatch: pytest.MonkeyPatch) -> None:
    """All processes here have been started by the same command."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


def opened(root: Path, attempt: int, launch: str | None = "night", **arguments: Any) -> RunFolder:
    """A run of a launch."""
    return RunFolder.open(name="digits", root=root, launch_id=launch, attempt=attempt, **arguments)


def path_of(root: Path, attempt: int, launch: str = "night") -> Path:
    """The folder of a run of a launch that has ended."""
    with opened(root, attempt, launch) as folder:
        return folder.path


def starts(path: Path) -> list[dict[str, Any]]:
    """The starts that a run's record tells of."""
    return list(json.loads((path / "run.json").read_text())["starts"])


@contextmanager
def other_process(root: Path, attempt: int) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """Another process that has a run of the launch open, and the run's folder."""
    program = [sys.executable, "-m", "tests.runs.launched_holder", str(root), str(attempt)]
    with subprocess.Popen(program, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_a_launchs_folder_has_its_id_in_its_name(tmp_path: Path) -> None:
    """The runs of a launch can be told by their names: a date, the id, and from the second on a number."""
    paths = [path_of(tmp_path, 0) for _ in range(3)]
    names = [re.sub(r"^\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d_", "", path.name) for path in paths]
    assert names == ["night", "night-2", "night-3"]
    assert {path.parent for path in paths} == {tmp_path / "digits"}


def test_the_record_says_which_launch_and_attempt_a_start_was_of(tmp_path: Path) -> None:
    """Whoever reads run.json sees how often a launch started the run; a start without a launch has none."""
    path = path_of(tmp_path, 0)
    path_of(tmp_path, 3)
    opened(tmp_path, 0, None, run_dir=path).close()
    assert [(start.get("launch_id"), start.get("attempt")) for start in starts(path)] == [
        ("night", 0),
        ("night", 3),
        (None, None),
    ]


def test_a_later_attempt_goes_on_with_its_runs_in_order(tmp_path: Path) -> None:
    """A program that opens several runs of a name finds each again, however far each attempt came."""
    first, second, third = [path_of(tmp_path, 0) for _ in range(3)]
    assert path_of(tmp_path, 1) == first
    assert [path_of(tmp_path, 2) for _ in range(3)] == [first, second, third]
    assert path_of(tmp_path, 2) not in (first, second, third)


def test_more_than_nine_runs_of_a_launch_keep_their_order(tmp_path: Path) -> None:
    """The tenth run is the tenth again, although "-10" sorts before "-2"."""
    paths = [path_of(tmp_path, 0) for _ in range(11)]
    assert [path_of(tmp_path, 1) for _ in range(11)] == paths


def test_only_a_run_of_an_earlier_attempt_goes_on_by_itself(tmp_path: Path) -> None:
    """A run says whether it is to be resumed: a new one is not, be it in a later attempt, and one gone on with is."""
    with opened(tmp_path, 0) as folder:
        assert not folder.resumes
    with opened(tmp_path, 1) as folder:
        assert folder.resumes and folder.continues and folder.told["resumes"]
    with opened(tmp_path, 1) as folder:
        assert not folder.resumes and not folder.continues


def test_a_fresh_launch_takes_no_folder_that_is_there(tmp_path: Path) -> None:
    """Two programs that are started side by side with one id, in their first attempt, do not share a folder."""
    with opened(tmp_path, 0) as one, opened(tmp_path, 0) as other:
        assert one.path != other.path


@pytest.mark.parametrize("other", ["nigh", "night-2", "night.0", "fortnight", "ni+ght"])
def test_another_launchs_run_is_left_alone(tmp_path: Path, other: str) -> None:
    """An id that looks like another one's is another launch."""
    before = path_of(tmp_path, 0, other)
    assert path_of(tmp_path, 1) != before
    assert path_of(tmp_path, 1, other) == before


def test_a_run_of_another_name_is_left_alone(tmp_path: Path) -> None:
    """Each of a program's names has its runs."""
    path_of(tmp_path, 0)
    with RunFolder.open(name="letters", root=tmp_path, launch_id="night", attempt=1) as folder:
        assert folder.path.parent.name == "letters" and not folder.resumes


def test_a_folder_without_a_record_is_no_run(tmp_path: Path) -> None:
    """A process that was killed before it wrote anything does not stop the next one."""
    path = path_of(tmp_path, 0)
    (path / "run.json").unlink()
    assert path_of(tmp_path, 1) != path


def test_a_damaged_record_is_not_passed_over(tmp_path: Path) -> None:
    """A run is not begun anew in silence because its record cannot be read."""
    (path_of(tmp_path, 0) / "run.json").write_text("{")
    with pytest.raises(RunFolderError, match="record cannot be read"):
        opened(tmp_path, 1)


def test_a_run_begun_by_another_command_is_not_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of two programs of a batch job that differ in an argument, neither trains in the other's folder."""
    mine = path_of(tmp_path, 0, "slurm-7")
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "1"])
    of_lr = path_of(tmp_path, 1, "slurm-7")
    assert of_lr != mine
    assert str(mine) in caplog.text and "--lr" in caplog.text
    caplog.clear()
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert path_of(tmp_path, 2, "slurm-7") == mine
    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "1"])
    assert path_of(tmp_path, 2, "slurm-7") == of_lr
    assert not caplog.text


def test_programs_of_a_batch_job_may_come_in_another_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two srun commands of one script, side by side, each go on with their own run, whichever comes first."""

    def side_by_side(attempt: int, *seeds: str) -> dict[str, Path]:
        with ExitStack() as held:
            paths = {}
            for seed in seeds:
                monkeypatch.setattr(sys, "argv", ["train.py", "--seed", seed])
                paths[seed] = held.enter_context(opened(tmp_path, attempt, "slurm-7")).path
            return paths

    begun = side_by_side(0, "1", "2")
    assert side_by_side(1, "2", "1") == begun == side_by_side(2, "1", "2")
    assert begun["1"] != begun["2"] and not caplog.text


def test_a_command_given_twice_goes_on_in_its_order(tmp_path: Path) -> None:
    """Where the first run of a command had finished and the second had not, each is found again by its turn."""
    with opened(tmp_path, 0, "slurm-7") as first:
        first.write_record(status="finished")
    with opened(tmp_path, 0, "slurm-7") as second:
        second.write_record(status="interrupted")
    assert [path_of(tmp_path, 1, "slurm-7") for _ in range(2)] == [first.path, second.path]


def test_a_later_attempt_with_nothing_to_go_on_with_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run that begins anew in a later attempt is warned of, but not one more beside those that went on."""
    path_of(tmp_path, 0, "elsewhere")
    path_of(tmp_path, 1)
    assert "A new run begins in attempt 1 of launch night" in caplog.text and str(tmp_path / "digits") in caplog.text
    caplog.clear()
    path_of(tmp_path, 1)
    assert not caplog.text


def test_a_launch_is_of_one_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch's run is gone on with by whichever node has its chief now, though each has arguments of its own."""
    mine = path_of(tmp_path, 0)
    monkeypatch.setattr(sys, "argv", ["train.py", "--node-rank", "1"])
    assert path_of(tmp_path, 1) == mine


def test_a_given_folder_is_the_users(tmp_path: Path) -> None:
    """A run_dir is used as ever, and goes on by itself in a later attempt of the same launch alone."""
    opened(tmp_path, 0, run_dir=tmp_path / "mine").close()
    with opened(tmp_path, 1, run_dir=tmp_path / "mine") as folder:
        assert folder.continues and folder.resumes
    with opened(tmp_path, 1, launch="another", run_dir=tmp_path / "mine") as folder:
        assert folder.continues and not folder.resumes
    assert not (tmp_path / "digits").exists()


def test_a_folder_of_the_launchers_choice_may_hold_its_files(tmp_path: Path) -> None:
    """A job's folder is the run's folder, with the job's files in it, and goes on by itself in a later attempt."""
    folder = tmp_path / "job"
    (folder / "slurm").mkdir(parents=True)
    with opened(tmp_path, 0, run_dir=folder, is_launchers=True) as run:
        assert run.path == folder and not run.resumes
    with opened(tmp_path, 1, run_dir=folder, is_launchers=True) as run:
        assert run.path == folder and run.resumes


def test_kill_9_is_seen_in_the_record(tmp_path: Path) -> None:
    """A start that was killed is not told as one that ended well, or that a person stopped."""
    with other_process(tmp_path, 0) as (process, path):
        process.send_signal(signal.SIGKILL)
        process.wait()
    with opened(tmp_path, 1) as folder:
        assert folder.path == path
        assert [start["status"] for start in starts(path)] == ["crashed", "running"]


def test_a_dying_process_of_an_earlier_attempt_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed and not gone yet does not make the next attempt fail, or begin anew."""
    with other_process(tmp_path, 0) as (process, path):
        waits: list[float] = []

        def wait(seconds: float) -> None:
            waits.append(seconds)
            process.kill()
            process.wait()

        monkeypatch.setattr(launch_folder.time, "sleep", wait)
        with opened(tmp_path, 1) as folder:
            assert folder.path == path
        assert waits


def test_a_process_of_an_earlier_attempt_that_lives_on_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two attempts never train side by side: who still holds the run is told."""
    monkeypatch.setattr(launch_folder, "_PATIENCE_SECONDS", 0.0)
    with (
        other_process(tmp_path, 0) as (process, _),
        pytest.raises(RunFolderError, match=f"held by process {process.pid}"),
    ):
        opened(tmp_path, 1)


def test_two_processes_of_an_attempt_share_the_runs_out(tmp_path: Path) -> None:
    """Of programs that are started again side by side, each goes on with a run of its own."""
    first, second = path_of(tmp_path, 0), path_of(tmp_path, 0)
    with other_process(tmp_path, 1) as (_, taken), opened(tmp_path, 1) as folder:
        assert (taken, folder.path) == (first, second)
