"""Searches as a whole: real runs in processes of their own."""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import trainlab
from tests.soak.searches import SearchSoak
from tests.sweeps.postgres import PASSWORD, installed, postgres
from tests.sweeps.search_programs import bowl, dying, failing, layered, ranks_of_two, wordy
from trainlab import Batch, Epoch, Search
from trainlab.errors import InvalidTypeError, InvalidValueError, SweepError
from trainlab.sweeps.trials import Trials

ROOT = Path(__file__).parents[2]


def search(experiment: trainlab.Experiment, **options: Any) -> Any:
    """A search that shows nothing."""
    return trainlab.search(experiment, **{"progress": False, **options})


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A search of four trials that is done, and where it is."""
    folder = tmp_path_factory.mktemp("done")
    return folder, search(bowl, **asked(folder))


def asked(folder: Path) -> dict[str, Any]:
    """The options of that search."""
    params = {"shift": 0.5, "password": "hidden"}
    return {"metric": "value", "trials": 4, "params": params, "output_dir": folder, "max_num_processes": 2, "seed": 7}


def test_each_trial_is_a_run(done: tuple[Path, Any]) -> None:
    """Each trial is a finished run in a folder of its own, with its parameters, its metric and its output."""
    folder, result = done
    assert result.folder == folder / "bowl" / "search_value"
    assert [trial.state for trial in result.trials] == ["finished"] * 4
    for trial in result.trials:
        record = json.loads((trial.folder / "run.json").read_text())
        params = record["params"]
        assert {"x": params["x"], "y": params["y"]} == trial.params
        assert (record["status"], record["metrics"]) == ("finished", {"value": trial.value})
        assert (params["shift"], params["random_seed"]) == (0.5, 7)
        assert (trial.folder / "output.txt").read_text() == f"value {trial.value}\n"


def test_the_best_parameters_are_a_params_file(done: tuple[Path, Any]) -> None:
    """The best trial is that with the least value, and its parameters are a params file without secrets."""
    _, result = done
    best = min(result.trials, key=lambda trial: trial.value)
    assert (result.best_value, result.best_params, result.best_run) == (best.value, best.params, best.folder)
    told = result.params_file.read_text()
    assert told.startswith("# Left out, for they are secret: password\n")
    assert "hidden" not in told and "***" not in told
    values = bowl.read(argv=["--params-file", str(result.params_file)])
    assert {name: values.params[name] for name in ("x", "y", "shift", "random_seed", "password")} == {
        **{"shift": 0.5, "random_seed": 7, "password": ""},
        **best.params,
    }
    assert sum(result.importances.values()) == pytest.approx(1)
    assert set(result.importances) == {"x", "y"}


def test_a_search_that_is_done_starts_nothing(done: tuple[Path, Any]) -> None:
    """The same call again returns what came of the search, and starts nothing."""
    folder, result = done
    assert search(bowl, **asked(folder)) == result
    for trial in result.trials:
        assert len(json.loads((trial.folder / "run.json").read_text())["starts"]) == 1


@pytest.mark.parametrize(
    ("otherwise", "told"),
    [
        ({"direction": "maximize"}, "direction: 'maximize', and it has 'minimize'"),
        ({"space": {"x": Search(0, 1)}}, r"space: x=Search\(0.0, 1.0\), and it has x=Search\(-5.0, 5.0\)\."),
        ({"space": {"shift": Search(choices=[1, 2])}, "params": {}}, r"space: shift=Search\(choices=\[1, 2\]\), and "),
        ({"params": {"shift": 0.7}}, r"shift: 0.7, and it has 0.5\."),
        ({"params": {}}, r"shift: 1.0, and it has 0.5\."),
        ({"max_length": Epoch(3)}, r"max_length: \['Epoch', 3\], and it has None"),
        ({"metric": "other", "study": "value"}, "metric: 'other', and it has 'value'"),
        ({"seed": 8}, "seed: 8, and it has 7; random_seed: 8, and it has 7"),
        ({"params": {"shift": 0.5, "password": "hidden", "deterministic": True}}, "deterministic: true, and it has"),
    ],
)
def test_another_search_of_the_same_name(done: tuple[Path, Any], otherwise: dict[str, Any], told: str) -> None:
    """A search of the same name with another space, metric, direction, length, seed or value is refused, and why."""
    with pytest.raises(InvalidValueError, match=f"begun otherwise. Received: {told}(.|\n)*Pass another study"):
        search(bowl, **{**asked(done[0]), **otherwise})


def test_a_search_of_another_program(done: tuple[Path, Any]) -> None:
    """A search of the same name by another program, whose experiment is of that name too, is refused."""

    @trainlab.experiment(name="bowl", inherit_params=bowl)
    def another(params: dict[str, Any]) -> float:
        """Something else."""
        return 0.0

    another.__qualname__, another.main.__module__ = "bowl", "elsewhere"
    with pytest.raises(InvalidValueError, match=r"program: 'elsewhere', and it has 'tests.sweeps.search_programs'"):
        search(another, **asked(done[0]))


def test_fewer_trials_than_before(done: tuple[Path, Any]) -> None:
    """A call that asks for fewer trials than there are tells of all, and leaves the best one in best.yaml."""
    folder, result = done
    before = result.params_file.read_text()
    assert search(bowl, **{**asked(folder), "trials": 1}) == result
    assert result.params_file.read_text() == before


def test_trials_that_another_search_left(done: tuple[Path, Any], tmp_path: Path) -> None:
    """A search does not take over the trials of another one that are left in its folder, whatever its storage."""
    shutil.copytree(done[0], tmp_path, dirs_exist_ok=True)
    left = tmp_path / "bowl" / "search_value"
    (left / "study.db").unlink()
    options = {**asked(tmp_path), "seed": 8}
    for more in ({}, {"storage": f"journal://{tmp_path}/study.log"}):
        with pytest.raises(InvalidValueError, match=f"trials of another search(.|\n)*Received: {left}. Pass another"):
            search(bowl, **options, **more)
    (left / "search.json").unlink()
    with pytest.raises(InvalidValueError, match="trials of another search"):
        search(bowl, **options)


def test_searchers_that_begin_otherwise_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two calls that begin a search of one name at the same instant, each otherwise, only one goes on."""
    begin = Trials.begin

    def begin_second(trials: Trials, searcher: str, most: int, begun: dict[str, Any]) -> Any:
        begin(trials, "another", most, {**begun, "id": "theirs", "seed": 5})
        return begin(trials, searcher, most, begun)

    monkeypatch.setattr(Trials, "begin", begin_second)
    with pytest.raises(InvalidValueError, match="begun otherwise. Received: seed: 0, and it has 5"):
        search(bowl, metric="value", trials=2, output_dir=tmp_path)
    assert not list(tmp_path.rglob("trial-*"))


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"sampler": "tpa"}, InvalidValueError, "no sampler 'tpa'. There are: tpe, random, grid, cmaes"),
        ({"pruner": "medium"}, InvalidValueError, "no pruner 'medium'. There are: none, median, asha, hyperband"),
        ({"pruner": "asha"}, InvalidValueError, "has to know how long a trial trains(.|\n)*--max-length '20 epochs'"),
        ({"direction": "up"}, InvalidValueError, "direction is one of minimize, maximize. Received: 'up'"),
        ({"trials": 0}, InvalidValueError, "trials is at least 1"),
        ({"max_length": Batch([1, 2])}, InvalidTypeError, "not a schedule"),
        ({"study": "a/b"}, InvalidValueError, "study is a name"),
        ({"params": {"shift": "far"}}, InvalidValueError, "shift(.|\n)*Received: 'far'"),
        ({"storage": "sqlite://"}, InvalidValueError, "share no memory"),
        ({"max_crashes": -1}, InvalidValueError, "max_crashes is an int of at least 0"),
    ],
)
def test_mistakes_are_told_first(tmp_path: Path, options: dict[str, Any], error: type[Exception], told: str) -> None:
    """A mistake in any argument is told before the first trial begins, with what is allowed."""
    with pytest.raises(error, match=told):
        search(bowl, **{"metric": "value", "trials": 2, "output_dir": tmp_path, **options})
    assert not list(tmp_path.rglob("trial-*"))


