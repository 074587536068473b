"""launch: what a function finds on its rank, what comes back, and what is told where something goes wrong."""

import functools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.launch import programs
from tests.launch.launchers import handled
from tests.launch.programs import PAIR, Counter
from trainlab.errors import InvalidTypeError, LaunchError, RankFailedError
from trainlab.launch import Platform, launch, launch_script, on

ALONE = Platform(device="cpu")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_one_process_is_this_one() -> None:
    """With one process a function is called here, as without launch, so that a debugger stops in it."""
    before = set(psutil.Process().children(recursive=True))
    ((found),) = launch(programs.place, platform=Platform(device="cpu", seed=3))
    assert found["pid"] == os.getpid()
    assert (found["rank"], found["size"], found["local"], found["node"]) == (0, 1, (0, 1), (0, 1))
    assert found["device"] == "cpu"
    assert not set(psutil.Process().children(recursive=True)) - before


def test_one_process_may_be_handed_anything() -> None:
    """In this very process arguments and results are the caller's own objects, whether or not they can be pickled."""
    lock = threading.Lock()
    ((rank, args, kwargs),) = launch(programs.given, lock, key=lock, platform=ALONE)
    assert (rank, args[0], kwargs["key"]) == (0, lock, lock)


def test_an_error_of_the_one_process_comes_out_as_it_is() -> None:
    """With one process the caller gets the function's own exception, the same object."""
    error = KeyError("mine")

    def raises() -> None:
        raise error

    with pytest.raises(KeyError) as caught:
        launch(raises, platform=ALONE)
    assert caught.value is error


