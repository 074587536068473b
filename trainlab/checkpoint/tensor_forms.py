"""Which tensors are stored, and as what: every version of safetensors holds the common dtypes only."""

from typing import Any

import torch

from trainlab.checkpoint.leaves import TORCH_DTYPES, Malformed, Node, Unstorable, check, sizes

__all__ = ["memory_key", "restored_sparse", "restored_tensor", "storable", "tensor_fields"]

_AS_IS = {
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
}
_AS_BYTES = {
    dtype
    for name, dtype in TORCH_DTYPES.items()
    if name in ("uint16", "uint32", "uint64") or name.startswith("float8_")
}


def memory_key(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """What two tensors have in common exactly if they are the same numbers in the same memory.

    Args:
        tensor: Any strided tensor.

    Returns:
        The key, which holds as long as the tensor lives; None for a tensor without elements, which has no memory.
    """
    if not tensor.numel():
        return None
    layout = (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj(), tensor.is_neg())
    return (tensor.device, tensor.data_ptr(), *layout)


def tensor_fields(value: torch.Tensor) -> Node:
    """What a node tells about a tensor besides its name.

    Args:
        value: A dense tensor.

    Returns:
        The fields, for most dtypes none.

    Raises:
        Unstorable: It is of a kind that cannot be stored.
    """
    dtype = value.dtype
    if value.is_meta or value.is_nested or value.layout is not torch.strided:
        nested = ", nested" if value.is_nested else ""
        advice = "Return dense tensors, or sparse ones in the COO layout"
        raise Unstorable(type(value), f"of layout {value.layout} on {value.device}{nested}", advice)
    if dtype in _AS_IS:
        return {}
    if dtype.is_complex:
        return {"complex": True}
    if dtype in _AS_BYTES:
        return {"dtype": str(dtype)[6:], "shape": list(value.shape)}
    raise Unstorable(type(value), f"of dtype {dtype}", "Convert it with .to() or .dequantize()")


def storable(value: torch.Tensor) -> torch.Tensor:
    """The tensor that is stored for another one.

    Args:
        value: One that ``tensor_fields`` accepts.

    Returns:
        One of a dtype that every version of safetensors holds, where possible in the same memory.
    """
    if value.requires_grad:
        value = value.detach()
    if value.is_complex():
        return torch.view_as_real(value.resolve_conj().resolve_neg())
    if value.is_neg():
        value = value.resolve_neg()
    if value.dtype not in _AS_BYTES:
        return value
    # A fresh copy, for a tensor of one or no element may have strides that cannot be viewed as bytes.
    return value.flatten().clone(memory_format=torch.contiguous_format).view(torch.uint8)


def restored_tensor(stored: torch.Tensor, node: Node) -> torch.Tensor:
    """The tensor for which another one was stored.

    Args:
        stored: What ``storable`` gave.
        node: What ``tensor_fields`` gave.

    Returns:
        The tensor, in the same memory.

    Raises:
        Malformed: They do not fit.
    """
    is_complex = node.get("complex", False)
    check(isinstance(is_complex, bool) and not (is_complex and "dtype" in node), "a tensor has two forms")
    if is_complex:
        return torch.view_as_complex(stored)
    if "dtype" not in node:
        check("shape" not in node, "a tensor has a shape and no dtype")
        return stored
    dtype = TORCH_DTYPES.get(str(node["dtype"]))
    if dtype is None or dtype not in _AS_BYTES or stored.dtype != torch.uint8 or stored.dim() != 1:
        raise Malformed(f"a tensor has the dtype {str(node['dtype'])[:100]!r}")
    return stored.view(dtype).reshape(sizes(node.get("shape")))


def restored_sparse(indices: torch.Tensor, values: torch.Tensor, node: Node) -> torch.Tensor:
    """A sparse tensor. Nothing as large as its size is made.

    Args:
        indices: Its indices, int64, of shape (sparse dimensions, elements).
        values: Its values, of shape (elements, dense dimensions …).
        node: The ``size``, and whether it is ``coalesced``.

    Returns:
        The tensor, in the memory of both.

    Raises:
        Malformed: They do not fit.
    """
    check(indices.dtype == torch.int64 and indices.dim() == 2, "the indices of a sparse tensor are no table of int64")
    check(isinstance(node["coalesced"], bool), "a sparse tensor is neither coalesced nor not")
    size = sizes(node["size"])
    return torch.sparse_coo_tensor(indices, values, size, is_coalesced=node["coalesced"], check_invariants=True)
