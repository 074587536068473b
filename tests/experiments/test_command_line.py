"""Command lines: what any dict of values looks like on one, and real programs in real processes."""

import enum
import os
import runpy
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

import trainlab
from trainlab.errors import InvalidValueError
from trainlab.experiments.definition import registered
from trainlab.experiments.parameters import option_of

ROOT = Path(__file__).parents[2]
PROGRAM = '''
"""Two experiments in one program."""

import sys

import trainlab


@trainlab.parameter("lr", float, 0.1, help="how fast; 100% of it", envvar=True, search=trainlab.Search(1e-5, 1.0))
@trainlab.parameter("secret_key", default="swordfish")
@trainlab.parameter("mode", allowed_values=["fast", "slow"], required=True)
@trainlab.parameter("internal", hidden=True)
@trainlab.param_group("data", "50% is learnt.", trainlab.parameter("size", int, lambda: 3, default_help="three"))
@trainlab.experiment
def train(params):
    """Learns by 100%.

    A second paragraph, which is long enough that it has to be wrapped where a terminal is only forty columns wide.
    """
    print("ran", params["lr"], params["mode"], params["size"])
    if params["mode"] == "slow":
        raise InterruptedError("by itself")


OTHER

if __name__ == "__main__":
    trainlab.global_entrypoint()
'''
# Runs it, and tells which of the large packages it has loaded.
WATCHING = """
import atexit, runpy, sys

large = ("torch", "rich", "yaml", "numpy")
atexit.register(lambda: print(*[name for name in large if name in sys.modules], file=sys.stderr))
sys.argv[0] = "program.py"
runpy.run_path("program.py", run_name="__main__")
"""
OTHER = '''
@trainlab.experiment
def other(params):
    """Does something else."""
    print("other", "torch" in sys.modules)
'''


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A program with two experiments."""
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.replace("OTHER", OTHER))
    return path


def start(path: Path, *words: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run it as a shell does."""
    names = {"PATH", "HOME", "PYTHONDONTWRITEBYTECODE", "LANG"}
    kept = {name: value for name, value in os.environ.items() if name in names}
    return subprocess.run(
        [sys.executable, str(path), *words],
        cwd=path.parent,
        env=kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def call(path: Path, *words: str) -> int:
    """Run it in this process, for what is not about the process; give the exit status."""
    before = sys.argv
    sys.argv = [str(path), *words]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as ended:
        return int(ended.code or 0)
    finally:
        sys.argv = before
    return 0


def test_help_tells_everything_and_loads_nothing(program: Path) -> None:
    """--help lists the options by group with types, defaults and variables, in plain text, and no torch is loaded."""
    watching = program.with_name("watching.py")
    watching.write_text(WATCHING)
    done = start(watching, "train", "--help", COLUMNS="100")
    assert (done.returncode, done.stderr.strip()) == (0, "")
    assert done.stdout.startswith("usage: python program.py train [OPTIONS]\n\nLearns by 100%.\n")
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "--lr FLOAT                  how fast; 100% of it [default: 0.1; environment: LR]" in lines
    assert "--mode {fast,slow}          [required]" in lines
    assert "--size INT                  [default: three]" in lines
    assert "--secret-key TEXT           [default: ***]" in lines
    assert "--debug, --no-debug         drop into a debugger where an error is raised [default: no]" in lines
    assert "internal" not in done.stdout
    assert "\x1b" not in done.stdout
    headings = [line for line in done.stdout.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["parameters:", "data:", "run:", "distributed run:", "help:"]
    assert done.stdout.index("data:") < done.stdout.index("50% is learnt.") < done.stdout.index("--size")
    narrow = start(program, "train", "-h", COLUMNS="40").stdout
    assert max(map(len, narrow.splitlines())) <= 60
    assert "A second paragraph, which is long" in narrow


def test_help_can_be_cut_off(program: Path) -> None:
    """Help that is piped into a program that reads no more ends quietly, and one that knows no Unicode gets it all."""
    program.write_text(program.read_text().replace("Learns by 100%.", "Learns — well."))
    shell = f"set -o pipefail; {sys.executable} program.py train --help | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", shell],
        cwd=program.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("141\n", "")
    whole = start(program, "train", "--help", PYTHONIOENCODING="ascii")
    assert (whole.returncode, whole.stderr) == (0, "")
    assert "Learns \\u2014 well." in whole.stdout


@pytest.mark.parametrize(
    ("where", "code", "told"),
    [(">&-", 0, ""), (">/dev/full", 1, "Standard output cannot be written to: No space left on device.\n")],
)
def test_help_that_cannot_be_written_is_no_crash(program: Path, where: str, code: int, told: str) -> None:
    """Help to a closed standard output is none, and a full disk is told in a line."""
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} program.py train --help {where}"],
        cwd=program.parent,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", told)