@pytest.mark.slow
def test_the_environment_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a launch that ended well, or whose results cannot be sent, the caller's environment is unchanged."""
    monkeypatch.setenv("TRAINLAB_TIMEOUT", "77")
    before, folder = dict(os.environ), os.getcwd()
    platform = Platform(device="cpu", timeout=5, seed=1, cpus_per_task=1)
    launch(programs.place, platform=platform)
    with pytest.raises(ZeroDivisionError):
        launch(lambda: 1 // 0, platform=platform)
    with pytest.raises(LaunchError, match=r"(?s)Rank \d of 2 .*cannot pickle '_thread.lock' object"):
        launch(programs.unpicklable, platform=PAIR)
    assert (dict(os.environ), os.getcwd()) == (before, folder)


def test_each_rank_finds_who_it_is() -> None:
    """Results come by rank, and each rank finds its number, its node and its group, whose ranks exchange, unasked."""
    platform = Platform(device="cpu", processes=3, ipc_groups=[[0, 2], [1]], timeout=60)
    found: Any = launch(programs.place, platform=platform)
    assert [rank["rank"] for rank in found] == [0, 1, 2]
    assert [rank["local"] for rank in found] == [(0, 3), (1, 3), (2, 3)]
    assert {(rank["size"], rank["node"], rank["device"]) for rank in found} == {(3, (0, 1), "cpu")}
    assert [rank["group"] for rank in found] == [2, 1, 2]
    assert [rank["total"] for rank in found] == [2.0, 1.0, 2.0]
    assert len({rank["pid"] for rank in found} | {os.getpid()}) == 4
    ((launched, attempt),) = {rank["launch"] for rank in found}
    assert launched and attempt == "0"


@pytest.mark.slow
def test_a_decorated_function_is_launched() -> None:
    """``@on`` makes each call of a function a launch, and keeps its name and the function itself."""
    assert programs.decorated(5, more=2) == [7, 8]
    assert programs.decorated.__name__ == "decorated"
    assert programs.decorated.function(5) == 5  # type: ignore[attr-defined]


@pytest.mark.slow
def test_all_kinds_of_callables_are_launched() -> None:
    """Partials, methods, and objects that can be called run on several ranks like functions."""
    assert launch(functools.partial(programs.given, 1, a=2), 3, b=4, platform=PAIR) == [
        (rank, (1, 3), {"a": 2, "b": 4}) for rank in (0, 1)
    ]
    assert launch(Counter(10).add, 5, platform=PAIR) == [15, 16]
    assert launch(Counter(20), 5, platform=PAIR) == [25, 26]


@pytest.mark.slow
def test_a_function_of_no_module_is_sent_by_value() -> None:
    """With cloudpickle installed, a lambda and what it has from around it are sent to other processes."""
    around = 40
    assert launch(lambda number: (number + around, programs.get_rank()), 2, platform=PAIR) == [(42, 0), (42, 1)]


@pytest.mark.slow
def test_ranks_are_seeded_alike() -> None:
    """With a seed all ranks draw the same numbers, in each launch; one process draws them too."""
    first = launch(programs.draw, platform=Platform(device="cpu", processes=2, seed=5))
    assert first == launch(programs.draw, platform=Platform(device="cpu", seed=5)) * 2


def test_what_cannot_be_sent_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments that no other process can get are an error that names the function, before anything is started."""
    with pytest.raises(LaunchError, match=r"given cannot be sent to other processes: .*Pass what can be pickled"):
        launch(programs.given, threading.Lock(), platform=PAIR)
    assert not list(Path(os.curdir).iterdir())


def test_only_what_can_be_called_is_launched() -> None:
    """What is no function, or no platform, is refused with what it is."""
    with pytest.raises(InvalidTypeError, match=r"launch runs a function\. Received: 3"):
        launch(3, platform=ALONE)  # type: ignore[arg-type]
    with pytest.raises(InvalidTypeError, match=r"platform is a trainlab\.launch\.Platform\. Received: 'cpu'"):
        on("cpu")  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_launch_in_a_rank_calls_in_place() -> None:
    """Inside a rank a launch is a call in it, and gives each the results of all: a launched program can be launched."""
    inner = [(rank, ("inner",), {}) for rank in (0, 1)]
    assert launch(programs.nested, platform=PAIR) == [inner, inner]


@pytest.mark.slow
def test_a_thread_may_launch() -> None:
    """Outside the main thread, where Python has no signal handlers, a launch works too."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.extend(launch(programs.given, platform=PAIR)))
    thread.start()
    thread.join()
    assert [rank for rank, _, _ in found] == [0, 1]


def test_the_first_error_comes_with_its_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    """An error names its rank and the user's own lines; where nothing was trained, it is not tried again."""
    platform = Platform(device="cpu", processes=2, max_restarts=5)
    with pytest.raises(RankFailedError, match=r"Rank 1 of 2 failed.*ValueError: a mistake of the user's") as caught:
        launch(programs.fail, 1, "error", platform=platform)
    error = caught.value
    assert (error.rank, error.exitcode) == (1, 1)
    assert error.traceback.startswith("Traceback (most recent call last):")
    assert "blunder(kind)" in error.traceback and error.traceback in f"{error}\n"
    assert "programs.py" in error.traceback.splitlines()[1]
    assert "started again" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kind", "exitcode", "told"),
    [
        pytest.param("status", 3, "status 3|SystemExit: 3", marks=pytest.mark.slow),
        pytest.param("text", 1, "no more data", marks=pytest.mark.slow),
        pytest.param("segv", -signal.SIGSEGV, "SIGSEGV", marks=pytest.mark.slow),
    ],
)
def test_every_bad_end_is_told(kind: str, exitcode: int, told: str) -> None:
    """A rank that leaves with a status or a text, or crashes, is named with how it ended, and not by what followed."""
    with pytest.raises(RankFailedError, match=told) as caught:
        launch(programs.fail, 0, kind, platform=Platform(device="cpu", processes=2, max_restarts=0))
    assert (caught.value.rank, caught.value.exitcode) == (0, exitcode)


@pytest.mark.slow
def test_what_ranks_say_is_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The chief's output is on the console, and that of each rank in its log in log_dir."""
    launch(programs.say, "words", platform=Platform(device="cpu", processes=2, log_dir=tmp_path / "logs"))
    out, err = capfd.readouterr()
    assert "words of rank 0" in out and "child of rank 0" in out and "trouble of rank 0" in err
    assert "rank 1" not in out + err
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").iterdir()}
    assert sorted(logs) == ["log.rank-0.txt", "log.rank-1.txt"]
    assert "words of rank 0" in logs["log.rank-0.txt"] and "trouble of rank 0" in logs["log.rank-0.txt"]
    assert all(f"{said} of rank 1" in logs["log.rank-1.txt"] for said in ("words", "trouble", "child"))


