"""Models under FSDP2: what the user sees of them, what is exchanged and when, and what is refused."""

import functools
from typing import Any

import pytest

from tests.distributed.ranks import run_ranks
from tests.parallel import fsdp_checks
from tests.parallel.equality import NEEDS_FSDP

pytestmark = NEEDS_FSDP


@functools.cache
def observed() -> list[dict[str, Any]]:
    return run_ranks(fsdp_checks.observe, 2)


def of(check: str) -> Any:
    """What both ranks have observed, which must be the same."""
    first, second = (rank[check] for rank in observed())
    assert first == second
    return first


def test_the_users_module_is_sharded_in_place() -> None:
    """The object and its state dict's keys stay, an instance of its class, with DTensors as parameters."""
    assert of("stays_the_users") == [True] * 5


def test_an_accumulation_exchanges_in_its_last_batch_only() -> None:
    """Gradients that are added up over batches are exchanged once a group."""
    assert [bool(count) for count in of("collectives")] == [False, False, True, False, False, True]


def test_buffers_are_the_chiefs_where_a_model_is_evaluated() -> None:
    """The running statistics of BatchNorm are each rank's own in training and the chief's in an evaluation."""
    assert of("buffers") == [False, True]


def test_number_formats_are_those_asked_for() -> None:
    """Weights are computed with in bf16 and stepped in float32, with gradients in float32."""
    assert of("in_number_formats") == ["torch.bfloat16", "torch.float32", "torch.float32"]


@pytest.mark.parametrize(
    ("case", "parts"),
    [
        ("method", ["InvalidStateError", "past the model itself", "inside its forward"]),
        ("parameter", ["InvalidStateError", "parameter", "past the model itself"]),
        ("part_first", ["InvalidStateError", "past the model itself"]),
        ("gradient_of_gradient", ["InvalidStateError", "gradient of a gradient", "parallel='ddp'"]),
        ("never_exchanged", ["added up and not exchanged", "last batch of a group"]),
        ("tied_apart", ["blocks.0.norm.weight and blocks.1.norm.weight", "FSDPOptions.wrap"]),
        ("nothing_to_wrap", ["no wrapped model has a module of", "Conv2d"]),
        ("different", ["DisagreementError", "Model 0, 4.weight", "rank 1"]),
        ("lbfgs", ["LBFGS", "parallel='ddp'"]),
        ("no_forward", ["InvalidTypeError", "ModuleList", "give it a forward"]),
        ("sparse", ["sparse=True of 0", "sparse=False"]),
        ("lazy", ["LazyLinear", "before wrap_model"]),
        ("shard_size", ["shard_size=3 of 2 ranks"]),
        ("in_parts", ["reshard_after_forward=2, 2 ranks"]),
    ],
)
def test_what_cannot_work_is_refused(case: str, parts: list[str]) -> None:
    """What FSDP2 cannot train ends with an error that says what to do, before anything is wrong."""
    message = of("errors")[case]
    assert [part for part in parts if part not in message] == [], message
