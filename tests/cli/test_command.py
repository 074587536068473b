import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.architecture import source
from tests.cli.programs import trainlab
from tests.runs.made_runs import make_run

LOADED = """
import sys
from trainlab.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["launch", "--help"], ["doctor", "--help"], ["runs", "--help"], ["nonsense"]],
)
def test_help_loads_no_torch(arguments: list[str]) -> None:
    """Help, the version and the answer to a misspelt command come at once."""
    command = [sys.executable, "-c", LOADED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not {"torch", "numpy"} & set(done.stdout.splitlines()[-1].split())


def test_help_names_the_commands() -> None:
    """`trainlab --help` tells which commands there are, and succeeds."""
    done = trainlab("--help")
    assert done.returncode == 0
    names = ("runs", "resume", "replay", "search", "checkpoint", "launch", "doctor")
    assert all(f"\n    {name}" in done.stdout for name in names)


@pytest.mark.parametrize("arguments", [[], ["lunch"], ["--lunch"]])
def test_a_wrong_command_is_told_with_the_right_ones(arguments: list[str]) -> None:
    """A command line that begins wrong ends with status 2 and says what there is."""
    done = trainlab(*arguments)
    assert done.returncode == 2
    assert "usage: trainlab" in done.stderr
    assert ("Did you mean launch?" in done.stderr) == (arguments == ["lunch"])
    assert done.stdout == ""


@pytest.mark.parametrize("closed", ["1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_closed_stream_is_no_error(closed: str, tmp_path: Path) -> None:
    """Where a shell has closed what a command writes to, the command does what it is to do, and ends as it should."""
    run = make_run(tmp_path / "a")
    done = trainlab("runs", "tag", str(run), "+best", before=f"exec {closed}")
    assert (done.returncode, done.stderr) == (0, "")
    assert (run / "tags.json").read_text() == '["best"]\n'


def test_the_version_is_the_packages() -> None:
    """`trainlab --version` tells the version that is installed."""
    import trainlab as package

    assert trainlab("--version").stdout == f"trainlab {package.__version__}\n"


def test_the_installed_command_is_this_one() -> None:
    """What pip installs as `trainlab` is a function that is there."""
    scripts = (source.ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.scripts]\n")[2]
    command = re.match(r'trainlab = "(.+):(.+)"\n', scripts)
    assert command
    assert callable(getattr(import_module(command[1]), command[2]))