@pytest.mark.slow
def test_without_log_dir_the_logs_are_in_runs(tmp_path: Path) -> None:
    """Where there is no run and no log_dir, the ranks' logs are in a new folder of runs/, named after the function."""
    launch(programs.say, "words", platform=PAIR)
    (folder,) = (tmp_path / "runs" / "say").iterdir()
    assert sorted(path.name for path in folder.iterdir()) == ["log.rank-0.txt", "log.rank-1.txt"]


@pytest.mark.slow
def test_the_users_handlers_come_back() -> None:
    """After a launch signals are handled as the caller had it."""

    def mine(number: int, frame: Any) -> None:
        raise AssertionError("nobody has sent one")

    with handled(signal.SIGTERM, mine), handled(signal.SIGHUP, signal.SIG_IGN):
        with pytest.raises(RankFailedError):
            launch(programs.fail, 0, "error", platform=PAIR)
        assert signal.getsignal(signal.SIGTERM) is mine
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.slow
def test_a_script_is_launched_from_python(tmp_path: Path) -> None:
    """launch_script runs a file as the program of each rank, with its arguments."""
    script = tmp_path / "program.py"
    script.write_text(
        "import os, sys\n"
        "open(f'ran-{os.environ[\"RANK\"]}', 'w').write(f'{__name__} {sys.argv[1:]} {os.environ[\"WORLD_SIZE\"]}')\n"
    )
    assert launch_script(PAIR, script=script, argv=["--lr", "1"]) == 0
    assert [(tmp_path / f"ran-{rank}").read_text() for rank in (0, 1)] == ["__main__ ['--lr', '1'] 2"] * 2


def test_each_result_is_that_of_its_rank() -> None:
    """A rank that leaves with sys.exit() has returned None; the results of the others keep their places."""
    assert launch(programs.leave_early, "exit", platform=PAIR) == [None, "of rank 1"]


@pytest.mark.slow
def test_a_rank_that_ends_without_a_result_is_told() -> None:
    """Where a rank's process ends with status 0 before its function has returned, no results are made up."""
    with pytest.raises(RankFailedError, match="Rank 0 of 2 ended with status 0 before its function had returned"):
        launch(programs.leave_early, "_exit", platform=PAIR)


@pytest.mark.slow
def test_a_result_may_need_cloudpickle() -> None:
    """What only cloudpickle can send, such as a function made on the rank, comes back all the same."""
    assert all(callable(found) for found in launch(programs.unsendable, "lambda", platform=PAIR))


def test_a_log_dir_that_cannot_be_made_is_told_before_anything_starts(tmp_path: Path) -> None:
    """No rank is started where its output could not be kept as asked."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="log_dir cannot be made"):
        launch(programs.place, platform=Platform(device="cpu", processes=2, log_dir=tmp_path / "file" / "logs"))


@pytest.mark.slow
def test_results_outlive_logs_that_cannot_be_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the ranks returned is not lost because there is no place for what they said."""
    (tmp_path / "runs").write_text("")
    assert launch(programs.speak, platform=PAIR) == [0, 1]
    assert "cannot be kept" in caplog.text


@pytest.mark.slow
def test_launches_in_two_threads_do_not_mix() -> None:
    """Each of two launches at the same time has its own options, and the program's environment stays as it was."""
    before, found = dict(os.environ), {}

    def one(seed: int | None) -> None:
        found[seed] = launch(programs.seeded_at_all, platform=Platform(device="cpu", processes=2, seed=seed))

    threads = [threading.Thread(target=one, args=(seed,)) for seed in (7, None)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {7: ["7", "7"], None: [None, None]}
    assert dict(os.environ) == before
