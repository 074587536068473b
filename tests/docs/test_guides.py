"""The programs of guides, saved under the names that they begin with, and their commands, run as readers run them."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NAMED = re.compile(r"# (\w+\.py)\n")
# In a shell, the commands of this environment.
_COMMANDS = 'python() { "$PYTHON" "$@"; }; trainlab() { "$PYTHON" -m trainlab "$@"; }; '


@pytest.mark.slow
@pytest.mark.parametrize("guide", ["child_processes", "tutorial"])
def test_the_commands_of_a_guide_say_what_it_shows(guide: str, tmp_path: Path) -> None:
    """Whoever saves the programs of a guide and types its commands sees what the guide shows."""
    commands = 0
    for kind, content in _BLOCK.findall((ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8")):
        named = _NAMED.match(content)
        if kind == "python" and named is not None:
            (tmp_path / named[1]).write_text(content, encoding="utf-8")
        for shown in re.split(r"^\$ ", content, flags=re.MULTILINE)[1:] if kind == "console" else ():
            command, _, expected = shown.partition("\n")
            said = _run(command, tmp_path)
            assert _as_shown(expected).search(said), f"$ {command}\n{said}\nis not\n{expected}"
            commands += 1
    assert commands > 0


def _run(command: str, folder: Path) -> str:
    # A line of one of several processes is one write only where Python keeps it until its end.
    taken = ("TRAINLAB_", "SLURM", "SUBMITIT", "PYTHONUNBUFFERED")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(taken)}
    shell = shutil.which("bash") or "sh"
    done = subprocess.run(
        [shell, "-c", _COMMANDS + command],
        cwd=folder,
        env=kept | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=280,
        check=False,
    )
    return done.stdout


def _as_shown(expected: str) -> re.Pattern[str]:
    """A pattern of the lines; "…" alone stands for any lines, within a line for any text; lines may be in between."""
    lines = []
    for line in expected.rstrip("\n").splitlines():
        if line.strip() == "…":
            lines.append(r"(?:.*\n)*?")
        else:
            words = re.split(r"(…|\s+)", line)
            pattern = "".join(".*" if part == "…" else r"\s+" if part.isspace() else re.escape(part) for part in words)
            lines.append(f"{pattern}\n?")
    return re.compile(r"(?:.*\n)*?" + "".join(lines))
