"""Numpy's numbers, times and texts: scalars as nodes of a structure, arrays as tensors, and back."""

import re
from typing import Any

import numpy as np
import torch

from trainlab.checkpoint.leaves import Node, Unstorable, check, hex_bytes

__all__ = ["array_tensor", "numpy_dtype", "numpy_name", "numpy_node", "read_array", "read_numpy"]

_DTYPES = {
    name: np.dtype(name)
    for name in (
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128"),
    )
}
_UNIT = r"\[([1-9][0-9]{0,8})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\]"
_OTHERS = re.compile(rf"<[mM]8({_UNIT})?|<U[1-9][0-9]{{0,8}}|\|S[1-9][0-9]{{0,8}}")


def numpy_name(dtype: "np.dtype[Any]") -> str | None:
    """The name under which numpy's numbers, times and texts of fixed length are stored.

    Args:
        dtype: Any dtype.

    Returns:
        The name; None if those of this dtype cannot be stored.
    """
    name, code = str(dtype.name), str(dtype.str)
    if _DTYPES.get(name) == dtype:
        return name
    return code if _OTHERS.fullmatch(code) else None


def numpy_dtype(name: Any) -> "np.dtype[Any]":
    """The dtype of a name.

    Args:
        name: What ``numpy_name`` gave.

    Returns:
        The dtype.

    Raises:
        Malformed: It is none.
    """
    is_known = isinstance(name, str) and (name in _DTYPES or _OTHERS.fullmatch(name) is not None)
    check(is_known, f"there is no numpy dtype {str(name)[:100]!r}")
    dtype: np.dtype[Any] = np.dtype(name)
    check(numpy_name(dtype) == name, f"the numpy dtype {name!r} is not in its usual form")
    return dtype


def numpy_node(value: "np.generic") -> Node:
    """A numpy scalar.

    Args:
        value: The scalar.

    Returns:
        The node.

    Raises:
        Unstorable: It is of another dtype.
    """
    if type(value) is np.str_:
        text = str.__str__(value)  # numpy's own drops NULs at the end
        return {"$": "numpy", "dtype": "str_", "v": text.encode("utf-8", "surrogatepass").hex()}
    if type(value) is np.bytes_:
        return {"$": "numpy", "dtype": "bytes_", "v": bytes(value).hex()}
    name = numpy_name(value.dtype)
    if name is None or isinstance(value, (np.str_, np.bytes_)):
        raise Unstorable(type(value), f"of dtype {value.dtype}")
    content = np.asarray(value, dtype=value.dtype.newbyteorder("<")).tobytes()
    return {"$": "numpy", "dtype": name, "v": content.hex()}


def read_numpy(node: Node) -> Any:
    """A numpy scalar.

    Args:
        node: What ``numpy_node`` gave.

    Returns:
        The scalar.

    Raises:
        Malformed: It is none.
    """
    content = hex_bytes(node)
    if node["dtype"] == "str_":
        return np.str_(content.decode("utf-8", "surrogatepass"))
    if node["dtype"] == "bytes_":
        return np.bytes_(content)
    dtype = numpy_dtype(node["dtype"])
    check(dtype.kind not in "US" and len(content) == dtype.itemsize, f"a {dtype.name} holds {len(content)} bytes")
    return np.frombuffer(content, dtype.newbyteorder("<")).astype(dtype)[0]


def array_tensor(value: "np.ndarray[Any, Any]") -> torch.Tensor:
    """The content of an array.

    Args:
        value: An array of any shape, of numbers, times or texts of fixed length.

    Returns:
        A tensor of the same shape: of the numbers, of int64 for times; for texts of uint8 with one more dimension,
        the bytes of an element. It has the memory of the array where that can be.

    Raises:
        Unstorable: The array is of another dtype.
    """
    if numpy_name(value.dtype) is None:
        advice = "" if value.dtype.isnative else "Convert it with .astype(array.dtype.newbyteorder('='))"
        raise Unstorable(
            type(value), f"of dtype {value.dtype.str if not value.dtype.isnative else value.dtype}", advice
        )
    if not (value.flags.c_contiguous and value.flags.writeable and value.flags.aligned):
        value = np.array(value, order="C")
    if value.dtype.kind in "mM":
        value = value.view(np.int64)
    elif value.dtype.kind in "US":
        value = value[..., np.newaxis].view(np.uint8)
    return torch.from_numpy(value)


def read_array(stored: torch.Tensor, name: Any) -> "np.ndarray[Any, Any]":
    """An array.

    Args:
        stored: What ``array_tensor`` gave.
        name: Its dtype, as ``numpy_name`` gave it.

    Returns:
        The array, in the memory of the tensor.

    Raises:
        Malformed: They do not fit.
    """
    dtype, array = numpy_dtype(name), stored.numpy()
    if dtype.kind in "mM":
        check(array.dtype == np.int64, f"times are stored as {array.dtype}")
        return array.view(dtype)
    if dtype.kind not in "US":
        check(array.dtype == dtype, f"an array of {dtype} is one of {array.dtype}")
        return array
    is_right = array.dtype == np.uint8 and array.ndim > 0 and array.shape[-1] == dtype.itemsize
    check(is_right, f"texts of {dtype.itemsize} bytes are stored as {array.dtype} of shape {array.shape}")
    array = np.ascontiguousarray(array)
    if dtype.kind == "U" and array.size:
        check(int(array.view(np.uint32).max()) <= 0x10FFFF, "a text has a character that there is none of")
    return array.view(dtype)[..., 0]
