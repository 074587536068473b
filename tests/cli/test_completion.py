import subprocess
import sys

import pytest

from trainlab.cli import main

# What bash would offer after words, by the functions that the script defines.
OFFERED = """
source /dev/stdin <<< "$1"
COMP_WORDS=("${@:2}")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_shtab_trainlab trainlab "${COMP_WORDS[-1]}" ""
echo "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["trainlab", "r"], {"run", "runs", "resume", "replay"}),
        (["trainlab", "runs", ""], {"list", "show", "compare", "tag", "rm"}),
        (["trainlab", "runs", "list", "--wh"], {"--where"}),
        (["trainlab", "checkpoint", "p"], {"prune"}),
        (["trainlab", "search", "--dir"], {"--direction"}),
        (["trainlab", "launch", "--dev"], {"--device"}),
        (["trainlab", "doctor", "--j"], {"--json"}),
        (["trainlab", "run", "--h"], {"--help"}),
    ],
)
def test_a_shell_completes_commands_and_options(
    words: list[str], offered: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the script that the command prints, bash offers the commands and options that there are."""
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    done = subprocess.run(["bash", "-c", OFFERED, "bash", script, *words], capture_output=True, text=True, check=False)
    assert offered <= set(done.stdout.split()), done.stderr


def test_completion_without_shtab_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without the extra the command names it."""
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert "pip install 'trainlab[completion]'" in capsys.readouterr().err
