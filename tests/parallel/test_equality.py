"""Several ranks train to the weights that one process trains to, in float64."""

import functools

import pytest
import torch

from tests.distributed.ranks import run_ranks
from tests.parallel import scenarios as s
from tests.parallel.equality import NEEDS_FSDP, compare_all
from tests.parallel.job import Job
from trainlab.parallel import DDPOptions, FSDPOptions, Parallel

FINDS = DDPOptions(find_unused_parameters=True)
STATIC = DDPOptions(static_graph=True)

# What both can do.
BOTH = [
    s.plain,
    s.adamw,
    s.accumulated,
    s.clipped,
    s.frozen,
    s.frozen_teacher,
    s.unfrozen_later,
    s.tied,
    s.gan,
    s.gan_that_freezes,
    s.gan_accumulated,
    s.several_passes,
    s.passes_after_forwards,
    s.two_losses_apart,
    s.no_grad_in_between,
    s.forward_without_backward,
    s.fine_tuned_in_eval,
    s.calls_itself,
    s.activations_checkpointed,
]
DDP_CASES = {
    **{scenario.__name__: (scenario, ("ddp", None)) for scenario in BOTH},
    **{
        scenario.__name__: (scenario, ("ddp", None))
        for scenario in (
            s.penalty,
            s.part_called,
            s.part_called_after,
            s.halves_trained_apart,
            s.sparse_embedding,
            s.lbfgs,
            s.weights_in_the_loss,
        )
    },
    "no_view": (s.two_losses_apart, ("ddp", DDPOptions(gradient_as_bucket_view=False))),
    "small_buckets": (s.gan_accumulated, ("ddp", DDPOptions(bucket_cap_mb=1e-5))),
    "static": (s.plain, ("ddp", STATIC)),
    "static_accumulated": (s.accumulated, ("ddp", STATIC)),
    "unused": (s.unused, ("ddp", FINDS)),
    "unused_frozen_and_back": (s.unused_frozen_and_back, ("ddp", FINDS)),
    "unused_blocks": (s.blocks, ("ddp", FINDS)),
    "unused_two_losses": (s.two_losses_apart, ("ddp", FINDS)),
    "unused_gan": (s.gan_accumulated, ("ddp", FINDS)),
    "unused_unfrozen": (s.unfrozen_later, ("ddp", FINDS)),
    "unused_part_called": (s.part_called_after, ("ddp", FINDS)),
}
BLOCKS = (s.Block,)
FSDP_CASES = {
    **{scenario.__name__: (scenario, ("fsdp", None)) for scenario in BOTH},
    "unused": (s.unused, ("fsdp", None)),
    "blocks_apart": (s.blocks, ("fsdp", FSDPOptions(wrap=BLOCKS))),
    "blocks_kept": (s.blocks, ("fsdp", FSDPOptions(wrap=BLOCKS, reshard_after_forward=False))),
    "no_grad_kept": (s.no_grad_in_between, ("fsdp", FSDPOptions(reshard_after_forward=False))),
    "no_grad_offloaded": (s.no_grad_in_between, ("fsdp", FSDPOptions(cpu_offload=True))),
}
# A mesh of 2 × 2, and parameters kept in halves between forward and backward pass.
FOUR_RANKS = {
    "blocks_2x2": (s.blocks, ("fsdp", FSDPOptions(wrap=BLOCKS, shard_size=2))),
    "gan_2x2": (s.gan_accumulated, ("fsdp", FSDPOptions(shard_size=2))),
    "blocks_in_halves": (s.blocks, ("fsdp", FSDPOptions(wrap=BLOCKS, reshard_after_forward=2))),
}
# These load the compiler, or are about one rank's gradients.
TWO_RANKS = {
    name: {
        scenario.__name__: (scenario, (name, None))
        for scenario in (s.weights_of_rank_0, s.bf16, s.fp16, s.compiled, s.compiled_in_place)
    }
    for name in ("ddp", "fsdp")
}
CASES = {
    ("ddp", 2): {**DDP_CASES, **TWO_RANKS["ddp"]},
    ("ddp", 3): DDP_CASES,
    ("ddp", 4): DDP_CASES,
    ("fsdp", 2): {**FSDP_CASES, **TWO_RANKS["fsdp"]},
    ("fsdp", 3): FSDP_CASES,
    ("fsdp", 4): {**FSDP_CASES, **FOUR_RANKS},
    ("fsdp", 1): FSDP_CASES,
    ("ddp", 1): DDP_CASES,
}
SLOW = [("ddp", 1), ("ddp", 3), ("ddp", 4), ("fsdp", 1), ("fsdp", 3), ("fsdp", 4)]


def is_slow(way: str, size: int, case: str) -> bool:
    return (way, size) in SLOW and case not in FOUR_RANKS


@functools.cache
def outcomes(way: str, size: int, slow: bool) -> list[dict[str, str]]:
    cases = {name: case for name, case in CASES[way, size].items() if is_slow(way, size, name) == slow}
    return run_ranks(compare_all, size, cases)


@pytest.mark.parametrize(
    ("way", "size", "case"),
    [
        pytest.param(
            way,
            size,
            case,
            marks=[pytest.mark.slow] * is_slow(way, size, case) + [NEEDS_FSDP] * (way == "fsdp"),
        )
        for (way, size), cases in CASES.items()
        for case in cases
    ],
)
def test_training_is_that_of_one_process(way: str, size: int, case: str) -> None:
    """What a program trains is the same on any number of ranks, whatever it does with its models."""
    assert [outcome[case] for outcome in outcomes(way, size, is_slow(way, size, case))] == [""] * size


def test_an_accumulation_is_one_big_batch() -> None:
    """Batches whose gradients are added up train as one batch of all their records does."""
    apart, at_once = (scenario(Job(Parallel(), 0, 1)) for scenario in (s.accumulated, s.one_big_batch))
    torch.testing.assert_close(apart, at_once, rtol=1e-12, atol=1e-12)
