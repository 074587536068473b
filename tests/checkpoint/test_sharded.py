import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint import sharded_program as program
from tests.checkpoint.samples import same
from tests.distributed.ranks import run_ranks, start_ranks
from trainlab.checkpoint import Checkpoint, latest_checkpoint, load_checkpoint, load_weights, remove_rubbish
from trainlab.storage import open_store

Job = dict[str, Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Job]:
    """What four ranks saved beside the training, and had when they did."""
    return run_ranks(program.saves, 4, str(tmp_path_factory.mktemp("saved")), "async")


def agree(found: Any, expected: Any) -> bool:
    """Whether weights and the optimizer's state agree in every bit."""
    return same({**found[0]}, {**expected[0]}) and same(found[1], expected[1])


def test_four_ranks_save_together_beside_the_training(saved: list[Job]) -> None:
    """All ranks have the same outcome, and what is saved is what was there when training went on."""
    assert [job["error"] for job in saved] == [None] * 4
    assert {(job["location"], *job["names"]) for job in saved} == {(saved[0]["location"], "batch-0000005")}
    model = program.Model(9)
    load_weights(model, saved[0]["location"])
    assert same({**model.state_dict()}, saved[0]["expected"][0])
    with Checkpoint.open(saved[0]["location"]) as checkpoint:
        assert checkpoint.ranks == 4


def test_a_sharded_checkpoint_goes_on_in_one_plain_process(saved: list[Job]) -> None:
    """Weights and optimizer that FSDP saved go into a module and an optimizer without it, and train on as under it."""
    model, optimizer = program.build(9, sharded=False)
    program.restore(model, optimizer, saved[0]["location"])
    assert agree(program.whole(model, optimizer), saved[0]["expected"])
    program.train(model, optimizer, 1)


@pytest.mark.parametrize(
    "ranks",
    [
        pytest.param(1, marks=pytest.mark.slow),
        pytest.param(2, marks=pytest.mark.slow),
        3,
        pytest.param(4, marks=pytest.mark.slow),
    ],
)
def test_saved_on_four_it_goes_on_on_others_and_back(saved: list[Job], tmp_path: Path, ranks: int) -> None:
    """Saved on 4 ranks, it is the same on 1, 2, 3 or 4, bit by bit, and so is what these save, on 4 again."""
    expected = saved[0]["expected"]
    jobs = run_ranks(program.reloads, ranks, saved[0]["location"], str(tmp_path / "again"))
    assert all(agree(job["found"], expected) for job in jobs)
    assert all(agree(job["trained"], jobs[0]["trained"]) for job in jobs)
    told = jobs[-1]["told"]
    assert told["note"] == "the run's" and told["tied"] and jobs[0]["warm"]
    assert [own["rank"] for own in told["own"]] == [0, 1, 2, 3]
    assert jobs[0]["kinds"] == {"Tensor", "DTensor"}
    again = tmp_path / "again" / "batch-0000005"
    with Checkpoint.open(again) as checkpoint:
        assert checkpoint.ranks == ranks
        assert same({**checkpoint.weights()["0"]}, {key: expected[0][key] for key in checkpoint.weights()["0"]})
    if ranks in (1, 2):
        assert all(agree(job["found"], expected) for job in run_ranks(program.reloads, 4, str(again)))


@pytest.mark.slow
def test_replicas_save_once_and_load_on_other_meshes(tmp_path: Path) -> None:
    """Of a mesh of replicas and shards each part is saved once; it loads on shards alone, and the other way."""
    jobs = run_ranks(program.saves, 4, str(tmp_path / "hsdp"), "sync", 2)
    location = jobs[0]["location"]
    assert [path.name for path in Path(location).rglob("model.safetensors")] == ["model.safetensors"] * 2
    for ranks, replicas in ((3, 1), (4, 2)):
        again = str(tmp_path / f"again-{ranks}")
        found = run_ranks(program.reloads, ranks, location, again, replicas)
        assert all(agree(job["found"], jobs[0]["expected"]) for job in found)
    found = run_ranks(program.reloads, 4, str(tmp_path / "again-3" / "batch-0000005"), None, 2)
    assert all(agree(job["found"], jobs[0]["expected"]) for job in found)


BEFORE = [(1, "folder made"), (1, "file begun"), (1, "piece written"), (2, "file synced"), (2, "folder synced")]
BEFORE += [(0, "folder made"), (0, "file synced"), (0, "data durable"), (0, "manifest begun"), (0, "manifest synced")]
AFTER = [(0, "published"), (0, "committed"), (0, "retention done")]
FAST = {(1, "folder made"), (2, "file synced"), (0, "data durable"), (0, "published")}


@pytest.mark.parametrize(
    ("victim", "point"), [pytest.param(*at, marks=[] if at in FAST else [pytest.mark.slow]) for at in BEFORE + AFTER]
)
def test_a_rank_killed_in_the_middle_of_a_save(tmp_path: Path, victim: int, point: str) -> None:
    """Whichever rank is killed, and wherever, the last checkpoint is whole, and the next start removes the rubbish."""
    with start_ranks(program.dies, 3, str(tmp_path), victim, point) as ranks:
        statuses = ranks.wait()
        assert statuses[victim] == -signal.SIGKILL, ranks.outputs()
        for rank in ranks:
            if rank.rank != victim and rank.returncode == 0:
                told = rank.result()
                assert told["error"] == "PeerFailedError" and f"ank {victim}" in told["text"]
    first, second = "batch-0000001", "batch-0000002"
    is_committed = (victim, point) in AFTER
    newest = latest_checkpoint(tmp_path)
    assert newest is not None and Path(newest).name == (second if is_committed else first)
    left = {path.name for path in tmp_path.iterdir()}
    assert remove_rubbish(open_store(tmp_path)) == ([second] if not is_committed and second in left else [])
    assert {path.name for path in tmp_path.iterdir()} == ({first, second} if is_committed else {first})
    with Checkpoint.open(newest) as checkpoint:
        assert checkpoint.ranks == 3
        assert [checkpoint.state(rank=rank)["own"] for rank in range(3)] == [0, 1, 2]
        assert same(checkpoint.weights()["0"], {"weight": torch.full((3,), 2.0 if is_committed else 1.0)})


def test_own_loops_save_together(tmp_path: Path) -> None:
    """save_checkpoint on several ranks: parts of each, the first one's state, the same error everywhere."""
    jobs = run_ranks(program.saves_in_own_loop, 2, str(tmp_path))
    assert all(agree(job["found"], job["expected"]) for job in jobs)
    assert load_checkpoint(jobs[0]["sharded"])["rank"] == 0
    assert load_checkpoint(jobs[1]["plain"]) == {"rank": 0}
    assert {path.name for path in Path(jobs[0]["plain"]).iterdir()} == {
        "manifest.json",
        "state.json",
        "state.safetensors",
    }
    assert all("something already" in job["exists"] for job in jobs)
    assert all("Weights are those of a module" in job["one rank"] for job in jobs) and "Rank 1" in jobs[0]["one rank"]
    assert {path.name for path in tmp_path.iterdir()} == {"batch-0000001", "batch-0000002"}
