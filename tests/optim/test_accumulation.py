"""Gradients averaged over several batches."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainlab.optim import average_gradients


@given(st.integers(1, 8), st.integers(1, 5))
def test_accumulated_batches_equal_one_big_batch(batches: int, records: int) -> None:
    """Averaged gradients of N batches are those of one batch with all their records."""
    torch.manual_seed(3)
    small, big = nn.Linear(4, 2).double(), nn.Linear(4, 2).double()
    big.load_state_dict(small.state_dict())
    x = torch.randn(batches * records, 4, dtype=torch.float64)
    for part in x.chunk(batches):
        small(part).square().mean().backward()
    average_gradients(small.parameters(), batches)
    big(x).square().mean().backward()
    for ours, theirs in zip(small.parameters(), big.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_mixed_and_missing_gradients() -> None:
    """Gradients of several dtypes, sparse ones and none at all are averaged together, in place."""
    parameters = [
        nn.Parameter(torch.ones(3)),
        nn.Parameter(torch.ones(3)),
        nn.Parameter(torch.ones(2, dtype=torch.bfloat16)),
        nn.Parameter(torch.ones(2, dtype=torch.complex64)),
    ]
    dense = torch.full((3,), 6.0)
    parameters[0].grad = dense
    parameters[2].grad = torch.full((2,), 6.0, dtype=torch.bfloat16)
    parameters[3].grad = torch.full((2,), 6.0 + 3j)
    table = nn.Embedding(5, 2, sparse=True)
    (6 * table(torch.tensor([1, 3]))).sum().backward()
    average_gradients([*parameters, table.weight], 3)
    assert dense.tolist() == [2, 2, 2]
    assert parameters[1].grad is None
    assert parameters[2].grad.tolist() == [2, 2]
    assert parameters[3].grad.tolist() == [2 + 1j, 2 + 1j]
    assert table.weight.grad is not None
    assert table.weight.grad.is_sparse
    assert table.weight.grad.to_dense()[:, 0].tolist() == [0, 2, 0, 2, 0]


def test_nothing_to_average() -> None:
    """Parameters without any gradient are left alone."""
    parameter = nn.Parameter(torch.ones(1))
    average_gradients([parameter], 4)
    average_gradients([], 4)
    assert parameter.grad is None