def test_a_search_of_something_else() -> None:
    """What is no experiment is not searched."""
    with pytest.raises(InvalidTypeError, match="@trainlab.experiment above it"):
        search(print, metric="loss", trials=1)  # type: ignore[arg-type]  # the mistake


@pytest.mark.slow
def test_all_trials_fail(tmp_path: Path) -> None:
    """A search whose first three trials fail is ended, with the errors; they are not repeated by another call."""
    options = {"metric": "loss", "trials": 20, "output_dir": tmp_path, "max_num_processes": 3}
    for _ in range(2):
        with pytest.raises(SweepError, match=r"\d trials have failed(.|\n)*ValueError: x is 0\.") as raised:
            search(failing, **options)
        states = [trial.state for trial in raised.value.result.trials]  # type: ignore[attr-defined]
        # Two may have been running when the third failed.
        assert set(states) == {"failed"} and 3 <= len(states) <= 5
    for record in tmp_path.rglob("run.json"):
        assert len(json.loads(record.read_text())["starts"]) == 1


@pytest.mark.slow
def test_a_killed_trial_is_repeated(tmp_path: Path) -> None:
    """A trial whose process is killed is repeated in its folder, with its parameters and what it had reported."""
    result = search(dying, metric="loss", trials=1, output_dir=tmp_path)
    (trial,) = result.trials
    assert (trial.state, trial.value, trial.attempts) == ("finished", 1.0, 2)
    drawn = {json.loads((trial.folder / f"x-{number}.json").read_text()) for number in (0, 1)}
    assert drawn == {trial.params["x"]}
    starts = json.loads((trial.folder / "run.json").read_text())["starts"]
    assert [start["status"] for start in starts] == ["crashed", "finished"]


