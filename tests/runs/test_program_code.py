"""The checksums of a program's own code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import source
from trainlab.runs.program_code import checksums, read_checksums
from trainlab.runs.run_record import replace_text

PROGRAM = """
import json, sys, types
import numpy, trainlab
import models, pack.parts

class Asleep(types.ModuleType):
    def __getattr__(self, name):
        raise RuntimeError(f"asked for {name}")

sys.modules["asleep"] = Asleep("asleep")

@trainlab.experiment
def train(params):
    import later

if __name__ == "__main__":
    train.cli()
"""


@pytest.mark.parametrize("way", [["my program.py"], ["-m", "trainlab", "run", "my program.py"]], ids=["script", "run"])
def test_each_file_of_a_programs_own_code_is_there(tmp_path: Path, way: list[str]) -> None:
    """`sha256sum --check` knows the script and its modules, git or not, and no installed one; it sees a change."""
    (tmp_path / "pack").mkdir()
    files = {"my program.py": PROGRAM, "models.py": "", "pack/__init__.py": "1", "pack/parts.py": "2", "later.py": ""}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(source.ROOT)])}
    subprocess.run([sys.executable, *way], cwd=tmp_path, env=environment, check=True, timeout=120)
    (run,) = (tmp_path / "runs" / "train").iterdir()
    named = {line.partition("  ")[2] for line in (run / "code.sha256").read_text().splitlines()}
    assert named == {str(tmp_path / name) for name in files if name != "later.py"}
    check = ["sha256sum", "--check", "--quiet", run / "code.sha256"]
    assert subprocess.run(check, check=False, capture_output=True).stdout == b""
    (tmp_path / "models.py").write_text("x = 1")
    assert (
        subprocess.run(check, check=False, capture_output=True, text=True).stdout == f"{tmp_path}/models.py: FAILED\n"
    )


def test_a_path_of_any_bytes_is_recorded(tmp_path: Path) -> None:
    """A file of code whose path is no text, or holds a line end of Unicode, is in code.sha256, byte for byte."""
    folder = tmp_path / os.fsdecode(b"\xff \xe2\x80\xa8")
    folder.mkdir()
    (folder / "a.py").write_text("a = 1\n")
    replace_text(tmp_path / "code.sha256", checksums([str(folder / "a.py")]))
    content = (tmp_path / "code.sha256").read_bytes()
    assert list(read_checksums(content.decode(errors="surrogateescape"))) == [str(folder / "a.py")]
    check = subprocess.run(["sha256sum", "--check", "--quiet", "code.sha256"], cwd=tmp_path, check=False)
    assert check.returncode == 0
