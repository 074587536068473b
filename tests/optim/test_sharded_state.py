"""Optimizer states go on in another distribution of the same parameters."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.distributed.tensor import DTensor, Replicate, Shard

from tests.checkpoint.ranks import as_rank, share
from tests.checkpoint.samples import same
from tests.checkpoint.test_sharding import parts_of
from tests.optim.test_state import OPTIMIZERS
from trainlab.checkpoint import Parts
from trainlab.checkpoint.parts import Box, Piece
from trainlab.errors import CheckpointMismatchError
from trainlab.optim import load_optimizer_state, optimizer_state_dict

NAMES = ("Adam", "AdamW, fused", "Adagrad", "ASGD", "Exotic", "NAdam", "RMSprop", "SGD, momentum")
SHAPES = ((5, 3), (2,))


def stepped(make: Callable[[Any], optim.Optimizer], dtype: torch.dtype = torch.float32) -> optim.Optimizer:
    """An optimizer of two parameters that has a state."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    optimizer = make(parameters)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(dtype)
        optimizer.step()
    return optimizer


def mapped(tree: Any, change: Callable[[torch.Tensor], Any]) -> Any:
    """A tree with its tensors of more than one number changed."""
    if isinstance(tree, torch.Tensor):
        return change(tree) if tree.dim() else tree
    if isinstance(tree, dict):
        return {key: mapped(value, change) for key, value in tree.items()}
    return type(tree)(mapped(value, change) for value in tree) if isinstance(tree, list | tuple) else tree


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_rank_takes_its_part_of_a_state(name: str, in_parts: bool, dtype: torch.dtype) -> None:
    """A state that was whole, or saved by other ranks, is cut like the parameters, in the dtypes that it had."""
    whole = stepped(OPTIMIZERS[name], dtype)
    saved = optimizer_state_dict(whole)
    state = {**saved, "state": mapped(saved["state"], parts_of)} if in_parts else saved
    for rank in range(3):
        with as_rank(rank, 3) as grid:

            def cut(tensor: torch.Tensor) -> torch.Tensor:
                return share(tensor, grid, [Shard(0)])

            parameters = [nn.Parameter(cut(parameter.detach())) for parameter in whole.param_groups[0]["params"]]
            optimizer = OPTIMIZERS[name](parameters)
            load_optimizer_state(optimizer, state)
            found = mapped(optimizer.state_dict()["state"], lambda tensor: tensor.to_local())
            assert same(found, mapped(saved["state"], lambda tensor: cut(tensor).to_local()))


@pytest.mark.parametrize("name", NAMES)
def test_parts_go_into_an_ordinary_optimizer(name: str) -> None:
    """A state that was distributed is put together for parameters that are not, and shares nothing with it."""
    whole = stepped(OPTIMIZERS[name])
    saved = optimizer_state_dict(whole)
    optimizer = stepped(OPTIMIZERS[name])
    load_optimizer_state(optimizer, {**saved, "state": mapped(saved["state"], parts_of)})
    assert same(optimizer.state_dict()["state"], saved["state"])


class Rows(optim.Optimizer):
    """Keeps a number a row and a number a column."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {})

    def step(self, closure: Any = None) -> None:
        """Nothing."""


def test_what_is_of_another_shape_is_cut_as_it_was() -> None:
    """Sums of rows that were cut are cut again, and what each rank had whole each has whole again."""
    rows, columns = torch.arange(5.0), torch.arange(3.0)
    cut = Parts(
        (5,),
        torch.float32,
        [
            Piece(Box((begin,), (size,)), lambda first, last, begin=begin: rows[begin + first : begin + last].clone())
            for begin, size in ((0, 2), (2, 3))
        ],
    )
    state = {
        **{"type": "Rows", "shapes": [[(5, 3)]], "param_groups": [{"params": [0]}]},
        "state": {0: {"rows": cut, "columns": parts_of(columns), "count": torch.tensor(3.0)}},
    }
    with as_rank(1, 2) as grid:
        parameter = nn.Parameter(share(torch.zeros(5, 3), grid, [Shard(0)]))
        optimizer = Rows([parameter])
        load_optimizer_state(optimizer, state)
        found = optimizer.state[parameter]
        assert isinstance(found["rows"], DTensor) and isinstance(found["columns"], DTensor)
        assert found["rows"].placements == (Shard(0),) and same(found["rows"].to_local(), rows[3:])
        assert found["columns"].placements == (Replicate(),) and same(found["columns"].to_local(), columns)
        assert same(found["count"], torch.tensor(3.0))


def test_parameters_of_another_shape_are_refused() -> None:
    """The whole shapes are compared, and not those of the parts."""
    saved = optimizer_state_dict(stepped(OPTIMIZERS["Adam"]))
    with as_rank(0, 2) as grid:
        parameters = [nn.Parameter(share(torch.zeros(shape), grid, [Shard(0)])) for shape in ((6, 3), (2,))]
        with pytest.raises(CheckpointMismatchError, match=r"\(5, 3\) there and \(6, 3\) here"):
            load_optimizer_state(OPTIMIZERS["Adam"](parameters), saved)
