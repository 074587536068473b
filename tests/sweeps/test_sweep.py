"""run_parameter_sweep: each run once, in a process and a folder of its own, whatever happens meanwhile."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import trainlab
from tests.launch.launchers import is_gone
from tests.sweeps.programs import Training, train
from trainlab.cli.run_names import NamedRuns
from trainlab.errors import InvalidTypeError, InvalidValueError, RunFolderError, SweepError
from trainlab.runs.folder_lock import take_lock
from trainlab.sweeps import SweepResult, param_matrix, run_parameter_sweep
from trainlab.sweeps.pool import Job, Pool
from trainlab.sweeps.reading import read_members
from trainlab.sweeps.sweep import _ended
from trainlab.sweeps.sweep_folder import Entry

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("script.py")
PATIENCE = 200.0


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def until(happened: Callable[[], object], what: Callable[[], str] = lambda: "it does not happen") -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, what()
        threading.Event().wait(0.01)


def records(folder: Path) -> list[dict[str, Any]]:
    """What the runs of a sweep say of themselves, in order."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*/run.json"))]


@contextmanager
def started(*arguments: object) -> Iterator["subprocess.Popen[str]"]:
    """The script, in a group of its own."""
    with Path("output.txt").open("a") as output:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_each_run_has_a_process_and_a_folder_of_its_own(tmp_path: Path) -> None:
    """A sweep gives what each run returned in the order of its list, and where it is; none runs in this process."""
    matrix = param_matrix(depth=[1, 2], **{"optimizer.lr": [0.5, 0.25]})
    result = run_parameter_sweep(train, matrix, 2)
    assert isinstance(result, SweepResult) and len(result) == 4 and result.failed == ()
    assert [run.metrics["score"] for run in result] == [0.5, 0.25, 1.0, 0.5]
    assert [run.params for run in result] == matrix and {run.exitcode for run in result} == {0}
    assert [run.folder.name for run in result] == [
        f"{number:03d}_depth={depth},optimizer.lr={lr}"
        for number, (depth, lr) in enumerate([(1, 0.5), (1, 0.25), (2, 0.5), (2, 0.25)])
    ]
    assert result.folder.parent == tmp_path / "runs" / "train" and result.folder.name == f"sweep_{result.name}"
    pids = [record["pid"] for record in records(result.folder)]
    assert len({*pids, os.getpid()}) == 5
    assert [record["params"]["depth"] for record in records(result.folder)] == [1, 1, 2, 2]
    assert result.text() == "4 runs: 4 finished"


