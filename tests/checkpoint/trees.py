"""Trees of every kind of value that a checkpoint holds, and how two of them are compared."""

import dataclasses
import datetime
import enum
import pathlib
import struct
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from hypothesis import strategies as st

from tests.checkpoint.samples import bits

T = TypeVar("T")
TORCH_DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2),
]
NUMPY_DTYPES = [
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *("<M8[ns]", "<M8[D]", "<M8", "<m8[25s]", "<m8[Y]", "<U1", "<U7", "|S1", "|S5"),
]


class Mode(enum.Enum):
    SLOW = "slow"
    FAST = object()  # a value that no file could hold
    QUICK = FAST


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(str, enum.Enum):
    YES = "yes"


class Permission(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()
    BOTH = READ | WRITE


class Bits(enum.IntFlag):
    A = 1
    B = 8


Point = namedtuple("Point", "x y")


class Interval(NamedTuple):
    low: Any
    high: Any = None


class Named(namedtuple("Named", "a")):
    def __new__(cls, a: Any) -> "Named":
        raise AssertionError("it must not be run")


@dataclasses.dataclass
class Box:
    side: Any
    area: Any = dataclasses.field(init=False, default=0)
    start: dataclasses.InitVar[int] = 0

    def __post_init__(self, start: int) -> None:
        self.area = [self.side]


@dataclasses.dataclass(frozen=True)
class Frozen:
    left: Any
    right: Any = None

    def __new__(cls, *arguments: Any) -> "Frozen":
        raise AssertionError("it must not be run")

    def __post_init__(self) -> None:
        if self.left == "forbidden":
            raise ValueError(self.left)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted(Generic[T]):
    item: T
    _hidden: Any = dataclasses.field(default=1, repr=False, compare=False)


def raw(cls: type, **values: Any) -> Any:
    """A member made without its ``__init__``."""
    made = object.__new__(cls)
    for name, value in values.items():
        object.__setattr__(made, name, value)
    return made


def any_bits(dtype: torch.dtype, shape: list[int], seed: int) -> torch.Tensor:
    """A tensor of random bytes, so of NaNs with payloads, infinities and subnormal numbers too."""
    count = int(np.prod(shape)) * dtype.itemsize
    data = np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)
    if dtype is torch.bool:
        data &= 1
    if not count:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(data), dtype=dtype).reshape(shape)


def parameter(tensor: torch.Tensor, needs_grad: bool) -> torch.nn.Parameter:
    may = tensor.dtype.is_floating_point or tensor.dtype.is_complex
    return torch.nn.Parameter(tensor, requires_grad=needs_grad and may)


