"""Forward passes in autocast, by hooks of the module, so that its copies and pickles have them too."""

import contextlib
import threading
from typing import Any

import torch
from torch import nn

from trainlab.precision.outputs import to_float32

__all__ = ["ForwardAutocast", "leave_unfinished"]

# The autocast blocks that forward passes of this thread have opened, with their modules; the last is the innermost.
_opened = threading.local()


class ForwardAutocast:
    """The pair of hooks that runs a module's forward passes in autocast and gives its outputs in float32.

    Args:
        device_type: the device's type, as ``torch.autocast`` takes it.
        dtype: the half-precision dtype; None lets forward passes run as they are.
        compiled_outside: whether a compiled module around this one has such hooks too, so that these do nothing
            while it is compiled. Default False.
    """

    def __init__(self, device_type: str, dtype: torch.dtype | None, compiled_outside: bool = False) -> None:
        self.device_type = device_type
        self.dtype = dtype
        self.compiled_outside = compiled_outside
        # A graph cannot hold a block that one function opens and another closes. Not decorators: they would load
        # the compiler together with this file.
        self._enter: Any = torch.compiler.disable(_enter)  # type: ignore[no-untyped-call]
        self._leave: Any = torch.compiler.disable(_leave)  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.device_type, self.dtype, self.compiled_outside)

    @staticmethod
    def of(model: nn.Module) -> "ForwardAutocast | None":
        """Find the hooks of a module.

        Args:
            model: any module.

        Returns:
            The hooks that it has, or None.
        """
        owners = (getattr(hook, "__self__", None) for hook in model._forward_pre_hooks.values())
        return next((owner for owner in owners if isinstance(owner, ForwardAutocast)), None)

    def register(self, model: nn.Module) -> None:
        """Put the hooks outermost.

        Args:
            model: a module that has none yet.
        """
        model.register_forward_pre_hook(self.enter, prepend=True)
        model.register_forward_hook(self.leave, always_call=True)

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """Open an autocast block; called before the forward pass.

        Args:
            module: the module.
            inputs: what it is called with.
        """
        if self.dtype is None or (self.compiled_outside and torch.compiler.is_compiling()):
            return
        self._enter(module, self.device_type, self.dtype)

    def leave(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Close the block; called after the forward pass, also when it raised an exception.

        Args:
            module: the module.
            inputs: what it was called with.
            output: what it returned, or None if it raised.

        Returns:
            The output, its half-precision tensors as float32.
        """
        if self.dtype is None or (self.compiled_outside and torch.compiler.is_compiling()):
            return None
        return self._leave(module, output)


def leave_unfinished() -> None:
    """Close the blocks of this thread's forward passes that KeyboardInterrupt or SystemExit cut off."""
    blocks = _blocks()
    while blocks:
        blocks.pop()[1].close()


def _blocks() -> list[tuple[nn.Module, contextlib.ExitStack]]:
    blocks: list[tuple[nn.Module, contextlib.ExitStack]] = _opened.__dict__.setdefault("blocks", [])
    return blocks


def _enter(module: nn.Module, device_type: str, dtype: torch.dtype) -> None:
    block = contextlib.ExitStack()
    block.enter_context(torch.autocast(device_type, dtype))
    _blocks().append((module, block))


def _leave(module: nn.Module, output: Any) -> Any:
    blocks = _blocks()
    # Another hook may have failed before ours was called, and an interrupt skips this one: only the module's own
    # block is closed, with what was left open inside it.
    if any(owner is module for owner, _ in blocks):
        owner = None
        while owner is not module:
            owner, block = blocks.pop()
            block.close()
    return to_float32(output)
