"""The state of optimizers as data, brought back bit by bit."""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
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
# What torch's own optimizers keep of a parameter from its first step on, of the parameter's shape; below, what they may
# keep besides. An optimizer that is not named here keeps what it likes.
_KEPT = {
    "ASGD": ("ax",),
    "Adadelta": ("square_avg", "acc_delta"),
    "Adagrad": ("sum",),
    "Adam": ("exp_avg", "exp_avg_sq"),
    "AdamW": ("exp_avg", "exp_avg_sq"),
    "Adamax": ("exp_avg", "exp_inf"),
    "NAdam": ("exp_avg", "exp_avg_sq"),
    "RAdam": ("exp_avg", "exp_avg_sq"),
    "RMSprop": ("square_avg",),
    "Rprop": ("prev", "step_size"),
    "SGD": (),
    "SparseAdam": ("exp_avg", "exp_avg_sq"),
}
_MAY_BE_KEPT = ("max_exp_avg_sq", "momentum_buffer", "grad_avg")


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
        CheckpointMismatchError: kind, groups, or the number or shapes of parameters differ, or what is kept of a
            parameter, or a setting, is none.
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
    if not _has_form(state):
        return ["its entries are not those of an optimizer's state"]
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
        faults += _setting_faults(index, group, optimizer, state["param_groups"][index])
    return faults or list(_kept_faults(optimizer, state))


def _has_form(state: Mapping[str, Any]) -> bool:
    groups, shapes = state["param_groups"], state["shapes"]
    return (
        isinstance(state["state"], Mapping)
        and isinstance(groups, list | tuple)
        and all(isinstance(group, Mapping) and isinstance(group.get("params"), list | tuple) for group in groups)
        and isinstance(shapes, list | tuple)
        and all(isinstance(of_group, list | tuple) for of_group in shapes)
        and all(isinstance(shape, list | tuple) for of_group in shapes for shape in of_group)
    )


def _setting_faults(
    index: int, group: Mapping[str, Any], optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]
) -> list[str]:
    """What is wrong with the settings of a group: numbers, and tuples of them.

    Flags are left to the optimizer: they come and go with the versions of torch, which sets those that are missing.
    """
    faults = []
    fills_in = not type(optimizer).__setstate__.__module__.startswith("torch.")
    for key, default in getattr(optimizer, "defaults", {}).items():
        kind = _setting_kind(group.get(key))
        if key not in saved:
            if _setting_kind(default) is not None and not isinstance(default, bool) and not fills_in:
                faults.append(f"group {index} has no {key} there")
        elif kind is not None and saved[key] is not None and _setting_kind(saved[key]) != kind:
            faults.append(f"{key} of group {index} is a {type(saved[key]).__name__} there and a {kind} here")
    return faults


def _setting_kind(value: Any) -> str | None:
    if isinstance(value, torch.Tensor | Parts):
        return "number" if math.prod(value.shape) == 1 else None
    if isinstance(value, bool | int | float | complex | np.number):
        return "number"
    return "tuple" if isinstance(value, list | tuple) else None


def _kept_faults(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with what is kept of the parameters; those that have had no gradient yet have nothing."""
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    parameters = dict(zip(numbers, owned_parameters(optimizer), strict=True))
    is_torchs = type(optimizer).__module__.startswith("torch.optim.")
    needed = _KEPT.get(type(optimizer).__name__) if is_torchs else None
    for number, kept in state["state"].items():
        if number not in parameters:
            if isinstance(number, int):
                yield f"it has the state of a parameter {number} that is in no group"
        elif needed is not None and not isinstance(kept, Mapping):
            yield f"the state of parameter {number} is a {type(kept).__name__}"
        elif needed is not None and kept:
            missing = [key for key in (*needed, *(["step"] if needed else [])) if key not in kept]
            if missing:
                yield f"of parameter {number} there is no {', '.join(missing)}"
            for key in (*needed, *_MAY_BE_KEPT):
                is_there = key in kept and not (kept[key] is None and key in _MAY_BE_KEPT)
                if is_there and _shape(kept[key]) != tuple(parameters[number].shape):
                    yield f"{key} of parameter {number} is {_told(kept[key])}"
            if "step" in kept and _setting_kind(kept["step"]) != "number":
                yield f"step of parameter {number} is {_told(kept['step'])}"


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor | Parts) else None


def _told(value: Any) -> str:
    shape = _shape(value)
    return f"a {type(value).__name__}" if shape is None else f"a tensor of shape {shape}"