def sparse(count: int, dense: list[int], dtype: torch.dtype, coalesced: bool, seed: int) -> torch.Tensor:
    """A sparse tensor, with some indices twice unless it is coalesced."""
    values = any_bits(dtype, [count, *dense], seed)
    flat = torch.arange(count) if coalesced else torch.arange(count) // 2
    size = [4, 3, *dense]
    return torch.sparse_coo_tensor(
        torch.stack([flat // 3, flat % 3]), values, size, is_coalesced=coalesced, check_invariants=True
    )


def array(dtype: str, shape: list[int], order: str, seed: int) -> "np.ndarray[Any, Any]":
    numbers = np.random.default_rng(seed).integers(0, 2, shape)
    made = numbers.astype("int64").astype(dtype) if "8" in dtype and dtype[0] == "<" else numbers.astype(dtype)
    return np.array(made, order=order)


shapes = st.lists(st.integers(0, 3), max_size=3)
tensors = st.builds(any_bits, st.sampled_from(TORCH_DTYPES), shapes, st.integers(0, 99))
sparse_tensors = st.builds(
    sparse, st.integers(0, 8), shapes, st.sampled_from(TORCH_DTYPES), st.booleans(), st.integers(0, 99)
)
arrays = st.builds(array, st.sampled_from(NUMPY_DTYPES), shapes, st.sampled_from("CF"), st.integers(0, 99))
numpy_scalars = st.one_of(
    arrays.filter(lambda made: made.size and made.dtype.kind not in "US").map(lambda made: made.reshape(-1)[0]),
    st.builds(np.str_, st.text(st.characters())),
    st.builds(np.bytes_, st.binary()),
    st.just(np.datetime64("NaT")),
)
texts = st.text(st.characters())  # lone surrogates too
zones = st.builds(
    lambda offset, name: datetime.timezone(offset, *name),
    st.timedeltas(datetime.timedelta(hours=-23), datetime.timedelta(hours=23)),
    st.just(()) | st.tuples(texts),
)
some_zone = st.none() | st.just(datetime.timezone.utc) | zones
moments = st.datetimes() | st.times()
times = st.one_of(
    st.builds(lambda made, zone, fold: made.replace(tzinfo=zone, fold=fold), moments, some_zone, st.integers(0, 1)),
    *(st.dates(), st.timedeltas(), zones),
)
names = st.text(st.sampled_from("ab .é\ud800"), max_size=4)
paths = st.builds(
    lambda kind, parts: kind(*parts),
    st.sampled_from([pathlib.Path, pathlib.PurePosixPath, pathlib.PureWindowsPath]),
    st.lists(names | st.sampled_from(["/", "..", "C:\\"]), max_size=3),
)
long_ints = st.binary(max_size=200).map(lambda content: int.from_bytes(content, "big", signed=True))
members = st.sampled_from(
    [Mode.SLOW, Mode.FAST, Level.HIGH, Word.YES, *map(Permission, range(4)), *map(Bits, (0, 1, 9, 12, 2**70))]
)
_hashable = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(), long_ints, texts, st.binary(), members, times, paths),
        *(st.floats(allow_nan=False), st.complex_numbers(allow_nan=False), st.sampled_from(TORCH_DTYPES)),
        *(st.builds(torch.Size, shapes), st.sampled_from([torch.device("cpu"), torch.device("cuda", 1)])),
        *(st.sampled_from([torch.strided, torch.sparse_coo, torch.channels_last, torch.preserve_format]),),
        st.builds(range, long_ints, long_ints, st.integers(1, 9)),
    ),
    lambda inner: st.one_of(
        *(st.lists(inner, max_size=3).map(tuple), st.frozensets(inner, max_size=3)),
        *(st.tuples(inner, inner).map(Point._make), inner.map(Interval), inner.map(Slotted)),
        st.builds(lambda i: raw(Frozen, left=i, right="forbidden"), inner),
    ),
    max_leaves=4,
)
# Deferred, or their description would be written out again in each that is built of them.
hashable: st.SearchStrategy[Any] = st.deferred(lambda: _hashable)
_leaves = st.one_of(
    *(hashable, st.floats(), st.complex_numbers(), tensors, sparse_tensors, arrays, numpy_scalars),
    *(st.binary().map(bytearray), st.builds(parameter, tensors, st.booleans())),
    st.builds(parameter, sparse_tensors, st.booleans()),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Every kind of container around what ``inner`` gives."""
    mappings = st.dictionaries(texts | st.just("$") | hashable, inner, max_size=3)
    factories = st.sampled_from([list, int, float, dict, set, None])
    lists = st.lists(inner, max_size=3)
    return st.one_of(
        *(lists, lists.map(tuple), mappings, mappings.map(OrderedDict), st.builds(defaultdict, factories, mappings)),
        st.builds(deque, lists, st.none() | st.integers(3, 5)),
        st.dictionaries(hashable, st.integers(), max_size=3).map(Counter),
        st.sets(hashable, max_size=3),
        st.builds(slice, inner, inner, inner),
        *(st.tuples(inner, inner).map(Point._make), st.tuples(inner, inner).map(Interval._make)),
        st.builds(lambda i: tuple.__new__(Named, (i,)), inner),
        *(inner.map(Box), st.tuples(inner, inner).map(lambda pair: Slotted(*pair))),
        st.builds(lambda i, j: raw(Frozen, left=i, right=j), inner, inner),
    )


trees = st.recursive(st.deferred(lambda: _leaves), containers, max_leaves=12)


def _ordered(value: Any) -> str:
    """The repr, with the elements of sets in one order."""
    if isinstance(value, (set, frozenset)):
        return f"{type(value).__name__}{sorted(map(_ordered, value))}"
    if dataclasses.is_dataclass(value):
        return f"{type(value).__name__}{[_ordered(getattr(value, f.name)) for f in dataclasses.fields(value)]}"
    if isinstance(value, enum.Enum) or not isinstance(value, tuple):
        return repr(value)
    return f"{type(value).__name__}{list(map(_ordered, value))}"


def same(one: Any, other: Any) -> bool:
    """Whether two trees agree in types, order, dtypes, shapes and every bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, enum.Enum):
        return one is other
    if isinstance(one, torch.Tensor):
        return _same_tensors(one, other)
    if isinstance(one, (np.ndarray, np.generic)):
        if isinstance(one, (str, bytes)):
            return bool(one == other)
        return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    if isinstance(one, (set, frozenset)):
        return one == other and _ordered(one) == _ordered(other)
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    content, other_content = _content(one), _content(other)
    if content is None or other_content is None:
        return repr(one) == repr(other)
    return len(content) == len(other_content) and all(map(same, content, other_content))


def _content(value: Any) -> list[Any] | None:
    """The parts of a value, with what else tells it from others of its type; None if it has none."""
    if isinstance(value, dict):
        factory = getattr(value, "default_factory", None)
        return [getattr(factory, "__name__", None), *map(list, value.items())]
    if isinstance(value, deque):
        return [value.maxlen, *value]
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, (slice, range)):
        return [value.start, value.stop, value.step]
    if dataclasses.is_dataclass(value):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return [value.real, value.imag] if isinstance(value, complex) else None


def _same_tensors(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.layout != other.layout or one.requires_grad != other.requires_grad:
        return False
    if one.layout is torch.sparse_coo:
        one, other = one.detach(), other.detach()
        is_same = one.shape == other.shape and one.is_coalesced() == other.is_coalesced()
        return is_same and same(one._indices(), other._indices()) and same(one._values(), other._values())
    return one.dtype == other.dtype and one.shape == other.shape and bits(one) == bits(other)
