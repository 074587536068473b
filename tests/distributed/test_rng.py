import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainlab.distributed import RngState, derive_seed, preserved_rng, seed_all
from trainlab.errors import InvalidTypeError, InvalidValueError

PARTS = st.lists(st.one_of(st.integers(), st.text()), max_size=5)


def draws() -> tuple[float, float, float]:
    """A number of each generator."""
    return torch.rand(1).item(), random.random(), float(np.random.randn())


@given(PARTS, PARTS)
def test_derive_seed_tells_different_parts_apart(one: list[int | str], other: list[int | str]) -> None:
    """Seeds of different parts differ, and each is one that every generator takes."""
    same = [(type(part), part) for part in one] == [(type(part), part) for part in other]
    assert (derive_seed(*one) == derive_seed(*other)) is same
    assert 0 <= derive_seed(*one) < 2**63


def test_derive_seed_is_the_same_in_every_process_and_version() -> None:
    """A run resumed by another process, years later, draws the same order of data."""
    assert derive_seed(0, "order", 3) == 4106170028138913670
    program = "from trainlab.distributed import derive_seed; print(derive_seed(0, 'order', 3))"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive_seed(0, "order", 3)


def test_derive_seed_keeps_neighbouring_strings_apart() -> None:
    """Where one part ends and the next begins matters, and so does whether a part is a number."""
    assert len({derive_seed("ab", "c"), derive_seed("a", "bc"), derive_seed("abc"), derive_seed("a", "b", "c")}) == 4
    assert derive_seed(1) != derive_seed("1")
    assert derive_seed(np.int64(7)) == derive_seed(7)


def test_derive_seed_refuses_what_has_no_lasting_form() -> None:
    """An object whose text may change is no part of a seed, and the error says what to pass."""
    with pytest.raises(InvalidTypeError, match="Received: 0.5 of type float"):
        derive_seed(0.5)  # type: ignore[arg-type]


@given(st.integers(0, 2**64 - 1))
def test_the_same_seed_gives_the_same_numbers(seed: int) -> None:
    """torch, numpy and random repeat what they drew after any seed, also one of more than 32 bits."""
    with preserved_rng():
        seed_all(seed)
        first = draws()
        seed_all(seed)
        assert draws() == first


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    """A seed that one of the generators would not take is refused before any of them is changed."""
    before = RngState.capture()
    with pytest.raises(InvalidValueError, match=f"Received: {seed}"):
        seed_all(seed)
    assert torch.equal(before.cpu, torch.get_rng_state())


def test_a_seed_that_is_no_integer_is_refused() -> None:
    """A float is no seed."""
    with pytest.raises(InvalidTypeError, match="Received: 1.5"):
        seed_all(1.5)  # type: ignore[arg-type]


@given(st.integers(0, 2**32), st.integers(0, 3))
def test_a_restored_state_repeats_the_draws(seed: int, drawn_before: int) -> None:
    """After restore, also through the form that a checkpoint holds, the same numbers come again."""
    with preserved_rng():
        seed_all(seed)
        for _ in range(drawn_before):
            random.gauss(0, 1), np.random.randn()  # both keep half of a pair for the next call
        state = RngState.capture()
        expected = (*draws(), random.gauss(0, 1))
        RngState.from_state_dict(state.state_dict()).restore()
        assert (*draws(), random.gauss(0, 1)) == expected


def test_a_captured_state_does_not_move_on() -> None:
    """Drawing after a capture does not change what was captured, so it can be restored twice."""
    with preserved_rng():
        state = RngState.capture()
        first = draws()
        state.restore()
        assert draws() == first
        state.restore()
        assert draws() == first


def test_preserved_rng_puts_back_after_an_error_too() -> None:
    """What a block draws or seeds leaves no trace, even if it fails."""
    with preserved_rng():
        state = RngState.capture()
        expected = draws()
        state.restore()
        with pytest.raises(KeyError), preserved_rng():
            seed_all(1)
            raise KeyError
        assert draws() == expected


def test_capture_leaves_cuda_alone() -> None:
    """A process that does not use CUDA is not made to initialise it."""
    was_in_use = torch.cuda.is_initialized()
    state = RngState.capture()
    assert torch.cuda.is_initialized() is was_in_use
    assert (state.cuda is not None) is was_in_use


def test_the_state_of_more_gpus_than_there_are_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    """Resuming on fewer GPUs says that the generators of the others are not restored."""
    state = RngState.capture(devices=False).state_dict()
    state["cuda"] = [torch.zeros(16, dtype=torch.uint8)] * (torch.cuda.device_count() + 1)
    if torch.cuda.device_count():
        state["cuda"][:-1] = torch.cuda.get_rng_state_all()
    RngState.from_state_dict(state).restore()
    assert "is not restored" in caplog.text


@pytest.mark.parametrize("state", [{}, {"cpu": torch.get_rng_state()}, {"random": 3}])
def test_what_is_no_state_is_refused(state: dict[str, object]) -> None:
    """A state without its parts is an error that says so, and not a run with other numbers."""
    with pytest.raises(InvalidValueError, match="not a state of random number generators"):
        RngState.from_state_dict(state)


@pytest.mark.cuda
def test_the_gpus_generators_are_restored() -> None:
    """Numbers drawn on a GPU come again after restore."""
    torch.rand(1, device="cuda")
    state = RngState.from_state_dict(RngState.capture().state_dict())
    expected = torch.rand(4, device="cuda")
    state.restore()
    assert torch.equal(torch.rand(4, device="cuda"), expected)
