"""best.yaml: the parameters of a search's best trial."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial

from tests.sweeps.search_programs import bowl, sourced
from trainlab.sweeps.best_params import write_best
from trainlab.sweeps.trials import SearchTrial


def test_best_yaml_has_what_the_trial_had(tmp_path: Path) -> None:
    """The values in best.yaml are those of the best trial's own record, whatever a later call gives."""
    made = create_trial(value=1.0, params={"x": 2.0}, distributions={"x": FloatDistribution(-5, 5)})
    made.number = 3
    best = SearchTrial(3, 3, (made,))
    text = write_best(bowl, tmp_path, best, {"shift": 9.0}).read_text()
    assert text == 'x: 2.0\n"y": 0\nshift: 9.0\n'  # of a trial that ran elsewhere there is no record here
    (tmp_path / "trial-0003").mkdir()
    record = {
        "params": {"x": 2.0, "shift": 0.5, "password": "***", "y": 0},
        "origins": {"x": "call", "shift": "call", "password": "call", "y": "default"},
    }
    (tmp_path / "trial-0003" / "run.json").write_text(json.dumps(record))
    text = write_best(bowl, tmp_path, best, {"shift": 9.0}).read_text()
    assert text == '# Left out, for they are secret: password\nx: 2.0\n"y": 0\nshift: 0.5\n'


def test_best_yaml_repeats_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the best trial had from the environment, or by default, is in best.yaml; what no file may set it tells."""
    monkeypatch.setenv("TEST_EPOCHS", "50")
    fixed = {"by_hand": "a\nb", "token": "hidden", "random_seed": 3}
    made = create_trial(value=1.0, params={"x": 2.0}, distributions={"x": FloatDistribution(-5, 5)})
    path = write_best(sourced, tmp_path, SearchTrial(0, 0, (made,)), fixed)
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert comments == [
        "# Left out, for they are secret: token",
        '# Left out, for no file may set them; give them yourself: by_hand="a\\nb"',
    ]
    monkeypatch.delenv("TEST_EPOCHS")
    values = sourced.read({"params_file": str(path)})
    names = ("x", "epochs", "drawn", "random_seed", "by_hand")
    assert [values.params[name] for name in names] == [2.0, 50, read_yaml(path)["drawn"], 3, ""]


def read_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())
