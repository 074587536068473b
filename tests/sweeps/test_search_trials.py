"""The trials of a search in its storage, shared by several searchers."""

import base64
import pickle
from collections.abc import Iterator
from types import SimpleNamespace

import optuna
import pytest

from tests.distributed.ranks import run_ranks
from tests.sweeps.postgres import installed, postgres
from tests.sweeps.search_programs import begin_all, opened, repeat_one
from trainlab import Epoch
from trainlab.experiments.searched import SearchedBy, disconnect
from trainlab.sweeps.methods import make_pruner, pickled
from trainlab.sweeps.trials import Trials

SEARCHERS, TRIALS = 3, 8
KINDS = ["sqlite", "journal", pytest.param("postgresql", marks=pytest.mark.slow)]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a storage of each kind, but for its last part."""
    folder = tmp_path_factory.mktemp("storages")
    if request.param != "postgresql":
        yield f"{request.param}:///{folder}/study.file"
        return
    if installed() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres() as url:
        yield url


@pytest.fixture
def trials(kind: str, request: pytest.FixtureRequest) -> Iterator[Trials]:
    """Those of a study of the test's own."""
    with opened(kind, request.node.name) as found:
        yield found


def test_searchers_at_once_make_no_trial_too_many(kind: str) -> None:
    """Several searchers that begin trials at the same time make exactly as many together as were asked for."""
    with opened(kind):
        pass
    made = run_ranks(begin_all, SEARCHERS, kind, TRIALS)
    numbers = [number for mine in made for number in mine]
    assert len(numbers) == len(set(numbers)) == TRIALS
    with opened(kind) as trials:
        found = trials.read()[:TRIALS]
    assert [trial.number for trial in found] == sorted(numbers)
    assert [trial.position for trial in found] == list(range(TRIALS))


def test_a_trial_is_repeated_by_one_searcher(kind: str) -> None:
    """Of several searchers that find the same trial dead at the same time exactly one repeats it."""
    with opened(kind) as trials:
        if not trials.read():
            trials.begin("dead", 1)
        assert sorted(run_ranks(repeat_one, SEARCHERS, kind)) == [False] * (SEARCHERS - 1) + [True]
        first = trials.read()[0]
    assert (len(first.attempts), first.state) == (2, "running")
    assert first.attempts[0].state.name == "FAIL"


def test_a_repeated_trial_is_the_same(trials: Trials, request: pytest.FixtureRequest) -> None:
    """Another attempt at a trial has its number, its place, its parameters, and what it reported."""
    begun = trials.begin("dead", 5)
    assert begun is not None
    loaded = optuna.load_study(study_name=request.node.name, storage=trials._storage)
    loaded.get_trials()
    first = optuna.trial.Trial(loaded, begun.last._trial_id)
    first.suggest_float("x", 0, 1)
    first.report(3.0, 7)
    before = trials.read()[0]
    assert list(before.params) == ["x"]
    again = trials.repeat(before, "me", crashed=True)
    assert again is not None
    assert (again.number, again.position, again.params) == (before.number, before.position, before.params)
    assert again.last.intermediate_values == {7: 3.0}
    assert (again.searcher, again.crashes, again.state) == ("me", 1, "running")


def test_a_repeated_trial_is_one_to_a_pruner(kind: str, request: pytest.FixtureRequest, trials: Trials) -> None:
    """Attempts that were broken off are not among those that ASHA compares a trial with, and the one that counts is."""
    for _ in range(2):
        begun = trials.begin("dead", 5)
        assert begun is not None
        trials._storage.set_trial_system_attr(begun.last._trial_id, "completed_rung_0", 1.0)
    trials.repeat(trials.read()[0], "me", crashed=True)
    pruner = base64.b64encode(pickle.dumps(optuna.pruners.NopPruner())).decode()
    told = SearchedBy(kind, request.node.name, 0, "loss", smaller_is_better=True, length=None, pruner=pruner)
    seen = told._study.get_trials(deepcopy=False)
    disconnect(told._storage)
    assert [one.number for one in seen] == [1, 2]
    assert [one.system_attrs["completed_rung_0"] for one in seen] == [1.0, 1.0]


def test_a_repeated_trial_is_one_to_hyperband(kind: str, request: pytest.FixtureRequest, trials: Trials) -> None:
    """Each attempt at a trial is in Hyperband's bracket of the first, and what was broken off is in none."""
    pruner = make_pruner("hyperband", Epoch(9))
    for _ in range(9):
        trials.begin("dead", 9)
    for trial in trials.read()[:8]:
        trials.repeat(trial, "me", crashed=True)
    told = SearchedBy(kind, request.node.name, 0, "loss", True, None, pickled(pruner))
    study, brackets = told._study, {}
    study.pruner.prune(study, study.get_trials()[0])  # which makes the brackets
    for bracket in range(3):
        for one in study.pruner._create_bracket_study(study, bracket).get_trials():
            brackets[one.number] = bracket
    disconnect(told._storage)
    assert sorted(brackets) == [8, *range(9, 17)]
    firsts = [SimpleNamespace(number=number, system_attrs={}) for number in range(8)]
    assert [brackets[one.number + 9] for one in firsts] == [study.pruner._get_bracket_id(study, one) for one in firsts]


def test_a_trial_that_was_not_drawn_is_drawn_anew(trials: Trials, request: pytest.FixtureRequest) -> None:
    """An attempt at a trial whose searcher was killed while it drew has none of the parameters yet."""
    begun = trials.begin("dead", 5)
    assert begun is not None
    loaded = optuna.load_study(study_name=request.node.name, storage=trials._storage)
    loaded.get_trials()
    optuna.trial.Trial(loaded, begun.last._trial_id).suggest_float("x", 0, 1)
    again = trials.repeat(trials.read()[0], "me", crashed=False, is_drawn=False)
    assert again is not None and again.params == {}


def test_the_first_trial_says_what_was_begun(trials: Trials) -> None:
    """Of two searchers that begin a search at once all see what the first trial says, repeated or not."""
    trials.begin("one", 5, {"id": "a"})
    trials.begin("two", 5, {"id": "b"})
    trials.repeat(trials.read()[0], "two", crashed=False, is_drawn=False)
    assert trials.read()[0].begun == {"id": "a"}


def test_a_trial_that_ended_meanwhile_is_not_repeated(trials: Trials) -> None:
    """A trial whose searcher was taken for dead, but told its end first, stays as it ended."""
    seen = trials.begin("slow", 5)
    assert seen is not None
    trials.tell(seen, "finished", 1.5)
    assert trials.repeat(seen, "me", crashed=False) is None
    (found,) = trials.read()
    assert (found.state, found.value, len(found.attempts)) == ("finished", 1.5, 1)


def test_the_first_end_that_is_told_counts(trials: Trials) -> None:
    """Two searchers that tell how a trial ended do not get in each other's way."""
    seen = trials.begin("one", 5)
    assert seen is not None
    trials.tell(seen, "failed", reason="boom")
    trials.tell(seen, "finished", 1.0)
    (found,) = trials.read()
    assert (found.state, found.reason, found.value) == ("failed", "boom", None)


def test_more_trials_later(trials: Trials) -> None:
    """A trial that was one too many is not one of those that are asked for later."""
    trials.begin("one", 1)
    assert trials.begin("two", 1) is None
    third = trials.begin("one", 2)
    assert third is not None
    assert (third.number, third.position) == (2, 1)
