"""Launching from where a program can come: files, modules, prompts and the command line."""

import os
import signal
from pathlib import Path

import pytest

from tests.distributed.ranks import free_port
from tests.launch.launchers import Launcher

FUNCTION = """
import os
from trainlab.distributed import get_rank
from trainlab.launch import Platform, launch
def mine(number):
    return number + get_rank()
"""
LAUNCH = 'launch(mine, 40, platform=Platform(device="cpu", processes=2))'
CALL = f'print("results:", {LAUNCH})\n'
GUARDED = f'{FUNCTION}\nif __name__ == "__main__":\n    {CALL}'
# As where it is not installed.
WITHOUT = 'import sys\nsys.modules["cloudpickle"] = None\n'
EXECUTED = f"""
import types
program = {FUNCTION + CALL!r}
exec(compile(program, "<cell>", "exec"))
"""


def say(command: list[str], folder: Path, *, stdin: str | None = None, status: int = 0) -> str:
    """Run an interpreter to its end, and give what it said."""
    with Launcher(command, folder, stdin=stdin) as launcher:
        assert launcher.wait() == status, launcher.said()
        assert launcher.left() == {"temporary files": [], "shared memory": []}
        return launcher.said()


@pytest.mark.parametrize("form", ["script", pytest.param("module", marks=pytest.mark.slow)])
def test_a_file_launches_its_own_function(form: str, tmp_path: Path) -> None:
    """A function of the script, or of the module after ``python -m``, runs on several ranks."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "mine.py").write_text(GUARDED)
    command = ["package/mine.py"] if form == "script" else ["-m", "package.mine"]
    assert "results: [40, 41]" in say(command, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["stdin", "-c", "exec"])
def test_a_prompt_launches_its_own_function(form: str, tmp_path: Path) -> None:
    """A function that was typed in, and is in no file, runs on several ranks where cloudpickle is installed."""
    program = EXECUTED if form == "exec" else FUNCTION + CALL
    command = ["-c", program] if form == "-c" else ["-"]
    assert "results: [40, 41]" in say(command, tmp_path, stdin=program if form != "-c" else None)


def test_a_prompt_without_cloudpickle_is_told_what_to_do(tmp_path: Path) -> None:
    """Where cloudpickle is missing, a function of no file is an error that says how to send it."""
    said = say(["-"], tmp_path, stdin=WITHOUT + FUNCTION + CALL, status=1)
    assert "LaunchError: mine cannot be sent to other processes: it is defined in a notebook or at a prompt" in said
    assert "pip install 'trainlab[notebook]'" in said


@pytest.mark.slow
def test_a_script_without_a_guard_is_told_what_to_do(tmp_path: Path) -> None:
    """A script that launches whenever it is imported is told of the guard, in place of processes without end."""
    (tmp_path / "unguarded.py").write_text(FUNCTION + CALL)
    said = say(["unguarded.py"], tmp_path, status=1)
    assert 'Put the call under `if __name__ == "__main__":`' in said
    assert "[40, 41]" not in said and "started again" not in said


@pytest.mark.slow
def test_a_decorated_function_of_a_script(tmp_path: Path) -> None:
    """``@on`` works on a function of the script itself, and at a prompt."""
    program = FUNCTION.replace("def mine", '@on(Platform(device="cpu", processes=2))\ndef mine')
    program = program.replace("import Platform", "import on, Platform")
    guarded = f'{program}\nif __name__ == "__main__":\n    print("results:", mine(40))\n'
    (tmp_path / "decorated.py").write_text(guarded)
    assert "results: [40, 41]" in say(["decorated.py"], tmp_path)
    assert "results: [40, 41]" in say(["-"], tmp_path, stdin=guarded)


@pytest.mark.slow
def test_torchrun_works_as_well(tmp_path: Path) -> None:
    """In a rank of torchrun's a launch calls the function there, once on each, and each has all results."""
    # As one text: two processes that write to one file by pieces may mix them.
    call = f'print("%s has %s" % (os.environ["RANK"], {LAUNCH}))'
    (tmp_path / "mine.py").write_text(GUARDED.replace(CALL, call))
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), "mine.py"]
    with Launcher(command, tmp_path) as launcher:
        assert launcher.wait() == 0, launcher.said()
        assert all(f"{rank} has [40, 41]" in launcher.said() for rank in (0, 1))


PROGRAM = """
import os, signal, sys
from trainlab.distributed import init_distributed
kind = sys.argv[1]
print("rank", os.environ["RANK"], "of", os.environ["WORLD_SIZE"], sys.argv, __name__, flush=True)
with init_distributed() as ranks:
    ranks.allgather(0)
    if ranks.rank == 1 and kind == "error":
        raise ValueError("a mistake of the user's")
    if ranks.rank == 1 and kind == "kill":
        os.kill(os.getpid(), signal.SIGABRT)
    if ranks.rank == 1 and kind == "status":
        sys.exit(3)
    ranks.allgather(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "status", "told"),
    [
        ("well", 0, ""),
        ("error", 1, "ValueError: a mistake of the user's"),
        ("status", 3, "Rank 1 of 2"),
        ("kill", 128 + signal.SIGABRT, "SIGABRT"),
    ],
)
def test_the_command_line_tells_how_a_script_ended(kind: str, status: int, told: str, tmp_path: Path) -> None:
    """``trainlab launch`` runs a script on each rank, keeps their logs, and ends as the first of them that failed."""
    (tmp_path / "program.py").write_text(PROGRAM)
    options = ["--device", "cpu", "--processes", "2", "--max-restarts", "0", "--log-dir", "logs"]
    said = say(["-m", "trainlab", "launch", *options, "program.py", kind, "--lr", "1"], tmp_path, status=status)
    assert "rank 0 of 2 ['program.py'" in said.replace(f"{tmp_path}{os.sep}", "") and "rank 1 of 2" not in said
    assert told in said
    logs = [(tmp_path / "logs" / f"log.rank-{rank}.txt").read_text() for rank in (0, 1)]
    assert all(f"rank {rank} of 2" in log and "'--lr', '1'] __main__" in log for rank, log in enumerate(logs))
    if kind == "error":
        assert said.rstrip().splitlines()[-1].startswith(("ValueError", "Raised on rank 1 of 2"))
        assert 'program.py", line' in said and "runpy" not in said.partition("Rank 1 of 2")[2]
