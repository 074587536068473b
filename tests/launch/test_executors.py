"""Jobs without SLURM: submitit's executors that stand for it on this machine."""

import io
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from tests.launch import programs
from tests.launch.launchers import until
from tests.slurm import submitted
from trainlab.errors import InvalidValueError, LaunchError, RankFailedError
from trainlab.launch import Platform, launch, launch_array
from trainlab.launch.job import JobHandle
from trainlab.launch.waiting import wait_visibly

PATIENCE = 120
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM", "SUBMITIT"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def run(function: object, *args: object, executor: str = "local", **options: object) -> JobHandle:
    return launch(function, *args, platform=Platform(device="slurm", executor=executor, **options))


@pytest.mark.slow
def test_the_local_executor_runs_ranks_as_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two ranks of a local job find each other, after the set-up, though the submitter is rank 7 of something else."""
    monkeypatch.setenv("RANK", "7")
    monkeypatch.setenv("TRAINLAB_RANK", "7")
    handle = run(submitted.whole_sum, 10, processes=2, folder=tmp_path / "job", setup=["export A=1", "echo set up $A"])
    assert handle.result(PATIENCE) == [(0, 2, 21.0, ""), (1, 2, 21.0, "")]
    assert "set up 1" in handle.logs() and "rank 1 is here" in handle.logs(1)
    assert handle.state == "COMPLETED" and handle.folder == tmp_path / "job"
    again = JobHandle.load(tmp_path / "job")
    assert again.result() == handle.result() and again.job_id == handle.job_id
    with pytest.raises(InvalidValueError, match="between 0 and 1"):
        handle.logs(2)


@pytest.mark.slow
def test_a_local_job_is_requeued(tmp_path: Path) -> None:
    """The signal that announces the end starts a local job again, as it would a job of SLURM."""
    assert run(submitted.signal_itself, signal.SIGUSR2, 1).result(PATIENCE) == [1]


@pytest.mark.slow
def test_a_local_job_can_be_cancelled_from_elsewhere(tmp_path: Path) -> None:
    """Another process finds a local job by its folder, cancels it, and the submitter sees that."""
    handle = run(submitted.wait_for_ever, folder=tmp_path / "job", setup=["true"])
    assert any("waiting" in handle.logs() for _ in handle.watch(PATIENCE))
    program = f"""
from trainlab.launch.job import JobHandle
from trainlab.launch.waiting import wait_visibly
handle = JobHandle.load({str(tmp_path / "job")!r})
print(handle.state)
handle.cancel()
print(handle.wait(200))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["RUNNING", "CANCELLED"], done.stderr
    with pytest.raises(LaunchError, match="was cancelled"):
        handle.result(PATIENCE)


@pytest.mark.slow
def test_errors_of_local_jobs_are_told(tmp_path: Path) -> None:
    """A rank that fails, and a result that cannot be sent, are told with the rank and the cause."""
    failing = run(submitted.fail_on, 1, processes=2)
    unsendable = run(submitted.lock)
    with pytest.raises(RankFailedError, match="Rank 1 of 2 failed.*a mistake on rank 1") as caught:
        failing.result(PATIENCE)
    assert caught.value.rank == 1
    with pytest.raises(RankFailedError, match="returned cannot be sent.*lock"):
        unsendable.result(PATIENCE)