@pytest.mark.slow
def test_a_search_on_import_is_told(tmp_path: Path) -> None:
    """A script that searches without `if __name__ == "__main__":` is told what to do, and no trial has failed."""
    text = "import trainlab\nfrom tests.sweeps.search_programs import bowl\n"
    text += "trainlab.search(bowl, metric='value', trials=4, output_dir='.', progress=False)\n"
    (tmp_path / "unguarded.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "unguarded.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "LaunchError: The experiment 'bowl' was run while a new process" in done.stderr
    assert "SweepError" not in done.stderr and len(list(tmp_path.rglob("trial-*"))) == 1
    # The trial is still there for a script that is mended.
    result = search(bowl, metric="value", trials=1, output_dir=tmp_path)
    assert [(trial.state, trial.attempts) for trial in result.trials] == [("finished", 2)]


@pytest.mark.slow
def test_a_trial_that_is_always_killed(tmp_path: Path) -> None:
    """A trial whose process is killed again and again counts as failed after so many times, and says how it ended."""
    with pytest.raises(SweepError, match=r"broken off 2 times; at last: its process ended with status -9"):
        search(dying, metric="loss", trials=1, params={"deaths": 9}, max_crashes=1, output_dir=tmp_path)


@pytest.mark.slow
def test_a_sequential_search_is_reproducible(tmp_path: Path) -> None:
    """A search of one trial at a time that is killed and gone on with chooses what one that nobody killed chooses."""
    options = {"metric": "value", "trials": 3, "seed": 3}
    whole = search(bowl, **options, output_dir=tmp_path / "whole")
    program = (
        "from tests.sweeps.search_programs import bowl; import trainlab; "
        f"trainlab.search(bowl, **{options!r}, output_dir={str(tmp_path / 'killed')!r}, progress=False)"
    )
    with subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": str(ROOT)}) as searcher:
        while not (tmp_path / "killed" / "bowl" / "search_value" / "trial-0001" / "run.json").exists():
            assert searcher.poll() is None
            threading.Event().wait(0.01)
        searcher.send_signal(signal.SIGKILL)
    killed = search(bowl, **options, output_dir=tmp_path / "killed")
    assert [trial.params for trial in killed.trials] == [trial.params for trial in whole.trials]
    assert [trial.value for trial in killed.trials] == [trial.value for trial in whole.trials]


@pytest.mark.slow
def test_a_kill_between_two_parameters(tmp_path: Path) -> None:
    """A searcher that is killed after it drew one of a trial's parameters, and begun again, chooses what it would."""
    options = {"metric": "value", "trials": 2, "sampler": "random"}
    whole = search(bowl, **options, output_dir=tmp_path / "whole")
    program = (
        "import os; from optuna.storages._cached_storage import _CachedStorage as Kept; import trainlab\n"
        "from tests.sweeps.search_programs import bowl\n"
        "keep, drawn = Kept.set_trial_param, []\n"
        "def keep_three(*arguments):\n"
        "    keep(*arguments); drawn.append(arguments)\n"
        "    if len(drawn) == 3: os.kill(os.getpid(), 9)\n"
        "Kept.set_trial_param = keep_three\n"
        f"trainlab.search(bowl, **{options!r}, output_dir={str(tmp_path / 'killed')!r}, progress=False)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", program], env=environment, check=False).returncode == -signal.SIGKILL
    killed = search(bowl, **options, output_dir=tmp_path / "killed")
    assert [trial.attempts for trial in killed.trials] == [1, 2]
    assert [trial.params for trial in killed.trials] == [trial.params for trial in whole.trials]