def test_finished_runs_are_left_alone_and_others_repeated(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A failure leaves the others going, is told with its folder at the end, and the same call repeats it alone."""
    matrix = [{"depth": 1}, {"depth": 2, "end": "when mended"}, {"depth": 3}]
    with pytest.raises(SweepError) as caught:
        run_parameter_sweep(train, matrix)
    assert isinstance(caught.value.result, SweepResult)
    (failed,) = caught.value.result.failed
    assert (failed.status, failed.exitcode) == ("failed", 1)
    assert failed.error.startswith("Traceback") and failed.reason == "ArithmeticError: depth 2 is too much"
    for told in ("2 finished, 1 failed", failed.reason, str(failed.folder)):
        assert told in str(caught.value)
    told = capfd.readouterr().err
    assert "001_depth=2,end=when-mended: failed" in told and "2 finished, 1 failed" in told
    monkeypatch.setenv("MENDED", "1")
    again = run_parameter_sweep(train, matrix)
    assert again.folder == caught.value.result.folder and [run.is_skipped for run in again] == [True, False, True]
    assert [run.metrics["score"] for run in again] == pytest.approx([0.1, 0.2, 0.3])
    starts = [[start["status"] for start in record["starts"]] for record in records(again.folder)]
    assert starts == [["finished"], ["failed", "finished"], ["finished"]]
    assert again.text() == "3 runs: 3 finished (2 before)"


@pytest.mark.parametrize("options", [{"keep_going": False}, {"fail_fast": True}])
def test_a_failure_can_end_the_sweep(options: dict[str, bool]) -> None:
    """With keep_going=False, or fail_fast=True, the first failure ends what runs, and starts nothing more."""
    matrix = [{"depth": depth, "end": "exit"} for depth in range(3)]
    with pytest.raises(SweepError, match=r"1 failed, 2 not started") as caught:
        run_parameter_sweep(train, matrix, **options)  # type: ignore[arg-type]
    assert isinstance(caught.value.result, SweepResult)
    assert [run.status for run in caught.value.result] == ["failed", "not started", "not started"]
    assert caught.value.result[0].exitcode == 3


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"list_of_params": []}, InvalidValueError, "an empty list"),
        ({"list_of_params": {"depth": [1, 2]}}, InvalidTypeError, "param_matrix"),
        ({"list_of_params": [1]}, InvalidTypeError, "1 as entry 0"),
        ({"experiment": len}, InvalidTypeError, "@trainlab.experiment"),
        ({"max_num_processes": 0}, InvalidValueError, "at least 1"),
        ({"num_gpus_per_process": 99}, InvalidValueError, "num_gpus_per_process=99"),
        ({"grace": -1}, InvalidValueError, "grace is"),
        ({"grace": float("nan")}, InvalidValueError, "grace is"),
        ({"keep_going": "no"}, InvalidTypeError, "keep_going is True or False. Received: 'no'"),
        ({"fail_fast": 1}, InvalidTypeError, "fail_fast is True or False"),
        ({"keep_going": True, "fail_fast": False}, InvalidValueError, "Pass one of them"),
        ({"name": "a/b"}, InvalidValueError, "'a/b'"),
        ({"output_dir": "s3://bucket/runs"}, InvalidValueError, "s3://bucket/runs"),
        ({"list_of_params": [{"output_dir": "s3://bucket/runs"}]}, InvalidValueError, "s3://bucket/runs"),
        ({"list_of_params": [{"output_dir": "a"}, {"output_dir": "b"}]}, InvalidValueError, "output_dir a, b"),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_starts(
    options: dict[str, Any], error: type[Exception], told: str
) -> None:
    """A mistake in the call is an error that says what is wrong, and leaves no run behind."""
    with pytest.raises(error, match=told):
        run_parameter_sweep(**{"experiment": train, "list_of_params": [{"depth": 1}], **options})
    assert not list(Path().rglob("run.json"))


def test_all_wrong_parameters_are_told_at_once() -> None:
    """One look at the error shows each entry of the list that cannot be used, by its place."""
    wrong = [{"depth": 1}, {"depth": "deep"}, {"dept": 3}, {"optimizer": {"lr": 1}}, {"end": "never"}]
    with pytest.raises(InvalidValueError, match="of 5 entries of the list 3 cannot be used") as caught:
        run_parameter_sweep(train, wrong)
    for told in ("entry 1: ", "'deep'", "entry 2: ", "dept", "entry 4: ", "never"):
        assert told in str(caught.value)
    assert not Path("runs").exists()


def test_a_changed_list_goes_on_under_its_name(caplog: pytest.LogCaptureFixture) -> None:
    """Runs are known by their parameters, in any order: new ones are added, and equal ones are runs of their own."""
    first = run_parameter_sweep(train, [{"depth": 1}, {"depth": 2}], name="mine")
    second = run_parameter_sweep(train, [Training(depth=9), {"depth": 2}, {"depth": 3}, {"depth": 2}], name="mine")
    assert [run.is_skipped for run in second] == [False, True, False, False]
    assert second.folder == first.folder and second[1].folder == first[1].folder
    assert [run.folder.name[:3] for run in second] == ["002", "001", "003", "004"]
    assert "1 of 4 entries of the sweep's list are there already" in caplog.text
    noted = json.loads((first.folder / "sweep.json").read_text())["runs"]
    assert {one["folder"] for one in noted} == {run.folder.name for run in [*first, *second]}


def test_a_run_of_other_values_is_not_taken_for_this_one() -> None:
    """Where a default has changed since, or the folder is another run's, no finished run is passed off as new."""
    result = run_parameter_sweep(train, [{"depth": 1}], name="mine")
    changed = trainlab.experiment(name="train", defaults={"optimizer.lr": 0.7})(train.main)
    with pytest.raises(RunFolderError, match=r"000 of this sweep.*optimizer.lr was 0.1 and is 0.7.*another name"):
        run_parameter_sweep(changed, [{"depth": 1}], name="mine")
    file = result[0].folder / "run.json"
    file.write_text(file.read_text().replace('"depth": 1', '"depth": 9'))
    with pytest.raises(RunFolderError, match=r"000 of this sweep.*depth was 9 and is 1"):
        run_parameter_sweep(train, [{"depth": 1}], name="mine")


def test_runs_are_known_again_without_their_list(tmp_path: Path) -> None:
    """Where sweep.json is lost, a finished run is found by what it was made with, and never taken for another one."""
    first = run_parameter_sweep(train, [{"depth": 1}, {"depth": 2, "token": "mine"}], name="mine")
    (first.folder / "sweep.json").unlink()
    wanted = [{"depth": 5}, {"depth": 2, "token": "yours"}, {"depth": 1}]
    second = run_parameter_sweep(train, wanted, name="mine")
    assert [run.is_skipped for run in second] == [False, False, True]
    assert second[2].folder == first[0].folder and [run.folder.name[:3] for run in second] == ["002", "003", "000"]
    assert [run.metrics["score"] for run in second] == pytest.approx([0.5, 0.2, 0.1])


def test_a_damaged_list_is_told_with_what_to_do() -> None:
    """Whatever sweep.json holds in place of its list, the error says how to go on, and that works."""
    first = run_parameter_sweep(train, [{"depth": 1}], name="mine")
    file = first.folder / "sweep.json"
    without_runs = json.dumps({**json.loads(file.read_text()), "runs": [{}]})
    for content in ("{", "{}", "[]", '{"format": 1}', '{"format": 1, "experiment": "x", "runs": []}', without_runs):
        file.write_text(content)
        with pytest.raises(RunFolderError, match="list cannot be read.*Remove this file"):
            run_parameter_sweep(train, [{"depth": 1}], name="mine")
    file.unlink()
    assert run_parameter_sweep(train, [{"depth": 1}], name="mine")[0].is_skipped


def test_a_damaged_run_is_not_taken_for_a_finished_one() -> None:
    """A record that says no more than "finished" is repeated; of one that cannot be read it is told what to do."""
    first = run_parameter_sweep(train, [{"depth": 1}], name="mine")
    (first[0].folder / "run.json").write_text('{"status": "finished", "starts": [{}]}')
    second = run_parameter_sweep(train, [{"depth": 1}], name="mine")
    assert not second[0].is_skipped and second[0].metrics["score"] == pytest.approx(0.1)
    (first[0].folder / "run.json").write_text("{")
    with pytest.raises(SweepError, match="damaged: (.|\n)*remove the folder before") as caught:
        run_parameter_sweep(train, [{"depth": 1}], name="mine")
    assert isinstance(caught.value.result, SweepResult) and caught.value.result[0].status == "damaged"
    shutil.rmtree(first[0].folder)
    assert run_parameter_sweep(train, [{"depth": 1}], name="mine")[0].metrics["score"] == pytest.approx(0.1)


def test_an_experiment_inside_of_a_function_is_told() -> None:
    """What no other process can find is an error that says where to define it, before there is a folder."""

    @trainlab.experiment
    def inner(params: dict[str, object]) -> None:
        """Is found by nobody."""

    with pytest.raises(InvalidValueError, match="defined inside of a function.*at the top level of a module"):
        run_parameter_sweep(inner, [{}])
    assert not Path("runs").exists()


def test_a_sweep_is_no_run_for_the_command_line() -> None:
    """Who asks `trainlab runs show` for a sweep's folder is told which command tells of its runs."""
    (folder := Path("sweep_mine")).mkdir()
    (folder / "sweep.json").write_text("{}")
    with pytest.raises(RunFolderError, match="sweep's, and not a run's.*`trainlab runs list sweep_mine`"):
        NamedRuns("runs", {}).found(str(folder))


def test_a_place_that_cannot_be_used_is_told_by_its_option() -> None:
    """Who names a file as the folder is told to choose another output_dir, which is what the option is called."""
    Path("taken").touch()
    with pytest.raises(RunFolderError, match="a file is in its place. Choose another output_dir"):
        run_parameter_sweep(train, [{"depth": 1}], output_dir="taken")


def test_secrets_are_in_no_file_of_a_sweep(tmp_path: Path) -> None:
    """A token among the parameters reaches the run, and none of its files nor the sweep's."""
    token = secrets.token_hex(8)  # which no diff of the code holds
    result = run_parameter_sweep(train, [{"token": f"{token}-a"}, {"token": f"{token}-b"}])
    assert len(result) == 2 and result[0].folder != result[1].folder
    for path in tmp_path.rglob("*"):
        assert token not in path.name and (path.is_dir() or token.encode() not in path.read_bytes()), path


def test_runs_that_differ_in_a_secret_are_not_the_same() -> None:
    """Each token has its run, in any order and call, and no other's result is taken for it."""
    mine = {"token": "first"}
    first = run_parameter_sweep(train, [mine], name="mine")
    second = run_parameter_sweep(train, [{"token": "second"}], name="mine")
    assert not second[0].is_skipped and second[0].folder != first[0].folder
    third = run_parameter_sweep(train, [{"token": "second"}, mine], name="mine")
    assert [(run.is_skipped, run.folder) for run in third] == [(True, second[0].folder), (True, first[0].folder)]
    unnamed = [run_parameter_sweep(train, [mine]) for _ in range(2)]
    assert unnamed[0].folder == unnamed[1].folder and unnamed[1][0].is_skipped


def test_a_run_of_an_earlier_call_says_so() -> None:
    """A sweep that ends at the first failure tells of the runs that an earlier call has left that it was that one."""
    killed, exits = {"depth": 1, "end": "killed"}, {"depth": 2, "end": "exit"}
    with pytest.raises(SweepError, match=r"crashed: was ended by SIGKILL"):
        run_parameter_sweep(train, [killed], name="mine")
    with pytest.raises(SweepError, match=r"000_?: crashed: in an earlier call"):
        run_parameter_sweep(train, [exits, killed], name="mine", keep_going=False)


def test_a_run_that_is_stopped_before_it_begins_is_interrupted(tmp_path: Path) -> None:
    """A process that Ctrl-C ends while it still imports the program is told as interrupted, without a traceback."""
    (member,) = read_members(train, [{"depth": 1}])
    entry = Entry(member, "000", tmp_path / "000")
    with Pool() as pool:
        pool.submit(Job(entry.key, train, member.params, entry.folder))
        pool.stop(PATIENCE)
        finished = pool.wait(PATIENCE)
    assert finished is not None
    run = _ended(entry, finished)
    assert (run.status, run.reason) == ("interrupted", "before it began")


def test_a_sweep_is_made_by_one_process_at_a_time(tmp_path: Path) -> None:
    """A second process that is started with the same sweep is told who makes it."""
    folder = run_parameter_sweep(train, [{"depth": 1}], name="mine").folder
    lock = take_lock(folder, folder)
    try:
        with pytest.raises(RunFolderError, match="sweep's folder"):
            run_parameter_sweep(train, [{"depth": 1}], name="mine")
    finally:
        lock.release()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_a_sweep_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    """Ctrl-C or SIGTERM lets the runs end, starts no other, and is the exit status; again, the sweep goes on."""
    folder = tmp_path / "wait" / "sweep_waiting"
    with started(tmp_path, "obeys", 3) as sweep:
        until(lambda: len(list(folder.glob("*/begun"))) == 2)
        sweep.send_signal(number)
        assert sweep.wait(PATIENCE) == (130 if number == signal.SIGINT else 143) or sweep.returncode == -number
    assert [record["status"] for record in records(folder)] == ["interrupted"] * 2
    assert f"{number.name}: nothing new is started" in Path("output.txt").read_text()
    (folder / "002_number=2").mkdir()
    (folder / "002_number=2" / "output.txt").touch()
    (folder / "002_number=2" / "begun").touch()
    with started(tmp_path, "obeys", 3) as sweep:
        assert sweep.wait(PATIENCE) == 0, Path("output.txt").read_text()
    statuses = [[start["status"] for start in record["starts"]] for record in records(folder)]
    assert statuses == [["interrupted", "finished"]] * 2 + [["finished"]]
    assert "3 runs: 3 finished" in Path("output.txt").read_text()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_a_sweep_at_once(tmp_path: Path) -> None:
    """Whoever cannot wait for runs that do not end presses Ctrl-C again."""
    folder = tmp_path / "wait" / "sweep_waiting"
    with started(tmp_path, "disobeys", 1) as sweep:
        until(lambda: list(folder.glob("*/begun")))
        sweep.send_signal(signal.SIGINT)
        until(lambda: "once more kills it" in Path("output.txt").read_text())
        sweep.send_signal(signal.SIGINT)
        assert sweep.wait(PATIENCE) in (130, -signal.SIGINT)
    (record,) = records(folder)
    assert record["starts"][-1]["status"] == "running"  # it was killed, and could not say so


def test_a_killed_sweep_leaves_nothing_and_goes_on(tmp_path: Path) -> None:
    """After kill -9 of the sweep its runs are gone too, and the same sweep makes each run exactly once."""
    folder = tmp_path / "wait" / "sweep_waiting"
    with started(tmp_path, "obeys", 2) as sweep:
        until(lambda: len(list(folder.glob("*/begun"))) == 2)
        sweep.kill()
    for mark in folder.glob("*/begun"):
        until(lambda mark=mark: is_gone(int(mark.read_text())))  # type: ignore[misc]
    with started(tmp_path, "obeys", 2) as sweep:
        assert sweep.wait(PATIENCE) == 0, Path("output.txt").read_text()
    statuses = [[start["status"] for start in record["starts"]] for record in records(folder)]
    assert statuses == [["crashed", "finished"]] * 2


@pytest.mark.slow
def test_a_sweep_can_be_made_inside_of_a_run(tmp_path: Path) -> None:
    """An experiment whose main function makes a sweep has it in its own folder."""
    with started(tmp_path, "inside") as sweep:
        assert sweep.wait(PATIENCE) == 0, Path("output.txt").read_text()
    (outer,) = (tmp_path / "inner").iterdir()
    assert json.loads((outer / "run.json").read_text())["metrics"] == {"finished": 2}
    assert len(records(outer / "runs" / "train" / "sweep_within")) == 2


@pytest.mark.slow
def test_a_sweep_on_import_is_told(tmp_path: Path) -> None:
    """A script that makes a sweep without `if __name__ == "__main__":` ends with an error that says what to do."""
    text = SCRIPT.read_text().replace('if __name__ == "__main__":', "if True:")
    (tmp_path / "unguarded.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "unguarded.py", str(tmp_path), "obeys", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1 and 'Put what runs it under `if __name__ == "__main__":`' in done.stderr
    assert "SweepError" not in done.stderr and len(list((tmp_path / "wait" / "sweep_waiting").glob("*/"))) <= 2
