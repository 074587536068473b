"""BetterDataLoader: epochs and positions in a loop without a Trainer."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

import trainlab
from tests.data.datasets import Flow
from tests.distributed.ranks import run_ranks
from trainlab import BetterDataLoader, DataLoader
from trainlab.distributed import init_distributed
from trainlab.errors import CheckpointMismatchError, InvalidTypeError

DATA = list(range(10))


def read(loader: Any, batches: int | None = None) -> list[list[int]]:
    found = []
    for batch in loader:
        found.append(batch.tolist())
        if len(found) == batches:
            break
    return found


def test_each_iteration_has_an_order_of_its_own_that_the_seed_determines() -> None:
    """Nobody calls `set_epoch`: epochs differ, and are the same in every process with the same seed."""
    one, other, third = (BetterDataLoader(DATA, True, seed, batch_size=3) for seed in (4, 4, 5))
    epochs = [read(one) for _ in range(3)]
    assert epochs == [read(other) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] and read(third) != epochs[0]
    assert all(sorted(itertools.chain(*epoch)) == DATA for epoch in epochs)
    assert isinstance(one, DataLoader) and len(one) == 4
    assert read(BetterDataLoader(DATA, batch_size=5)) == [DATA[:5], DATA[5:]]


def test_torchs_random_numbers_are_left_alone() -> None:
    """The order neither depends on nor changes the process's own generator."""
    torch.manual_seed(1)
    before = torch.get_rng_state()
    read(BetterDataLoader(DATA, shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("given", [0, 1, 3, 4])
def test_a_loop_goes_on_after_the_last_batch_it_was_given(given: int, workers: int, tmp_path: Path) -> None:
    """Saved inside an epoch, at its beginning or its end, the next iteration gives what was still to come."""
    whole = BetterDataLoader(DATA, shuffle=True, batch_size=3, num_workers=workers)
    epochs = [read(whole) for _ in range(3)]
    loader = BetterDataLoader(DATA, shuffle=True, batch_size=3, num_workers=workers)
    read(loader)
    state: Any = loader.state_dict()
    for number, _ in enumerate(loader, 1):
        if number == given:
            state = loader.state_dict()
            break
    place = trainlab.save_checkpoint(state, tmp_path / "saved")
    again = BetterDataLoader(DATA, shuffle=True, batch_size=3, num_workers=workers)
    again.load_state_dict(trainlab.load_checkpoint(place))
    assert again.state_dict() == trainlab.load_checkpoint(place)
    assert read(again) == epochs[1][given:]
    assert read(again) == epochs[2]


def test_a_loop_that_breaks_begins_the_next_epoch_then() -> None:
    """After a `break` the next iteration is a new epoch, in a run that goes on as in one that was never ended."""
    loader, other = (BetterDataLoader(DATA, shuffle=True, batch_size=3) for _ in range(2))
    epochs = [read(other) for _ in range(2)]
    assert read(loader, 2) == epochs[0][:2]
    state = loader.state_dict()
    assert read(loader) == epochs[1]
    other.load_state_dict(state)
    assert read(other) == epochs[1]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", [0, 4, -1, 2**64 - 1])
def test_the_seed_comes_with_the_state(seed: int, workers: int, tmp_path: Path) -> None:
    """A new run that draws another seed goes on in the saved run's order: each record once, and the same epochs."""
    options: Any = {"shuffle": True, "batch_size": 3, "num_workers": workers}
    whole = BetterDataLoader(DATA, random_seed=seed, **options)
    epochs = [read(whole) for _ in range(2)]
    loader = BetterDataLoader(DATA, random_seed=seed, **options)
    iterator = iter(loader)
    assert next(iterator).tolist() == epochs[0][0]
    place = trainlab.save_checkpoint(loader, tmp_path / "saved")
    del iterator
    other = BetterDataLoader(DATA, random_seed=99, **options)
    other.load_state_dict(trainlab.load_checkpoint(place))
    assert [read(other), read(other)] == [epochs[0][1:], epochs[1]]


def test_another_batch_size_goes_on_at_the_same_record() -> None:
    """The place is in records, so that batches may have another size from there on."""
    loader = BetterDataLoader(DATA, True, 4, batch_size=3)
    iterator = iter(loader)
    given = next(iterator).tolist()
    other = BetterDataLoader(DATA, True, batch_size=5)
    other.load_state_dict(loader.state_dict())
    rest = read(other)
    assert [len(batch) for batch in rest] == [5, 2] and sorted(given + rest[0] + rest[1]) == DATA


def test_other_data_is_taken_at_an_epochs_beginning_alone() -> None:
    """In the middle of an epoch another length, or another shuffle, is an error; between two of them it is a change."""
    loader = BetterDataLoader(DATA, True, batch_size=3)
    others = [BetterDataLoader(DATA + DATA, True, batch_size=3), BetterDataLoader(DATA, batch_size=3)]
    between = loader.state_dict()
    iterator = iter(loader)
    next(iterator)
    for other in others:
        with pytest.raises(CheckpointMismatchError, match="middle of an epoch, after 3 records"):
            other.load_state_dict(loader.state_dict())
        other.load_state_dict(between)


def test_two_iterations_at_once_are_two_epochs() -> None:
    """`zip(loader, loader)` reads two epochs side by side; the state is that of the later one."""
    loader, other = (BetterDataLoader(DATA, shuffle=True, batch_size=3) for _ in range(2))
    epochs = [read(other) for _ in range(2)]
    pairs = zip(loader, loader, strict=True)
    first, second = next(pairs)
    assert (first.tolist(), second.tolist()) == (epochs[0][0], epochs[1][0])
    state = loader.state_dict()
    assert (state["epoch"], state["batches"]) == (1, 1)


def test_iterable_data_and_own_samplers_go_on_as_well() -> None:
    """What a Trainer resumes exactly, a loop of one's own does too."""
    loader = BetterDataLoader(TensorDataset(torch.arange(10)), sampler=[5, 3, 1, 0], batch_size=1)
    iterator = iter(loader)
    next(iterator)
    state = loader.state_dict()
    again = BetterDataLoader(TensorDataset(torch.arange(10)), sampler=[5, 3, 1, 0], batch_size=1)
    again.load_state_dict(state)
    assert [batch[0].item() for batch in again] == [3, 1, 0]
    flow = BetterDataLoader(Flow(7, shuffled=False), batch_size=2)
    everything = [batch[0].tolist() for batch in flow]
    iterator = iter(flow)
    next(iterator)
    state = flow.state_dict()
    del iterator
    flow.load_state_dict(state)
    assert [batch[0].tolist() for batch in flow] == everything[1:]


def pieces() -> list[list[list[int]]]:
    init_distributed()
    loader = BetterDataLoader(DATA, shuffle=True, batch_size=4)
    odd = BetterDataLoader(DATA, batch_size=3)
    return [read(loader), read(loader), read(odd)]


def test_ranks_get_pieces_of_the_same_size() -> None:
    """Each rank gets its piece of the global batches of one process; an odd batch is filled up with its own first."""
    first, second = run_ranks(pieces, 2)
    alone = BetterDataLoader(DATA, shuffle=True, batch_size=4)
    for epoch in range(2):
        assert [a + b for a, b in zip(first[epoch], second[epoch], strict=True)] == read(alone)
    assert (first[2], second[2]) == ([[0, 1], [3, 4], [6, 7], [9]], [[2, 0], [5, 3], [8, 6], [9]])


def test_wrong_arguments_are_told() -> None:
    """A seed that is none, and a state of something else, are errors at once."""
    with pytest.raises(InvalidTypeError, match="random_seed"):
        BetterDataLoader(DATA, random_seed="1")  # type: ignore[arg-type]
    with pytest.raises(CheckpointMismatchError, match="batches, epoch, length, records, seed, shuffle, stream"):
        BetterDataLoader(DATA).load_state_dict(json.loads('{"epoch": 1}'))


def test_a_trainer_takes_the_seed_of_a_loader() -> None:
    """In a Trainer the loader's own seed takes the place of the run's, so the order is the same in both worlds."""
    from trainlab.data import BatchStream

    loader = BetterDataLoader(DATA, shuffle=True, random_seed=7, batch_size=3)
    stream = BatchStream(loader, seed=1)
    stream.start_epoch(1)
    of_trainer = [batch.tolist() for batch in stream]
    stream.close()
    read(loader)
    assert of_trainer == read(loader)


@pytest.mark.parametrize(
    "wrong",
    [
        {"epoch": "x"},
        {"epoch": True},
        {"records": -1},
        {"batches": None},
        {"stream": 3},
        {"stream": {"junk": 1}},
        {"stream": {"epoch": 0, "held": False, "held_rng": None, "source": 3}},
        {"records": 11},
        {"seed": -1},
        {"length": 11},
        {"shuffle": True},
    ],
    ids=str,
)
def test_a_state_that_leads_nowhere_is_refused_and_changes_nothing(wrong: dict[str, Any]) -> None:
    """Entries that are none, and a place in another order or beyond the data set, are errors at once."""
    loader = BetterDataLoader(DATA, batch_size=3)
    iterator = iter(loader)
    next(iterator)
    before = loader.state_dict()
    with pytest.raises(CheckpointMismatchError, match="Received: "):
        loader.load_state_dict({**before, **wrong})
    assert loader.state_dict() == before and next(iterator).tolist() == [3, 4, 5]
    loader.load_state_dict({**before, "records": 10, "batches": 4, "stream": None})
