"""The state of optimizers as data, brought back bit by bit."""

import copy
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from trainlab.checkpoint import Parts, is_sharded, place_as_part, place_like, without_parts
from trainlab.errors import CheckpointMismatchError

__all__ = [
    "check_optimizer_state",
    "describe_lrs",
    "load_optimizer_state",
    "optimizer_state_dict",
    "owned_parameters",
]

_KEYS = ("type", "shapes", "state", "param_groups")


def owned_parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """List the parameters of an optimizer.

    Args:
        optimizer: any torch optimizer.

    Returns:
        All its parameters in the order of its groups.
    """
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def describe_lrs(optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, float]:
    """Give the learning rates in force, ready to be recorded.

    Args:
        optimizers: optimizers by name.

    Returns:
        ``{"lr": rate}`` for one optimizer with one group; otherwise ``"lr/<name>"``, or ``"lr/<name>/<group>"``
        for each group of an optimizer with several.
    """
    rates = {}
    for name, optimizer in optimizers.items():
        several = len(optimizer.param_groups) > 1
        for index, group in enumerate(optimizer.param_groups):
            key = f"lr/{name}/{index}" if several else f"lr/{name}" if len(optimizers) > 1 else "lr"
            rates[key] = float(group["lr"])
    return rates


def optimizer_state_dict(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Give an optimizer's state as data.

    Args:
        optimizer: any torch optimizer.

    Returns:
        torch's ``state_dict``, whose tensors are the optimizer's own and not copies, with the optimizer's type and
        the shapes of its parameters.
    """
    shapes = [[tuple(p.shape) for p in group["params"]] for group in optimizer.param_groups]
    return {"type": type(optimizer).__qualname__, "shapes": shapes, **optimizer.state_dict()}


def check_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Make sure that a state can be loaded into an optimizer.

    Args:
        optimizer: the optimizer; it is not changed.
        state: what ``optimizer_state_dict`` gave.

    Raises:
        CheckpointMismatchError: kind, groups, or the number or shapes of parameters differ.
    """
    faults = _faults(optimizer, state)
    if faults:
        raise CheckpointMismatchError(
            f"The saved state does not fit this {type(optimizer).__qualname__}: {'; '.join(faults)}. "
            "Build the optimizer as it was when the state was saved."
        )


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take over an optimizer's state; every tensor comes back with the dtype that it had.

    The parameters may be distributed otherwise than they were: where a parameter is a DTensor, what its state has for
    each of its elements becomes one like it, of which only this rank's part is read; where it is none, whole tensors.

    torch's own ``load_state_dict`` casts floating-point state to the dtype of the parameter, so that the float32
    state of a bfloat16 parameter would be rounded.

    Args:
        optimizer: an optimizer of the same kind over the same parameters.
        state: what ``optimizer_state_dict`` gave, or what was read from a checkpoint of it, ``Parts`` included. It
            shares nothing with the optimizer afterwards.

    Raises:
        CheckpointMismatchError: kind, groups, or the number or shapes of parameters differ; nothing is changed then.
    """
    check_optimizer_state(optimizer, state)
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = dict(zip(numbers, owned_parameters(optimizer), strict=True))
    placed = {number: _placed(saved, parameters.get(number)) for number, saved in state["state"].items()}
    state = {**state, "state": placed, "param_groups": without_parts(state["param_groups"])}
    with warnings.catch_warnings():
        # torch casts here, and warns of it; what it casts is put back exactly below.
        warnings.filterwarnings("ignore", message="Casting complex values to real")
        optimizer.load_state_dict({key: value for key, value in state.items() if key not in ("type", "shapes")})
    for number, saved in state["state"].items():
        key = parameters.get(number, number)
        if key in optimizer.state:
            optimizer.state[key] = _exact(saved, optimizer.state[key])


def _placed(saved: Any, parameter: torch.Tensor | None) -> Any:
    """The state of a parameter, distributed as that is."""
    if parameter is None or not is_sharded(parameter):
        return without_parts(saved)
    if isinstance(saved, Mapping):
        return {key: value if key == "step" else _placed(value, parameter) for key, value in saved.items()}
    if isinstance(saved, list | tuple):
        return type(saved)(_placed(value, parameter) for value in saved)
    if isinstance(saved, Parts | torch.Tensor) and tuple(saved.shape) == tuple(parameter.shape):
        return place_like(saved, parameter)
    return place_as_part(saved, parameter) if isinstance(saved, Parts) else saved


def _exact(saved: Any, loaded: Any) -> Any:
    """Copy a saved value to where torch loaded it; what a hook of the optimizer made of it stays."""
    if isinstance(saved, torch.Tensor) and isinstance(loaded, torch.Tensor):
        return saved.detach().to(loaded.device, copy=True) if saved.shape == loaded.shape else loaded
    if isinstance(saved, Mapping) and isinstance(loaded, Mapping):
        return {
            # torch casts a step by rules of its own: a fused kernel takes it in float32 only.
            key: value.clone() if key == "step" and isinstance(value, torch.Tensor) else _exact(saved.get(key), value)
            for key, value in loaded.items()
        }
    if isinstance(saved, list | tuple) and isinstance(loaded, list | tuple) and len(saved) == len(loaded):
        return type(loaded)(_exact(one, value) for one, value in zip(saved, loaded, strict=True))
    # torch takes a string for a sequence of characters and breaks it.
    return saved if isinstance(saved, str) else copy.deepcopy(loaded)


def _faults(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> list[str]:
    if missing := [key for key in _KEYS if key not in state]:
        return [f"the entries {missing} are missing"]
    here = type(optimizer).__qualname__
    if state["type"] != here:
        return [f"it is the state of a {state['type']}"]
    live, saved = optimizer.param_groups, state["shapes"]
    if not len(live) == len(saved) == len(state["param_groups"]):
        return [f"it has {len(state['param_groups'])} parameter groups, and the optimizer has {len(live)}"]
    faults = []
    for index, (group, shapes) in enumerate(zip(live, saved, strict=True)):
        count = len(group["params"])
        if not count == len(shapes) == len(state["param_groups"][index]["params"]):
            faults.append(f"group {index} has {len(shapes)} parameters there and {count} here")
            continue
        for number, (parameter, shape) in enumerate(zip(group["params"], shapes, strict=True)):
            if tuple(parameter.shape) != tuple(shape):
                faults.append(
                    f"parameter {number} of group {index} has the shape {tuple(shape)} there "
                    f"and {tuple(parameter.shape)} here"
                )
    return faults
