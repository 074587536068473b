"""The trials of a search in its storage, shared by several searchers."""

import base64
import pickle
from collections.abc import Iterator

import optuna
import pytest

from tests.distributed.ranks import run_ranks
from tests.sweeps.postgres import installed, postgres
from tests.sweeps.search_programs import begin_all, opened, repeat_one
from trainlab.experiments.searched import SearchedBy, disconnect
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
