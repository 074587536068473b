"""Experiments found by the file or module that defines them, and `trainlab run`."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import trainlab
from trainlab.cli.run import main
from trainlab.errors import InvalidValueError
from trainlab.experiments import load_experiment

ROOT = Path(__file__).parents[2]
ONE = """
import trainlab

@trainlab.parameter("lr", float, 0.5)
@trainlab.experiment
def train(params):
    print("ran", params["lr"])

if __name__ == "__main__":
    raise SystemExit("the main part ran")
"""
MORE = """
@trainlab.group
def group(): ...

@group.experiment
def inner(params):
    '''Is inside.'''
    print("inner")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with programs, which is forgotten afterwards."""
    names = {*sys.modules}
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "only_one.py").write_text(ONE)
    (tmp_path / "several.py").write_text(ONE + MORE)
    (tmp_path / "package_of_one").mkdir()
    (tmp_path / "package_of_one" / "train.py").write_text(ONE)
    yield tmp_path
    for name in {*sys.modules} - names:
        del sys.modules[name]


def test_a_file_is_loaded_without_its_main_part(folder: Path) -> None:
    """A program's experiment is found by file, name or path of groups, as the module that children import too."""
    found = load_experiment("only_one.py")
    assert (found.path, found.__module__) == ("train", "only_one")
    assert load_experiment("only_one.py:train") is found
    assert load_experiment(str(folder / "only_one.py")) is found
    assert load_experiment("several.py:group/inner").path == "group/inner"
    assert sys.path[0] == str(folder)


def test_an_imported_experiment_is_not_a_files_own(folder: Path) -> None:
    """A file's own experiments are meant where it imports others; where it has none, those that it imports."""
    (folder / "importing.py").write_text("from several import train\n" + ONE.replace("def train", "def own"))
    (folder / "passing_on.py").write_text("from only_one import train\n")
    assert load_experiment("importing.py").path == "own"
    assert load_experiment("passing_on.py").__module__ == "only_one"


def test_a_module_is_imported(folder: Path) -> None:
    """A module is found by its name from the working directory, as `python -m` does."""
    assert load_experiment("package_of_one.train:train").__module__ == "package_of_one.train"
    assert load_experiment("package_of_one.train").path == "train"


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ("missing.py", "There is no file missing.py"),
        ("missing.module", "no file and no module 'missing.module'"),
        ("missing:train", "no file and no module 'missing'"),
        ("several.py", "Which experiment? Name one of train, group/inner, as in several.py:train."),
        ("several.py:trian", "no experiment 'trian'. Did you mean train?"),
        ("several.py:inner", "Name one of train, group/inner"),
        ("package_of_one", "package_of_one defines no experiment"),
        ("package_of_one/", "no file and no module 'package_of_one/'"),
        ("only_one.sub", "no file and no module 'only_one.sub'"),
        (".train", "no file and no module '.train'"),
        ("json.decoder", "defines no experiment"),
    ],
)
def test_what_is_not_there_is_told(folder: Path, place: str, problem: str) -> None:
    """A wrong file, module or name is an error that says what there is."""
    with pytest.raises(InvalidValueError) as caught:
        load_experiment(place)
    assert problem in str(caught.value)


def test_a_package_is_found_beside_its_folder(folder: Path) -> None:
    """A package in the working directory is a module, though its folder has the same name."""
    (folder / "package_of_one" / "__init__.py").write_text("from package_of_one.train import train")
    assert load_experiment("package_of_one").path == "train"


def test_an_error_of_a_package_is_its_own(folder: Path) -> None:
    """What goes wrong while a package is imported is not taken for a module that is not there."""
    packages = {"lacking": ("import not_there", "not_there"), "wrong": ("raise ValueError('x')", "x")}
    for name, (line, _) in packages.items():  # all before the first import, after which Python knows the folder
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(line)
    for name, (_, error) in packages.items():
        with pytest.raises((ModuleNotFoundError, ValueError), match=error):
            load_experiment(f"{name}.train")


def test_a_file_that_hides_another_module_is_an_error(folder: Path) -> None:
    """A file that is called like a module that is loaded is not mistaken for it."""
    (folder / "json.py").write_text(ONE)
    (folder / "my-train.py").write_text(ONE)
    with pytest.raises(InvalidValueError, match="the module 'json', which is another one already"):
        load_experiment("json.py")
    with pytest.raises(InvalidValueError, match="has a Python name"):
        load_experiment("my-train.py")


def test_the_command_runs_a_files_experiment(folder: Path) -> None:
    """`trainlab run FILE` runs it with its options, and an error in the line ends with status 1."""
    done = subprocess.run(
        [sys.executable, "-m", "trainlab", "run", "only_one.py", "--lr", "2", "--output-dir", "there"],
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "ran 2.0\n"), done.stderr
    assert len([*(folder / "there" / "train").iterdir()]) == 1


def test_the_command_tells_options_and_experiments(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`trainlab run FILE --help` tells the options of the only experiment, or the experiments if there are several."""
    for words, code, told in [
        (["only_one.py", "--help"], 0, "usage: trainlab run only_one.py [OPTIONS]"),
        (["several.py:train", "--help"], 0, "usage: trainlab run several.py:train [OPTIONS]"),
        (["several.py", "--help"], 0, "group/inner                 Is inside."),
        (["several.py", "--help"], 0, "usage: trainlab run several.py:EXPERIMENT [OPTIONS]\n"),
        (["several.py", "--help"], 0, "\ntrainlab run several.py:EXPERIMENT --help tells an experiment's options.\n"),
        (["only_one.py", "--lrr", "3"], 1, "There is no option --lrr. Did you mean --lr?"),
        (["--help"], 0, "usage: trainlab run FILE[:EXPERIMENT] [OPTIONS]"),
    ]:
        with pytest.raises(SystemExit) as ended:
            main(words)
        assert ended.value.code == code
        captured = capsys.readouterr()
        assert told in captured.out + captured.err
    with pytest.raises(InvalidValueError, match="Which experiment"):
        main(["several.py"])
    assert trainlab.experiment  # the public name is no module


@pytest.mark.slow
def test_a_loaded_file_is_the_program(tmp_path: Path) -> None:
    """A class of a script has one name in checkpoints, whether the script or `trainlab run` or a child runs it."""
    script = tmp_path / "my-program.py"
    script.write_text(
        """
import enum, trainlab
from trainlab.checkpoint.classes import class_name
from trainlab.launch.child import ChildProcess

class Mode(enum.Enum):
    A = 1

def named():
    return class_name(Mode)

@trainlab.experiment
def train(params):
    print("names", named(), ChildProcess(named).start().result())

if __name__ == "__main__":
    train.cli()
"""
    )
    for command in ([str(script)], ["-m", "trainlab", "run", str(script)]):
        line = [sys.executable, *command]
        done = subprocess.run(line, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert "names __main__:Mode __main__:Mode" in done.stdout, done.stderr