@pytest.mark.slow
def test_an_end_without_a_storage(tmp_path: Path) -> None:
    """While the storage cannot be reached, Ctrl-C ends a search and its trials at once, and the error says why."""
    program = (
        "from tests.sweeps.search_programs import endless; import trainlab; "
        f"trainlab.search(endless, metric='loss', trials=1, output_dir={str(tmp_path)!r}, progress=False)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    folder = tmp_path / "endless" / "search_loss"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as searcher:
        while not (folder / "trial-0000" / "begun").exists():
            assert searcher.poll() is None
            threading.Event().wait(0.01)
        (folder / "study.db").write_bytes(b"gone" * 4096)
        searcher.send_signal(signal.SIGINT)
        told = searcher.communicate(timeout=200)[1]
    assert "StorageError: The search's storage cannot be reached" in told and searcher.returncode == 1
    record = json.loads((folder / "trial-0000" / "run.json").read_text())
    assert record["status"] == "interrupted"


@pytest.mark.slow
def test_a_metric_that_is_no_number(tmp_path: Path) -> None:
    """A trial that gives a text as the metric has failed, and the reason says so and names what it gives else."""
    with pytest.raises(SweepError, match=r"no number as metric 'loss', but a str. It gives: 'x'"):
        search(wordy, metric="loss", trials=1, output_dir=tmp_path)


@pytest.mark.slow
def test_the_words_of_a_command_line(tmp_path: Path) -> None:
    """Choices on the command line are what they are after the parameter's own option; a range twice is refused."""
    command = [sys.executable, "-m", "trainlab", "search", "tests.sweeps.search_programs:bowl", "--metric", "value"]
    command += ["--trials", "2", "--sampler", "grid", "--output-dir", str(tmp_path), "--search", "x=1,2"]
    command += ["--search", "y=1"]
    done = subprocess.run([*command, "--search", "password=none,1"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(path.read_text())["params"] for path in tmp_path.rglob("run.json")]
    assert {type(one["x"]) for one in found} == {float}
    yaml_text = (tmp_path / "bowl" / "search_value" / "best.yaml").read_text()
    assert "Left out, for they are secret: password" in yaml_text
    twice = subprocess.run([*command, "--search", "x=0:1"], cwd=ROOT, capture_output=True, check=False, text=True)
    assert twice.returncode != 0 and "--search is given twice for x" in twice.stderr


@pytest.mark.slow
def test_trials_of_two_ranks(tmp_path: Path) -> None:
    """Trials of two ranks train on both as long as the search says, and are pruned on both together."""
    from optuna.pruners import ThresholdPruner

    params = {"distributed": True, "nproc_per_node": 2, "cuda": False}
    pruner = ThresholdPruner(upper=0.0, n_warmup_steps=8)
    options = {"params": params, "max_length": Batch(12), "output_dir": tmp_path, "pruner": pruner}
    result = search(ranks_of_two, metric="loss", trials=1, **options)
    (trial,) = result.trials
    assert trial.state == "pruned", (trial.folder / "output.txt").read_text()
    told = [json.loads((trial.folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert told == [[2, "pruned", 8]] * 2


@pytest.mark.slow
def test_fields_of_a_model_are_searched(tmp_path: Path) -> None:
    """A grid over fields of nested models tries each point once, and the number that main returns is the metric."""
    space = {"optimizer.lr": Search(choices=[0.1, 0.2]), "depth": Search(1, 2, step=1)}
    token = secrets.token_hex(8)  # which no diff of the code holds
    options = {"params": {"token": token}, "sampler": "grid", "trials": 9, "max_num_processes": 2}
    result = search(layered, metric="product", space=space, direction="maximize", output_dir=tmp_path, **options)
    tried = [(trial.params["optimizer.lr"], trial.params["depth"]) for trial in result.trials]
    assert sorted(tried) == [(0.1, 1), (0.1, 2), (0.2, 1), (0.2, 2)]
    assert (result.best_value, result.best_params) == (0.4, {"optimizer.lr": 0.2, "depth": 2})
    assert layered.read({"params_file": str(result.params_file)}).model.optimizer.lr == 0.2  # type: ignore[union-attr]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]


@pytest.mark.slow
def test_a_small_soak_of_searches(tmp_path: Path) -> None:
    """Searchers and trials that are killed at random leave each trial with one end, in one folder."""
    soak = SearchSoak(tmp_path, trials=3, kills=3, seed=5)
    assert soak.run() == []
    assert soak.killed.total() == 3


@pytest.mark.slow
@pytest.mark.skipif(installed() is None, reason="PostgreSQL is not installed")
def test_a_small_soak_on_postgresql(tmp_path: Path) -> None:
    """The same holds for two searchers on a PostgreSQL server, whose password is in no file."""
    with postgres() as url:
        soak = SearchSoak(tmp_path, trials=3, kills=2, seed=6, storage=url)
        assert soak.run() == []
    assert soak.killed.total() == 2
    secret = url.split("@")[0].rpartition(":")[2].encode()
    for path in tmp_path.rglob("*"):
        assert not (path.is_file() and (secret in path.read_bytes() or PASSWORD.encode() in path.read_bytes())), path
