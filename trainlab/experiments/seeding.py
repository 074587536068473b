"""Seeding of the process's random generators; those of packages that are not loaded yet, when they are."""

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

__all__ = ["seed_process"]

# numpy's global generator takes 32 bits.
_SEEDED: dict[str, Callable[[Any, int], object]] = {
    "numpy": lambda numpy, seed: numpy.random.seed(seed & 0xFFFFFFFF),
    "torch": lambda torch, seed: torch.manual_seed(seed % 2**64),
}


@contextlib.contextmanager
def seed_process(seed: int) -> Iterator[None]:
    """Seed ``random``, numpy and torch; what is not loaded yet is seeded when the block's code loads it.

    So a run that needs no torch does not wait for it.

    Args:
        seed: at least 0.

    Yields:
        None.
    """
    random.seed(seed)
    later: dict[str, Callable[[Any, int], object]] = {}
    for name, seeded in _SEEDED.items():
        if name in sys.modules:
            seeded(sys.modules[name], seed)
        else:
            later[name] = seeded
    finder = _SeedsWhatIsLoaded(later, seed)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _SeedsWhatIsLoaded(importlib.abc.MetaPathFinder):
    """Lets a package's generator be seeded right after the package is loaded."""

    def __init__(self, later: dict[str, Callable[[Any, int], object]], seed: int) -> None:
        self._later, self._seed = later, seed
        self._asked: set[str] = set()

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Find a package by the finders behind this one, and see that it is seeded."""
        if fullname not in self._later or fullname in self._asked:
            return None
        self._asked.add(fullname)  # not to be asked again by what comes next
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asked.discard(fullname)
        if spec is not None and spec.loader is not None:
            self._seed_after(fullname, spec.loader)
        return spec

    def _seed_after(self, name: str, loader: Any) -> None:
        load = loader.exec_module

        def load_and_seed(module: ModuleType) -> None:
            load(module)
            # Not before: who only looks whether there is such a package does not load it.
            seeded = self._later.pop(name, None)
            if seeded is not None:
                seeded(module, self._seed)

        loader.exec_module = load_and_seed
