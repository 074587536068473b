"""A tree of plain values and tensors, as a JSON structure and a flat dict of tensors, and back.

What JSON has is written as it is: None, booleans, strings, finite floats, integers of 64 bits, lists, and dicts
whose keys are strings and not ``$``. Everything else is an object ``{"$": <tag>, ...}``, a node, with exactly these
fields. Reading looks tags up in a fixed table; nothing that a structure says is ever imported or executed.

====================  =========================================  ======================================================
tag                   stands for                                 fields
====================  =========================================  ======================================================
int                   an integer beyond -2**63 … 2**64 - 1       ``v``: hexadecimal text, ``-0x1f``
float                 an infinity or a NaN                       ``v``: ``inf``, ``-inf``, ``nan``, or for another NaN
                                                                 its 64 bits as 16 hexadecimal digits, highest first
complex               complex                                    ``v``: [real, imaginary], floats
str                   text with lone surrogates                  ``v``: its UTF-8 in hexadecimal, surrogates encoded
                                                                 like other characters
bytes, bytearray      bytes                                      ``v``: base64
range                 range                                      ``v``: [start, stop, step], integers
slice                 slice                                      ``v``: [start, stop, step], any values
tuple                 tuple                                      ``v``: list of values
set, frozenset        a set                                      ``v``: list of values, in no order that means anything
deque                 collections.deque                          ``v``: list of values; ``maxlen``: integer or null
dict, OrderedDict,    a mapping                                  ``v``: list of [key, value], in their order
Counter
defaultdict           collections.defaultdict                    ``v``: the same; ``factory``: ``dict``, ``float``,
                                                                 ``int``, ``list``, ``set`` or null
datetime, time        datetime.datetime, datetime.time           ``v``: ``YYYY-MM-DDTHH:MM:SS.ffffff``, for time
                                                                 ``HH:MM:SS.ffffff``; ``fold``: 1, absent if 0;
                                                                 ``tz``: a timezone node, absent if there is none
date                  datetime.date                              ``v``: ``YYYY-MM-DD``
timedelta             datetime.timedelta                         ``v``: [days, seconds, microseconds]; of these only
                                                                 the days may be negative
timezone              datetime.timezone                          ``v``: offset from UTC in microseconds, an integer;
                                                                 ``name``: text, absent if it has none of its own
path                  a path of pathlib                          ``v``: text; ``kind``: ``Path``, ``PurePosixPath`` or
                                                                 ``PureWindowsPath``
torch.Size            torch.Size                                 ``v``: list of integers
torch.dtype,          torch.float32, torch.strided,              ``v``: the name without ``torch.``
torch.layout,         torch.channels_last
torch.memory_format
torch.device          torch.device                               ``v``: ``cpu``, ``cuda:1``
tensor                a dense tensor                             ``v``: the name of a stored tensor. ``complex``: true
                                                                 if that has pairs of real and imaginary part in its
                                                                 last dimension; ``dtype`` and ``shape`` if it is the
                                                                 uint8 of the elements (unsigned integers of 16 to 64
                                                                 bits, floats of 8); absent otherwise
sparse_coo            a sparse tensor in the COO layout          ``v``: tensor node of its values, (elements, dense
                                                                 dimensions …); ``indices``: tensor node, int64,
                                                                 (sparse dimensions, elements); ``size``: list of
                                                                 integers; ``coalesced``: boolean
Parameter             torch.nn.Parameter                         ``v``: a tensor or sparse_coo node;
                                                                 ``requires_grad``: boolean
ndarray               numpy.ndarray                              ``v``: a tensor node; ``dtype``: numpy's name of a
                                                                 number (``float32``), or ``<M8[s]``, ``<m8[s]`` (any
                                                                 unit), stored as int64, or ``<U5``, ``|S5``, stored as
                                                                 uint8 with the bytes of an element in one more
                                                                 dimension, the last
numpy                 a numpy scalar                             ``dtype``: as for arrays of numbers and times, ``v``:
                                                                 its bytes, lowest first, in hexadecimal; or ``str_``
                                                                 with ``v`` as for str, or ``bytes_``
enum                  a member of an enum                        ``class``: ``module:qualname``; ``v``: its name, or
                                                                 for a combination of flags the integer
namedtuple,           a member of such a class                   ``class``: ``module:qualname``; ``v``: an object, from
dataclass                                                        each field to its value
====================  =========================================  ======================================================

An integer or text inside of a node can itself be a node of the tag int, float or str. Dense tensors that share all
their memory have one stored tensor; equal nodes of tensors are one object. Nothing is nested more than 100 deep.
"""

from collections.abc import Mapping
from typing import Any

import torch

from trainlab.checkpoint.decoding import Decoder
from trainlab.checkpoint.encoding import Encoder, free_name
from trainlab.checkpoint.parts import Parts
from trainlab.checkpoint.tensor_forms import memory_key

__all__ = ["decode", "encode", "free_name", "memory_key"]


def encode(tree: Any, classes: Mapping[str, type] | None = None) -> tuple[Any, dict[str, torch.Tensor]]:
    """Split a tree into what JSON can hold and its tensors.

    Args:
        tree: Nested containers of plain values, tensors and numpy arrays. Tensors that share all their memory
            are stored once. Whether a bare tensor needs a gradient, its device, its strides and the attributes set on
            it are not kept.
        classes: Enums, named tuples and dataclasses by ``module:qualname``, such as ``classes_in`` finds, whose
            members may be in the tree besides those of registered classes. Default none.

    Returns:
        The structure, which ``json.dumps(structure, allow_nan=False)`` takes, and the tensors by the names that
        the structure gives them. The tensors still share memory with those of the tree, the structure nothing.

    Raises:
        CheckpointError: A value is of another type, or of a class that a resume would not find; the message names
            the path to it.
    """
    encoder = Encoder(classes or {})
    return encoder.encode(tree), encoder.tensors


def decode(
    structure: Any, tensors: "Mapping[str, torch.Tensor | Parts]", classes: Mapping[str, type] | None = None
) -> Any:
    """Put a tree together again.

    Args:
        structure: What ``encode`` returned, as it was or through JSON.
        tensors: The tensors by name, on the CPU. One that was shared is the same object in all its places. ``Parts``
            stand in the tree as they are.
        classes: Classes as for ``encode``. They come before registered ones of the same name. Default none.

    Returns:
        The tree, each value of the type it had. Dataclasses and named tuples have their fields, and none of their
        methods was run to set them.

    Raises:
        CheckpointDamagedError: The structure is not one that ``encode`` makes, or a tensor is missing.
        CheckpointMismatchError: It holds a member of a class that is not known, or that has changed.
    """
    return Decoder(tensors, classes or {}).decode(structure)