@pytest.mark.slow
def test_a_local_array_has_a_folder_for_each_job(tmp_path: Path) -> None:
    """A sweep that is tried out on this machine gives handles in order, and a line on the terminal as it goes."""
    platform = Platform(device="slurm", executor="local", folder=tmp_path / "sweep")
    go = tmp_path / "go"
    handles = launch_array(
        programs.square_later, [{"number": number, "go": str(go)} for number in (2, 5)], platform=platform
    )
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=200)
    title = f"Jobs {handles[0].job_id} to {handles[1].job_id} (square_later): "

    def let_go() -> None:
        try:
            told = re.compile(rf"{re.escape(title)}2 RUNNING · \d:\d\d:\d\d")
            until(lambda: told.search(terminal.getvalue()) is not None, terminal.getvalue)
        finally:
            go.touch()

    with ThreadPoolExecutor(1) as beside:
        seen = beside.submit(let_go)
        assert wait_visibly(handles, console) == ["COMPLETED"] * 2
        seen.result()
    assert terminal.getvalue().rstrip().endswith(f"{title}2 COMPLETED")
    assert [handle.result() for handle in handles] == [[4], [25]]
    assert [handle.folder for handle in handles] == [tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"]


def test_the_debug_executor_runs_in_this_process(tmp_path: Path) -> None:
    """A job for debugging is over when it was submitted, ran in this very process, and leaves its result."""
    before = dict(os.environ)
    handle = run(os.getpid, executor="debug", folder=tmp_path / "job")
    assert handle.state == "COMPLETED" and handle.result() == [os.getpid()]
    assert JobHandle.load(tmp_path / "job").result() == [os.getpid()]
    failed = run(submitted.square, 3, executor="debug")
    with pytest.raises(RankFailedError, match="three is not liked"):
        failed.result()
    assert dict(os.environ) == before
    with pytest.raises(InvalidValueError, match="one rank, this process. Received: 2 ranks"):
        run(os.getpid, executor="debug", processes=2)


def test_without_slurm_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without sbatch is told of, with what to do in its place."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LaunchError, match="no sbatch on the PATH.*executor='local'"):
        run(os.getpid, executor="slurm")
    assert not (tmp_path / "runs").exists()


def test_without_submitit_it_is_said_how_to_install_it() -> None:
    """Submitting needs a package that trainlab itself does without, and which the error names."""
    program = """
import sys
sys.modules["submitit"] = None
from trainlab.launch import Platform, launch
launch(print, platform=Platform(device="slurm"))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "MissingDependencyError" in done.stderr and "pip install 'trainlab[slurm]'" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extra": {"--partition": "low"}}, "Use partition"),
        ({"extra": {"ntasks-per-node": 2}}, "Use processes"),
        ({"extra": {"tasks_per_node": 2}}, "Use processes"),
        ({"extra": {"wait": True}}, "Use wait"),
        ({"extra": {"export": "NONE"}}, "Use setup"),
        ({"time": 1, "signal_lead": 60}, "would come at the start.*time=1 "),
        ({"time": "0:59", "signal_lead": 90}, "would come at the start"),
        ({"folder": Path("100%")}, "reads a % in a job's folder"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, object], words: str) -> None:
    """What sbatch would be told twice, or what would end a job at its start, is an error that says what to use."""
    with pytest.raises(InvalidValueError, match=words):
        run(os.getpid, executor="local" if "time" in options or "folder" in options else "slurm", **options)


def test_other_options_of_sbatch_are_handed_on() -> None:
    """What trainlab leaves to sbatch, such as a dependency, is asked for as it stands."""
    from trainlab.launch.slurm_options import slurm_parameters

    platform = Platform(device="slurm", extra={"dependency": "singleton"})
    assert slurm_parameters(platform, "job")["additional_parameters"]["dependency"] == "singleton"


@pytest.mark.slow
def test_the_submitters_run_is_not_the_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """TRAINLAB_RUN_DIR of the submitting process names its own run; the job trains in the job's folder."""
    monkeypatch.setenv("TRAINLAB_RUN_DIR", str(tmp_path / "mine"))
    (trained,) = run(submitted.train, 2, folder=tmp_path / "job").result(PATIENCE)
    assert trained["folder"] == str(tmp_path / "job")
    assert os.environ["TRAINLAB_RUN_DIR"] == str(tmp_path / "mine")


@pytest.mark.slow
def test_used_up_requeues_are_told_with_the_checkpoint(tmp_path: Path) -> None:
    """Who waits for a job that may not be requeued again hears so, and where its newest checkpoint is."""
    handle = run(submitted.train, 12, 5, folder=tmp_path / "job", max_requeues=0)
    assert any("waits at 5" in handle.logs() for _ in handle.watch(PATIENCE))
    ranks = [one for one in psutil.Process(int(handle.job_id)).children(recursive=True) if not one.children()]
    for rank in ranks:
        rank.send_signal(signal.SIGUSR2)
    with pytest.raises(RankFailedError, match="max_requeues=0 is used up") as caught:
        handle.result(PATIENCE)
    assert f"newest checkpoint: {tmp_path / 'job' / 'checkpoints' / 'batch-0000006'}" in str(caught.value)
    assert "Uncompleted" not in str(caught.value)


@pytest.mark.slow
def test_a_function_of_a_script_is_sent_as_it_is(tmp_path: Path) -> None:
    """A script without a guard submits its own decorated function, which runs as it was though the script changes."""
    script = tmp_path / "script.py"
    script.write_text("""
import sys
import beside
from pathlib import Path
from trainlab.launch import Platform, on

@on(Platform(device="slurm", executor="local"))
def answer(number):
    return beside.double(number)

handle = answer(21)
Path(__file__).write_text("raise SystemExit('the script was run again')")
print(handle.result(100))
""")
    (tmp_path / "beside.py").write_text("def double(number):\n    return 2 * number\n")
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.stdout == "[42]\n", done.stderr


def test_a_run_of_time_is_understood() -> None:
    """Each of SLURM's ways to write a time limit means the minutes that sbatch would take it for."""
    from trainlab.launch.slurm_options import slurm_parameters

    forms = {30: 30, "30": 30, "30:10": 31, "1:30:00": 90, "1-12": 2160, "1-12:30": 2190, "1-12:30:01": 2191}
    read = {form: slurm_parameters(Platform(device="slurm", time=form), "job")["time"] for form in forms}
    assert read == forms
    assert slurm_parameters(Platform(device="slurm"), "job")["time"] is None
