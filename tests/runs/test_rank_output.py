"""Where the output of a rank goes: real processes, whose standard output and error are real files, pipes, terminals."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from trainlab.errors import RunFolderError
from trainlab.runs import RankOutput

ROOT = Path(__file__).parents[2]
BEGINNING = """
import logging, os, subprocess, sys
from pathlib import Path
from trainlab.runs import RankOutput
folder = Path({folder!r})
"""


def run(tmp_path: Path, program: str, **variables: str) -> str:
    """Run a program in a process of its own; what both its streams gave into captured.log."""
    output = tmp_path / "captured.log"
    with output.open("ab") as captured:
        done = subprocess.run(
            [sys.executable, "-c", BEGINNING.format(folder=str(tmp_path)) + program],
            cwd=ROOT,
            # As the launcher's ranks, which do not keep their lines back.
            env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
            stdout=captured,
            stderr=subprocess.STDOUT,
            check=False,
        )
    shown = output.read_bytes().decode()
    assert done.returncode == 0, shown
    return shown


def launched(tmp_path: Path, program: str) -> tuple[str, str]:
    """Run a program whose output is captured; what the launcher's file got, and what the run's."""
    shown = run(tmp_path, program, TRAINLAB_LOG=str(tmp_path / "captured.log"))
    run_log = tmp_path / "log.rank-1.txt"
    return shown, run_log.read_text() if run_log.exists() else ""


def copied(tmp_path: Path, program: str) -> tuple[str, str]:
    """Run a program whose console is copied; what was shown, and what the run's file got."""
    return run(tmp_path, program, TRAINLAB_CONSOLE_COPY="1"), (tmp_path / "log.rank-0.txt").read_text()


def test_captured_output_goes_on_in_the_runs_folder(tmp_path: Path) -> None:
    """All that a rank, its C code and its children print while the run is open is in the run's folder, in order."""
    program = """
print("before")
output = RankOutput.open(folder, 1)
print("printed")
os.write(2, b"written\\n")
subprocess.run(["echo", "of a child"], check=True)
print("warned", file=sys.stderr)
output.close()
print("after")
"""
    shown, in_run = launched(tmp_path, program)
    assert in_run == "before\nprinted\nwritten\nof a child\nwarned\n"
    assert shown == "after\n"


def test_what_was_printed_before_is_copied_once(tmp_path: Path) -> None:
    """A second run of a program gets what was printed since the first one closed, and nothing twice."""
    program = """
print("before")
for name in ("one", "two"):
    output = RankOutput.open(folder / name, 1)
    print("in", name)
    output.close()
    print("after", name)
"""
    launched(tmp_path, program)
    assert (tmp_path / "one" / "log.rank-1.txt").read_text() == "before\nin one\n"
    assert (tmp_path / "two" / "log.rank-1.txt").read_text() == "after one\nin two\n"


def test_a_later_process_adds_to_the_file(tmp_path: Path) -> None:
    """A continued run keeps what its earlier starts printed."""
    for number in (1, 2):
        (tmp_path / "captured.log").write_text("")
        launched(tmp_path, f"output = RankOutput.open(folder, 1); print({number}); output.close()")
    assert (tmp_path / "log.rank-1.txt").read_text() == "1\n2\n"


@pytest.mark.parametrize("variable", ["TRAINLAB_LOG", "TRAINLAB_CONSOLE_COPY"])
@pytest.mark.parametrize("last_closes_first", [True, False])
def test_of_two_open_runs_the_last_one_gets_the_output(tmp_path: Path, variable: str, last_closes_first: bool) -> None:
    """Whichever of two runs closes first, the other one gets what is printed then, and at the end neither."""
    first, then = ("two", "one") if last_closes_first else ("one", "two")
    program = f"""
outputs = {{name: RankOutput.open(folder / name, 1) for name in ("one", "two")}}
print("both open", flush=True)
outputs[{first!r}].close()
print("one open", flush=True)
outputs[{then!r}].close()
print("none open", flush=True)
"""
    value = str(tmp_path / "captured.log") if variable == "TRAINLAB_LOG" else "1"
    shown = run(tmp_path, program, **{variable: value})
    found = {name: (tmp_path / name / "log.rank-1.txt").read_text() for name in ("one", "two")}
    assert found["two"] == ("both open\n" if last_closes_first else "both open\none open\n")
    assert found["one"] == ("one open\n" if last_closes_first else "")
    assert shown.endswith("none open\n")


def test_a_childs_output_that_somebody_reads_is_left_to_them(tmp_path: Path) -> None:
    """A program that a rank starts and whose output it reads can open a run of its own without breaking that."""
    program = f"""
child = {BEGINNING.format(folder="")!r} + '''
output = RankOutput.open(Path({str(tmp_path / "child")!r}), 1)
print("for the parent")
print("for the log", file=sys.stderr)
output.close()
'''
read = subprocess.run([sys.executable, "-c", child], stdout=subprocess.PIPE, text=True, check=True).stdout
assert read == "for the parent\\n", read
"""
    launched(tmp_path, program)
    assert (tmp_path / "child" / "log.rank-1.txt").read_text() == "for the log\n"


