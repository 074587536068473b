"""Moving a context to a device; optimizers follow their parameters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from trainlab.containers.holder import Holder
from trainlab.containers.kinds import is_entered

__all__ = ["Mover"]


class Mover:
    """One move of a whole context.

    Args:
        device: where to.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        # What was moved, with what stands in its place: it may be there under several names.
        self._moved: dict[int, tuple[Any, Any]] = {}
        # Parameters that are another object now, which torch may be told to make.
        self._replaced: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._optimizers: list[torch.optim.Optimizer] = []

    def move_parts(self, container: Holder) -> None:
        """Move what is in a container.

        Args:
            container: it.
        """
        self._moved[id(container)] = container, container
        for key in container._keys():
            container._parts[key] = self._move(container._parts[key])

    def finish(self) -> None:
        """Let the optimizers follow, once all parameters are where they belong."""
        for optimizer in self._optimizers:
            self._follow(optimizer)

    def _move(self, value: Any) -> Any:
        known = self._moved.get(id(value))
        if known is None:
            if isinstance(value, Holder):
                self.move_parts(value)
                return value
            known = self._moved[id(value)] = value, self._moved_anew(value)
        return known[1]

    def _moved_anew(self, value: Any) -> Any:
        if isinstance(value, nn.Module):
            return self._move_module(value)
        if isinstance(value, torch.Tensor):
            return self._move_tensor(value)
        if isinstance(value, torch.optim.Optimizer):
            self._optimizers.append(value)
            return value
        if is_entered(value):
            return tuple(map(self._move, value))
        if callable(getattr(value, "to", None)) and not isinstance(value, type):
            moved = value.to(self._device)
            return value if moved is None else moved
        return pytree.tree_map_only(torch.Tensor, self._move, value)

    def _move_module(self, module: nn.Module) -> nn.Module:
        before = dict(module.named_parameters())
        moved = module.to(self._device)
        for name, parameter in moved.named_parameters():
            if before[name] is not parameter:
                self._replaced[id(before[name])] = before[name], parameter
        return moved

    def _move_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) in self._replaced:
            return self._replaced[id(tensor)][1]
        if not (tensor.requires_grad and tensor.is_leaf) or tensor.device == self._device:
            return tensor.to(self._device)
        gradient, tensor.grad = tensor.grad, None
        data, moved = tensor.data.to(self._device), tensor
        if torch._has_compatible_shallow_copy_type(tensor, data):
            tensor.data = data  # the same object afterwards, as a module's parameters are
        else:
            moved = nn.Parameter(data) if isinstance(tensor, nn.Parameter) else data.requires_grad_()
            self._replaced[id(tensor)] = tensor, moved
        moved.grad = None if gradient is None else gradient.to(self._device)
        return moved

    def _follow(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            is_on_device = bool(group.get("capturable") or group.get("fused"))
            before = list(group["params"])
            group["params"][:] = [self._replaced.get(id(old), (old, old))[1] for old in before]
            for old, new in zip(before, group["params"], strict=True):
                if old in optimizer.state:
                    optimizer.state[new] = _moved_state(optimizer.state.pop(old), new.device, is_on_device)
            for key, value in group.items():
                if isinstance(value, torch.Tensor) and self._device.type == "cpu":
                    group[key] = value.cpu()


def _moved_state(state: Any, device: torch.device, is_on_device: bool, key: Any = None) -> Any:
    """The state of a parameter where the parameter is; a count of steps only if the optimizer wants it there."""
    if isinstance(state, torch.Tensor):
        stays = key == "step" and not is_on_device and device.type != "cpu"
        return state if stays else state.to(device)
    if isinstance(state, Mapping):
        return {name: _moved_state(value, device, is_on_device, name) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_moved_state(value, device, is_on_device) for value in state)
    return state
