"""Which searchers are taken for dead."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from tests.distributed.ranks import start_ranks
from trainlab.experiments.searched import connect, disconnect
from trainlab.sweeps.liveness import SILENT_SECONDS, Heartbeat, Watch


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A storage with one study."""
    url = f"journal://{tmp_path_factory.mktemp('liveness')}/study.log"
    optuna.create_study(study_name="study", storage=(storage := connect(url)))
    yield url
    disconnect(storage)


def live_on(url: str) -> None:
    """Live as a searcher does, until killed."""
    with Heartbeat(connect(url), 0) as heart:
        print(f"alive: {heart.token}", flush=True)
        subprocess.run(["sleep", "600"], check=False)


@pytest.mark.slow
def test_a_killed_searcher_is_dead_at_once(url: str) -> None:
    """A searcher of this machine lives as long as its process, and is dead as soon as that is killed."""
    watch = Watch(connect(url), 0)
    with start_ranks(live_on, 1, url) as (rank,):
        rank.wait_for("alive: ")
        token = rank.output().split("alive: ")[1].split()[0]
        watch.look()
        assert not watch.is_dead(token)
        rank.kill()
        rank.wait()
        assert watch.is_dead(token)


def test_a_searcher_that_has_ended_is_dead(url: str) -> None:
    """A searcher that came to its end leaves its trials to others at once, its process living on or not."""
    storage = connect(url)
    watch = Watch(storage, 0)
    with Heartbeat(storage, 0) as heart:
        watch.look()
        assert not watch.is_dead(heart.token)
    watch.look()
    assert watch.is_dead(heart.token)


def test_a_silent_searcher_elsewhere_is_dead(url: str) -> None:
    """A searcher of another machine is dead once its record has not changed for a minute of the watcher's clock."""
    storage, now = connect(url), [1000.0]
    watch = Watch(storage, 0, clock=lambda: now[0])

    def is_dead(count: int) -> bool:
        record = {"host": "another", "pid": 1, "started": 1, "count": count, "has_ended": False}
        storage.set_study_system_attr(0, "trainlab:searcher:far", record)
        watch.look()
        return watch.is_dead("far")

    assert not is_dead(7)
    now[0] += SILENT_SECONDS - 1
    assert not is_dead(7)
    assert not is_dead(8)
    now[0] += SILENT_SECONDS - 1
    assert not is_dead(8)
    now[0] += 1
    assert is_dead(8)
    assert not is_dead(9)


def test_a_trial_of_nobody(url: str) -> None:
    """A trial whose searcher left no record is left alone for a minute, and then taken for one of a dead one."""
    now = [0.0]
    watch = Watch(connect(url), 0, clock=lambda: now[0])
    watch.look()
    assert not watch.is_dead(None)
    now[0] += SILENT_SECONDS
    assert watch.is_dead(None)


def test_the_record_counts_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a searcher lives its record changes, from a thread of its own."""
    monkeypatch.setattr("trainlab.sweeps.liveness.BEAT_SECONDS", 0.01)
    url = f"journal://{tmp_path}/study.log"
    optuna.create_study(study_name="study", storage=(storage := connect(url)))
    with Heartbeat(storage, 0) as heart:
        count = 0
        while count < 3:
            record = connect(url).get_study_system_attrs(0)[f"trainlab:searcher:{heart.token}"]
            count = record["count"]