def test_without_the_variables_nothing_is_redirected(tmp_path: Path) -> None:
    """Under torchrun, or alone, output goes where it always went, and no file is made."""
    program = "assert RankOutput.open(folder, 1) is None; print('here')"
    assert run(tmp_path, program, TRAINLAB_LOG="", TRAINLAB_CONSOLE_COPY="0") == "here\n"
    assert [path.name for path in tmp_path.iterdir()] == ["captured.log"]


def test_a_log_that_is_gone_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    """Where the launcher's file was removed, output stays where it is, with a warning."""
    shown = run(
        tmp_path,
        "output = RankOutput.open(folder, 1); print('goes on'); output.close()",
        TRAINLAB_LOG=str(tmp_path / "gone.log"),
    )
    assert "goes on\n" in shown
    assert "may be in" in shown and "gone.log" in shown


def test_the_console_is_copied(tmp_path: Path) -> None:
    """The chief's output is on the console and in the run's folder, be it printed or logged by an older handler."""
    program = """
logging.basicConfig(format="%(message)s")
print("before", flush=True)
output = RankOutput.open(folder, 0)
print("printed", "\\u00e4", flush=True)
logging.warning("logged")
sys.stderr.writelines(["several\\n", "lines\\n"])
output.close()
print("after", flush=True)
"""
    shown, in_run = copied(tmp_path, program)
    assert shown == "before\nprinted ä\nlogged\nseveral\nlines\nafter\n"
    assert in_run == "printed ä\nlogged\nseveral\nlines\n"


def test_a_progress_bar_is_not_copied(tmp_path: Path) -> None:
    """What moves the cursor or colours is for the console alone."""
    program = """
output = RankOutput.open(folder, 0)
for piece in ("\\r 10%", "\\r 20%", "\\x1b[2K", "a line\\n"):
    sys.stderr.write(piece)
output.close()
"""
    shown, in_run = copied(tmp_path, program)
    assert shown == "\r 10%\r 20%\x1b[2Ka line\n"
    assert in_run == "a line\n"


def test_the_copied_console_is_a_terminal_still(tmp_path: Path) -> None:
    """Programs that ask find the same streams as before: terminals with their encoding, the very same objects."""
    program = """
before = (sys.stdout, sys.stdout.encoding, sys.stdout.write)
output = RankOutput.open(folder, 0)
assert sys.stdout is before[0] and sys.stdout.isatty() and sys.stdout.encoding == before[1]
output.close()
assert sys.stdout.write == before[2] and "write" not in vars(sys.stdout)
"""
    ours, theirs = pty.openpty()
    with open(ours, "rb", buffering=0):
        code = BEGINNING.format(folder=str(tmp_path)) + program
        variables = {**os.environ, "TRAINLAB_CONSOLE_COPY": "1"}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=variables, stdout=theirs, stderr=subprocess.PIPE, check=False
        )
        os.close(theirs)
    assert done.returncode == 0, done.stderr.decode()


def test_a_stream_that_cannot_be_watched_is_told(tmp_path: Path) -> None:
    """A program with a stream of its own making, which takes no other write, prints on and is warned."""
    program = """
class Narrow:
    __slots__ = ("inner",)
    def __init__(self, inner): self.inner = inner
    def write(self, text): return self.inner.write(text)
    def flush(self): self.inner.flush()
    closed = False
sys.stdout = Narrow(sys.stdout)
output = RankOutput.open(folder, 0)
print("shown")
print("copied", file=sys.stderr)
output.close()
"""
    shown, in_run = copied(tmp_path, program)
    assert "shown\n" in shown and "cannot be copied" in shown
    assert in_run.endswith("copied\n") and "shown" not in in_run


def test_a_full_disk_ends_neither_the_printing_nor_the_run(tmp_path: Path) -> None:
    """When the run's disk takes no more, the console goes on alone, and says so once."""
    (tmp_path / "log.rank-0.txt").symlink_to("/dev/full")
    program = """
output = RankOutput.open(folder, 0)
print("one", flush=True)
print("two", flush=True)
output.close()
"""
    shown = run(tmp_path, program, TRAINLAB_CONSOLE_COPY="1")
    assert shown.startswith("one") and shown.endswith("two\n")
    assert shown.count("gets no more of what is printed") == 1


def test_a_file_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Output that would be lost is an error at the start."""
    monkeypatch.setenv("TRAINLAB_CONSOLE_COPY", "1")
    (tmp_path / "log.rank-0.txt").mkdir()
    with pytest.raises(RunFolderError, match=r"log\.rank-0\.txt cannot be opened"):
        RankOutput.open(tmp_path, 0)


@pytest.mark.parametrize("way", [copied, launched])
def test_no_known_secret_is_printed_into_the_runs_folder(
    tmp_path: Path, way: Callable[[Path, str], tuple[str, str]]
) -> None:
    """What Python code prints of a run's secrets, or logging for want of a handler, is masked in the run's file."""
    program = """
from trainlab.runs.masking import Masking
output = RankOutput.open(folder, int("TRAINLAB_LOG" in os.environ), Masking(["open-sesame"]))
count = sys.stdout.write("it is open-sesame\\n")
logging.warning("the token is %s", "open-sesame")
output.close()
print(count, "open-sesame")
"""
    shown, of_run = way(tmp_path, program)
    assert sorted(of_run.splitlines()) == ["WARNING:root:the token is ***", "it is ***"]
    assert "18 open-sesame" in shown
