"""Completion in a real shell, from the script that a program prints."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """#!PYTHON
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

import trainlab


class SGD(BaseModel):
    kind: Literal["sgd"] = "sgd"
    momentum: float = 0.9


class Adam(BaseModel):
    kind: Literal["adam"] = "adam"


class Config(BaseModel):
    learning_rate: float = 0.1
    optimizer: SGD | Adam = Field(SGD(), discriminator="kind")
    weights: Path | None = None
    flag: bool = False
    how: Literal["fast", "a b", "$(touch ran)", "`touch ran`", "it's"] = "fast"


@trainlab.experiment
def train(config: Config): ...


@trainlab.group
def tools():
    \"\"\"100% useful.\"\"\"


@tools.experiment
@trainlab.parameter("color", allowed_values=["red", "blue"])
@trainlab.parameter("hidden", hidden=True)
def paint(params): ...


if __name__ == "__main__":
    trainlab.global_entrypoint()
"""
# What Tab does: call the function that is registered for the command, and print what it offers.
TAB = """
source script.bash
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
{empty}
function=$(complete -p program.py | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
"$function" program.py "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def start(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the program."""
    return subprocess.run(
        [sys.executable, "program.py", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    """A folder with the program, what it prints for bash, and a file of weights."""
    folder: Path = tmp_path_factory.mktemp("completion")
    (folder / "program.py").write_text(PROGRAM)
    (folder / "weights.safetensors").touch()
    done = start(folder, "--print-completion", "bash")
    assert done.returncode == 0, done.stderr
    (folder / "script.bash").write_text(done.stdout)
    return folder


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["t"], {"train", "tools"}),
        (["train", "--l"], {"--learning-rate"}),
        (["train", "--optimizer.m"], {"--optimizer.momentum"}),
        (["train", "--optimizer.kind", "a"], {"adam"}),
        (["train", "--no-f"], {"--no-flag"}),
        (["train", "--how", ""], {"fast"}),
        (["train", "--weights", "w"], {"weights.safetensors"}),
        (["train", "--learning-rate", "3", "--optimizer.k"], {"--optimizer.kind"}),
        (["tools", ""], {"paint"}),
        (["tools", "paint", "--color", ""], {"red", "blue"}),
        (["tools", "paint", "--h"], {"--help"}),
        (["tools", "paint", "--master-p"], {"--master-port"}),
    ],
)
def test_tab_offers_what_fits(folder: Path, words: list[str], offered: set[str]) -> None:
    """In bash, Tab offers names, options, choices and files at their places, without Python."""
    given = " ".join(f"'{word}'" for word in ["program.py", *words])
    done = subprocess.run(
        ["bash", "--norc", "-c", TAB.format(words=given, empty="")],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert set(done.stdout.split()) == offered, done.stderr
    assert not (folder / "ran").exists()


def test_other_shells_have_scripts_too(folder: Path) -> None:
    """zsh and tcsh get a script; another shell, or none, is an error with status 1."""
    for shell, part in [("zsh", "#compdef program.py"), ("tcsh", "complete program.py")]:
        done = start(folder, f"--print-completion={shell}")
        assert done.returncode == 0, done.stderr
        assert part in done.stdout
        assert "touch ran" not in done.stdout
    for words, problem in [
        (["--print-completion", "bsh"], "takes bash, zsh, tcsh. Did you mean bash? Received: 'bsh'."),
        (["train", "--print-completion"], "takes bash, zsh, tcsh. Received: ''."),
    ]:
        done = start(folder, *words)
        assert (done.returncode, done.stdout) == (1, "")
        assert problem in done.stderr


def test_a_missing_package_is_told(folder: Path) -> None:
    """Without shtab one learns what to install."""
    (folder / "shtab.py").write_text("raise ImportError('not there')")
    try:
        done = start(folder, "train", "--print-completion", "bash")
    finally:
        (folder / "shtab.py").unlink()
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'trainlab[completion]'" in done.stderr
