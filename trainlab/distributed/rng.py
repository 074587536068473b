"""Seeds, and the state of the random number generators of one process."""

import hashlib
import logging
import operator
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trainlab.errors import InvalidTypeError, InvalidValueError

__all__ = ["RngState", "derive_seed", "preserved_rng", "seed_all"]

_logger = logging.getLogger("trainlab.distributed")


def derive_seed(*parts: int | str) -> int:
    """A seed that is a function of its parts alone: the same in every process, on every machine and in every version.

    Args:
        parts: What the seed is for, such as ``(seed, "workers", epoch, batch)``. ``1`` and ``"1"`` are different parts.

    Returns:
        An integer of 63 bits, 0 to 2**63 - 1: the first 8 bytes of BLAKE2b over the parts, halved.

    Raises:
        InvalidTypeError: A part is neither an integer nor a string.
    """
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        content = _part_bytes(part)
        # The length in front keeps ("ab", "c") apart from ("a", "bc").
        digest.update(b"%d:" % len(content) + content)
    return int.from_bytes(digest.digest(), "big") >> 1


def _part_bytes(part: int | str) -> bytes:
    if isinstance(part, str):
        return b"s" + part.encode("utf-8", "surrogatepass")
    try:
        return b"i%d" % operator.index(part)
    except TypeError:
        raise InvalidTypeError(
            f"A seed is derived from integers and strings. Received: {part!r} of type {type(part).__name__}. "
            "Pass str(value) for anything else."
        ) from None


def seed_all(seed: int) -> None:
    """Seed torch (on every device), numpy's global generator and ``random``.

    Args:
        seed: 0 to 2**64 - 1. numpy's global generator takes 32 bits and gets the low ones.

    Raises:
        InvalidTypeError: ``seed`` is no integer.
        InvalidValueError: ``seed`` is out of range.
    """
    try:
        value = operator.index(seed)
    except TypeError:
        raise InvalidTypeError(f"A seed is an integer. Received: {seed!r} of type {type(seed).__name__}.") from None
    if not 0 <= value < 2**64:
        raise InvalidValueError(f"A seed is between 0 and 2**64 - 1. Received: {value}. Pass seed % 2**64.")
    torch.manual_seed(value)
    np.random.seed(value & 0xFFFFFFFF)
    random.seed(value)


@dataclass(frozen=True, eq=False)
class RngState:
    """What the generators of this process stood at: torch (CPU and devices), numpy's global one and ``random``.

    Args:
        cpu: torch's CPU generator, a uint8 tensor.
        numpy: As ``numpy.random.get_state(legacy=False)`` gives it.
        python: As ``random.getstate()`` gives it.
        cuda: One uint8 tensor for each GPU; None where CUDA was not in use.
        mps: A uint8 tensor; None where there is no such device.
    """

    cpu: torch.Tensor
    numpy: Mapping[str, Any]
    python: tuple[Any, ...]
    cuda: tuple[torch.Tensor, ...] | None = None
    mps: torch.Tensor | None = None

    @classmethod
    def capture(cls, devices: bool = True) -> "RngState":
        """Read the generators, without changing them and without initialising a device.

        Args:
            devices: Read those of the GPUs too (this waits for them); default True. CUDA is left alone
                while no one has used it: its generators then still hang on the seed alone.

        Returns:
            The state; later draws do not change it.
        """
        cuda = mps = None
        if devices and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            cuda = tuple(torch.cuda.get_rng_state_all())
        if devices and torch.backends.mps.is_available():
            mps = torch.mps.get_rng_state()
        numpy_state = np.random.get_state(legacy=False)
        return cls(torch.get_rng_state(), numpy_state, random.getstate(), cuda, mps)

    def restore(self) -> None:
        """Put the generators back to this state. Devices of which it holds nothing are left as they are."""
        torch.set_rng_state(self.cpu)
        np.random.set_state(dict(self.numpy))
        random.setstate(self.python)
        if self.cuda is not None:
            self._restore_cuda(self.cuda)
        if self.mps is not None and torch.backends.mps.is_available():
            torch.mps.set_rng_state(self.mps)

    @staticmethod
    def _restore_cuda(states: tuple[torch.Tensor, ...]) -> None:
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if count < len(states):
            _logger.warning(
                "The random state of %d GPUs was saved and %d are here: that of the others is not restored.",
                len(states),
                count,
            )
        for device, state in enumerate(states[:count]):
            torch.cuda.set_rng_state(state, device)

    def state_dict(self) -> dict[str, Any]:
        """The state as plain data, arrays and tensors, for a checkpoint.

        Returns:
            ``cpu``, ``numpy``, ``random``, and ``cuda`` and ``mps`` where there are such devices.
        """
        version, internal, gauss = self.python
        state: dict[str, Any] = {
            "cpu": self.cpu,
            "numpy": dict(self.numpy),
            "random": {"version": version, "state": np.array(internal, dtype=np.uint32), "gauss": gauss},
        }
        if self.cuda is not None:
            state["cuda"] = list(self.cuda)
        if self.mps is not None:
            state["mps"] = self.mps
        return state

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "RngState":
        """The state that ``state_dict`` gave.

        Args:
            state: What ``state_dict`` returned, as it was or read back from a checkpoint.

        Returns:
            The state; ``restore`` puts the generators to it.

        Raises:
            InvalidValueError: A generator's state is missing or is not of the form that ``state_dict`` gives.
        """
        try:
            saved = state["random"]
            python = (saved["version"], tuple(int(word) for word in saved["state"]), saved["gauss"])
            cuda = tuple(state["cuda"]) if state.get("cuda") is not None else None
            return cls(state["cpu"], dict(state["numpy"]), python, cuda, state.get("mps"))
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidValueError(
                f"This is not a state of random number generators ({type(error).__name__}: {error}). "
                f"Received: {type(state).__name__} {sorted(map(str, state))}. Pass what RngState.state_dict() returned."
            ) from error


@contextmanager
def preserved_rng(devices: bool = True) -> Iterator[None]:
    """Put the generators back, at the end of the block, to where they stood at its beginning.

    Args:
        devices: Those of the GPUs too; default True.

    Yields:
        None.
    """
    before = RngState.capture(devices)
    try:
        yield
    finally:
        before.restore()
