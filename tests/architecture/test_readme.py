"""What README.md promises: its program runs as it stands, and its two command lines are the ones that are checked."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import source

README = (source.ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """The code blocks of README.md that are marked with `language`."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [code for marked, code in found if marked == language]


def commands() -> list[str]:
    """The lines of README.md that set everything up on a fresh machine."""
    return [block.strip() for block in blocks("") if "venv" in block]


def test_the_program_runs_as_it_stands(tmp_path: Path) -> None:
    """Copied into a file, README's program trains, and leaves a run with checkpoints behind."""
    (program,) = blocks("python")
    script = tmp_path / "program.py"
    script.write_text(program, encoding="utf-8")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.glob("runs/*/*/checkpoints/*/manifest.json"))


def test_there_is_one_line_for_the_main_job_and_one_for_the_tests() -> None:
    """A person with only Python and pip needs one line for each, and each makes an environment of its own."""
    main, tests = commands()
    folders = [re.findall(r"(\.venv[\w-]*)", line) for line in (main, tests)]
    assert [len(set(names)) for names in folders] == [1, 1]
    assert folders[0][0] != folders[1][0]
    assert all(line.startswith("python3 -m venv ") and "-c constraints.txt -e " in line for line in (main, tests))


@pytest.mark.parametrize("line", commands())
def test_a_command_line_names_what_is_there(line: str) -> None:
    """The extras and the files that README's lines name exist."""
    pyproject = (source.ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert all(f"\n{extra} = [" in pyproject for extra in re.findall(r"\.\[(\w+)\]", line))
    assert all((source.ROOT / path).is_file() for path in re.findall(r"[\w/]+\.(?:py|txt)\b", line))


def test_ci_runs_readmes_test_command() -> None:
    """What a change has to pass is README's own line, found in README and not copied."""
    pattern = re.search(r"grep -m 1 '(.+)' README\.md", (source.ROOT / ".ci" / "run").read_text(encoding="utf-8"))
    assert pattern
    found = [line for line in README.splitlines() if re.search(pattern[1], line)]
    assert found == commands()[1:]
