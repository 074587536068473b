"""Models under DDP: what the user sees of them, what is exchanged and when, and what is refused."""

import functools
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from tests.parallel import ddp_checks


@functools.cache
def observed() -> list[dict[str, Any]]:
    return run_ranks(ddp_checks.observe, 2)


def of(check: str) -> Any:
    """What both ranks have observed, which must be the same."""
    first, second = (rank[check] for rank in observed())
    assert first == second
    return first


def test_the_users_module_stays_what_is_called() -> None:
    """The object, its class, attributes, state dict and pickle are the user's own, and each of its hooks runs once."""
    found = of("stays_the_users")
    assert found == {
        "same": True,
        "calls": ["before", "after"],
        "attributes": ["_compiled_call_impl"],
        "keys": True,
        "pickle": 0,
        "copies": [True],
        "grad": True,
        "closed": ["_compiled_call_impl"],
    }


def test_a_copy_is_a_plain_module() -> None:
    """A copy or a pickle of a model exchanges nothing, whatever its class keeps of itself."""
    assert of("copies_are_free") == [None, None]


def test_an_accumulation_exchanges_in_its_last_batch_only() -> None:
    """Batches whose gradients are added up exchange nothing, and the last of a group does."""
    counts = of("collectives")
    assert [count == 0 for count in counts] == [True, True, False, True, True, False]


def test_only_the_last_of_several_passes_exchanges() -> None:
    """With backward_passes_per_step=3 the gradients of a batch are exchanged once."""
    assert of("passes_exchange_once") == [1, 1]


def test_batchnorm_trains_as_under_hand_written_ddp() -> None:
    """BatchNorm gives the weights of plain DDP, each rank its own statistics, and the chief's where it is evaluated."""
    assert of("batchnorm") == [True, False, True]


def test_buffers_are_the_chiefs_at_the_begin_of_a_step() -> None:
    """Buffers are sent before each group of batches that a step is made of, unless that is switched off."""
    assert of("buffers") == [[True] * 4, [True, False, True, False], [True, False, False, False]]


def test_buffers_are_not_changed_between_forward_and_backward() -> None:
    """A model with BatchNorm can be called twice before its backward pass."""
    assert of("two_passes_of_batchnorm")


def test_an_evaluation_exchanges_nothing() -> None:
    """One rank alone can call a model in an evaluation, and training goes on with all of them."""
    assert of("evaluates_alone") == [0, 1]


def test_a_forward_pass_of_one_rank_alone_does_no_harm() -> None:
    """A rank that calls the model once more than the others stays in step with them."""
    assert of("one_rank_looks_ahead")


def test_gradients_from_before_the_start_are_exchanged() -> None:
    """Half-accumulated gradients of each rank that a checkpoint brought are averaged with those of the group's end."""
    assert of("keeps_gradients")


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("shared", ["InvalidStateError", "share parameters", "0.weight of model 1", "one module"]),
        ("lazy", ["InvalidStateError", "weight, bias of a LazyLinear", "on an example before wrap_model"]),
        ("scripted", ["InvalidTypeError", "TorchScript", "ScriptModule"]),
        ("sync_batchnorm", ["InvalidValueError", "GPUs only", "sync_batchnorm=True", "GroupNorm"]),
        ("unused", ["heads.1.weight, heads.1.bias", "find_unused_parameters=True"]),
        ("unused_next", ["heads.1.weight, heads.1.bias", "find_unused_parameters=True"]),
        ("two_partial_losses", ["second gradient", "body.", "add them and call backward once"]),
        ("never_exchanged", ["model 1", "this rank's alone", "last batch of a group"]),
        ("too_few_passes", ["this rank's alone", "2 times a batch as backward_passes_per_step says"]),
        ("past_backward", ["this rank's alone", "Call context.backward(loss), not loss.backward()"]),
        ("part_past_backward", ["this rank's alone", "not loss.backward()"]),
        ("static", ["this rank's alone", "With static_graph=True"]),
        ("unfrozen", ["frozen when this batch began", "0.weight, 0.bias", "between two batches"]),
        ("different", ["DisagreementError", "Model 0, 4.weight", "(1, 5)", "(2, 5)", "rank 1"]),
        ("numbers", ["DisagreementError", "Rank 0 has wrapped 1 and rank 1 2"]),
        ("frozen_on_one", ["DisagreementError", "Model 0, 2.weight", "frozen on rank 1"]),
    ],
)
def test_what_cannot_work_is_refused(case: str, parts: list[str]) -> None:
    """What would let the ranks grow apart or wait for each other ends with an error that says what to do."""
    message = of("errors")[case]
    assert [part for part in parts if part not in message] == [], message


@pytest.mark.parametrize("size", [3, 4])
def test_the_sums_do_not_depend_on_when_ddp_was_made(size: int) -> None:
    """A run that is resumed in the middle has the bits of one that was not, on more than two ranks too."""
    ranks = run_ranks(ddp_checks.train_in_pieces, size, (6,), (3, 3))
    through, resumed = ranks[0]
    assert through == resumed
    assert all(rank == ranks[0] for rank in ranks)
