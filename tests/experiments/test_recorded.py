"""The record of an experiment's run: that it is standard JSON, and enough to repeat the run."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

import trainlab
from trainlab.cli import main
from trainlab.runs.listing import read_run

PROGRAM = """
import trainlab


@trainlab.experiment
@trainlab.parameter("steps", int, 1, allow_from_file=False)
@trainlab.parameter("layers", list[int], [1], allow_from_file=False)
@trainlab.parameter("fast", is_flag=True, allow_from_file=False)
@trainlab.parameter("note", allow_from_file=False)
@trainlab.parameter("limits", dict[str, float], {}, allow_from_file=False)
@trainlab.parameter("token", envvar="A_TOKEN")
def train(params):
    return params["steps"]
"""
GIVEN = ["--steps", "-5", "--layers", "2", "3", "--fast", "--note=-a b", "--limits", "a=1"]


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with an experiment, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRAINLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "program_of_test.py"
    file.write_text(PROGRAM)
    monkeypatch.delitem(sys.modules, "program_of_test", raising=False)
    return file


def begun(program: Path, *arguments: str) -> Path:
    """Run the experiment, and give the run's folder."""
    before = set(Path("runs/train").iterdir()) if Path("runs/train").exists() else set()
    assert main(["run", program.name, *arguments]) == 0
    (folder,) = set(Path("runs/train").iterdir()) - before
    return folder


def test_a_replay_has_what_no_file_may_set(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters that a file may not set are recorded, and a replay is given them as options, unless given anew."""
    folder = begun(program, *GIVEN)
    run = read_run(folder)
    assert run is not None and (run.params["steps"], run.params["layers"], run.params["fast"]) == (-5, [2, 3], True)
    assert "steps: -5" in (folder / "params.yaml").read_text() and "params_file" not in run.params
    for more, steps, layers in (([], -5, [2, 3]), (["--steps=7", "--layers", "4"], 7, [4])):
        capsys.readouterr()
        assert main(["replay", "--dry-run", str(folder), "--", *more]) == 0
        import shlex

        words = shlex.split(capsys.readouterr().out)
        again = read_run(begun(program, *words[words.index("run") + 2 :]))
        assert again is not None
        assert again.params == {**run.params, "steps": steps, "layers": layers}


def test_a_secret_that_is_not_given_again_is_told(
    program: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replay and resume say that an optional secret is missing, replay --strict refuses; given anew, all is well."""
    folder = begun(program, "--token", "hunter2hunter2")
    for command in ("replay", "resume"):
        assert main([command, "--dry-run", str(folder)]) == 0
        assert "secret token" in capsys.readouterr().err
    assert main(["replay", "--dry-run", "--strict", str(folder)]) == 1
    capsys.readouterr()
    assert main(["replay", "--dry-run", "--strict", str(folder), "--", "--token=x"]) == 0
    monkeypatch.setenv("A_TOKEN", "x")
    assert main(["replay", "--dry-run", "--strict", str(folder)]) == 0
    assert "secret" not in capsys.readouterr().err


def test_a_changed_file_is_told_without_git(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A replay says that the experiment's file is another, where no git knows it."""
    folder = begun(program)
    assert main(["replay", "--dry-run", "--strict", str(folder)]) == 0
    program.write_text(PROGRAM + "1\n")
    assert main(["replay", "--dry-run", "--strict", str(folder)]) == 1
    assert "content of program_of_test.py: then " in capsys.readouterr().err


def test_the_record_is_standard_json(tmp_path: Path) -> None:
    """Numbers that are not finite or huge leave run.json readable for everyone, and metrics are numbers again."""

    @trainlab.parameter("x", float)
    @trainlab.parameter("big", int)
    @trainlab.experiment
    def train(params: dict[str, Any]) -> Any:
        return {"loss": math.nan, "best": -math.inf}

    train.run({"output_dir": tmp_path, "x": math.inf, "big": 1 << 2000})
    (folder,) = (tmp_path / "train").iterdir()

    def refuse(name: str) -> None:
        raise ValueError(name)

    record = json.loads((folder / "run.json").read_text(), parse_constant=refuse)
    assert record["metrics"] == {"loss": "NaN", "best": "-Infinity"}
    assert record["params"]["x"] == "Infinity" and int(record["params"]["big"], 16) == 1 << 2000
    run = read_run(folder)
    assert run is not None and math.isnan(run.metrics["loss"]) and run.metrics["best"] == -math.inf
    again = train.read(argv=["--params-file", str(folder / "params.yaml")], environ={}).params
    assert (again["x"], again["big"]) == (math.inf, 1 << 2000)