def test_a_program_lists_its_experiments(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a name, or with a wrong one, a program tells its experiments; with --help it does so in peace."""
    assert call(program, "--help") == 0
    asked = capsys.readouterr()
    assert asked.err == ""
    assert "train                       Learns by 100%." in asked.out
    assert "other                       Does something else." in asked.out
    for words, problem in [
        ([], "Which experiment? There are: train, other."),
        (["trian"], "There is no experiment 'trian'. Did you mean train? There are: train, other."),
        (["--lr", "3"], "There is no experiment '--lr'. There are: train, other."),
    ]:
        registered.clear()
        assert call(program, *words) == 1
        told = capsys.readouterr()
        assert told == ("", f"{asked.out}\n{problem}\n")


def test_a_wrong_line_prints_help_and_ends_with_1(program: Path) -> None:
    """A wrong line shows the help, then all that is wrong, on standard error; nothing has run, no folder is made."""
    done = start(program, "train", "--lr", "fast", "--mod", "slow", LR="3")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("usage: python program.py train [OPTIONS]")
    assert done.stderr.splitlines()[-3:] == [
        "There is no option --mod. Did you mean --mode?",
        "--lr: must be a number. Received: 'fast'.",
        "--mode is needed: give it, or mode in a params file or a call.",
    ]
    assert not (program.parent / "runs").exists()


def test_a_program_runs_what_its_line_names(program: Path) -> None:
    """The named experiment runs with the line's values and leaves a run; its error ends the program with status 1."""
    done = start(program, "train", "--mode", "FAST", LR="1e-3")
    assert (done.returncode, done.stdout) == (0, "ran 0.001 fast 3\n"), done.stderr
    (run,) = (program.parent / "runs" / "train").iterdir()
    assert 'mode: "fast"' in (run / "params.yaml").read_text()
    failed = start(program, "train", "--mode", "slow", "--params-file", str(run / "params.yaml"))
    assert failed.returncode == 1
    assert failed.stdout == "ran 0.001 slow 3\n"
    assert "InterruptedError: by itself" in failed.stderr


def test_the_name_of_the_only_experiment_may_be_left_out(
    program: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a program has one experiment its options may follow at once, and so they may after its name."""
    monkeypatch.chdir(program.parent)
    program.write_text(PROGRAM.replace("OTHER", ""))
    for words, code, told in [
        (["--mode", "fast"], 0, "ran 0.1 fast 3"),
        (["train", "--mode", "fast"], 0, "ran 0.1 fast 3"),
        (["--help"], 0, "--lr FLOAT"),
        ([], 1, "--mode is needed"),
        (["trian"], 1, "There is no experiment 'trian'"),
    ]:
        registered.clear()
        assert call(program, *words) == code
        captured = capsys.readouterr()
        assert told in captured.out + captured.err


def test_two_experiments_of_one_name_are_an_error(program: Path) -> None:
    """Which of two experiments a name means is never guessed."""
    program.write_text(PROGRAM.replace("OTHER", '@trainlab.experiment(name="train")\ndef again(params): ...'))
    with pytest.raises(InvalidValueError, match="Two experiments are called 'train'. Give one of them another name"):
        call(program, "train")


def test_a_program_that_is_imported_by_its_own_module_runs(program: Path) -> None:
    """An experiment that is defined twice by the same lines, by the program and as a module, is one."""
    text = PROGRAM.replace("OTHER", "if __name__ == '__main__':\n    import program")
    program.write_text(text.replace('print("ran"', "print(__name__"))
    assert start(program, "train", "--mode", "fast").stdout == "__main__ 0.1 fast 3\n"


def test_cli_without_an_exit_raises() -> None:
    """With exit_on_error=False a program sees a wrong line as an error; help ends it with 0 all the same."""

    @trainlab.experiment
    def train(params: dict[str, Any]) -> None: ...

    with pytest.raises(InvalidValueError, match="There is no option --lr."):
        train.cli(["--lr", "3"], exit_on_error=False)
    with pytest.raises(SystemExit) as ended:
        train.cli(["--lr", "3"])
    assert ended.value.code == 1
    with pytest.raises(SystemExit) as ended:
        train.cli(["--lr", "-h"], exit_on_error=False)
    assert ended.value.code == 0
    with pytest.raises(InvalidValueError, match="Which experiment"):
        trainlab.group(train.main).cli([], exit_on_error=False)


class Mode(enum.Enum):
    """A choice."""

    FAST = "fast"
    BOTH = (1, 2)


class Inner(BaseModel):
    """A nested model."""

    lr: float = 0.0
    flag: bool = True


class Everything(BaseModel):
    """A field of each type that is written in words."""

    text: str = ""
    number: float = 0.0
    count: int | None = 0
    flag: bool = False
    choice: Literal["a", 1] = "a"
    mode: Mode = Mode.FAST
    path: Path = Path(".")
    numbers: list[float] = []
    texts: list[str] = []
    pair: tuple[int, str] = (0, "")
    modes: list[Mode] = []
    table: dict[str, float] = {}
    deep: list[list[int]] = []
    inner: Inner = Inner()


TEXTS = st.text(max_size=6) | st.sampled_from(["--x", "-", "--", "-1", "none", "=", "a=b", "-h", "--help", "[1]", "{"])
NUMBERS = st.floats(allow_nan=False)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "text": TEXTS,
        "number": NUMBERS,
        "count": st.none() | st.integers(),
        "flag": st.booleans(),
        "choice": st.sampled_from(["a", 1]),
        "mode": st.sampled_from(Mode),
        "path": st.from_regex(r"[a-z-][a-z/ -]{0,6}", fullmatch=True).map(Path),
        "numbers": st.lists(NUMBERS, max_size=3),
        "texts": st.lists(TEXTS, max_size=3),
        "pair": st.tuples(st.integers(), TEXTS),
        "modes": st.lists(st.sampled_from(Mode), max_size=2),
        "table": st.dictionaries(st.from_regex("[a-z]{1,3}", fullmatch=True), NUMBERS, min_size=1, max_size=3),
        "deep": st.lists(st.lists(st.integers(), max_size=2), max_size=2),
        "inner": st.fixed_dictionaries({}, optional={"lr": NUMBERS, "flag": st.booleans()}),
    },
)


def words_of(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A command line that gives some values."""
    words: list[str] = []
    for name, value in values.items():
        option = option_of(f"{prefix}{name}")
        if name == "inner":
            words += words_of(value, "inner.")
        elif isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif name == "deep":
            words.append(f"{option}={value}")
        elif isinstance(value, dict):
            words += [option, *(f"{key}={number!r}" for key, number in value.items())]
        elif isinstance(value, (list, tuple)):
            words += [f"{option}={word_of(item)}" for item in value] or [option]
        else:
            words.append(f"{option}={word_of(value)}")
    return words


def word_of(value: Any) -> str:
    """One value as a word."""
    return value.name if isinstance(value, Mode) else str(value)


@given(values=VALUES)
@settings(max_examples=60)
def test_any_values_can_be_given_on_a_line(values: dict[str, Any]) -> None:
    """What a call can give, a command line can give as well: the same values arrive."""

    @trainlab.experiment
    def train(config: Everything) -> None: ...

    of_line = train.read(argv=words_of(values), environ={})
    assert of_line.model == train.read(values, environ={}).model
    given_names = {name for name, origin in of_line.origins.items() if origin == "command line"}
    expected = {name for name in values if name != "inner"} | {f"inner.{name}" for name in values.get("inner", ())}
    assert given_names == expected


@given(
    words=st.lists(
        st.sampled_from(["--", "-h", "--lr", "--lr=", "--no-flag", "--flag=x", "--xs", "-1", "a", "="])
        | st.text(max_size=4),
        max_size=6,
    )
)
@settings(max_examples=60)
def test_no_line_breaks_the_reader(words: list[str]) -> None:
    """Whatever stands on a line, it is read or told to be wrong."""

    @trainlab.parameter("lr", float)
    @trainlab.parameter("xs", int, multiple=True)
    @trainlab.parameter("flag", is_flag=True)
    @trainlab.experiment
    def train(params: dict[str, Any]) -> None: ...

    try:
        train.read(argv=words, environ={})
    except InvalidValueError as error:
        assert str(error)
