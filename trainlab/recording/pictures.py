"""Images and figures as arrays, and as files with the count in their names."""

import io
import os
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from trainlab.errors import InvalidTypeError, InvalidValueError, MissingDependencyError

__all__ = ["PictureFiles", "figure_array", "image_array", "picture_name"]

_CHANNELS = (1, 3, 4)
# Of a file, on every system.
_LONGEST_NAME = 255
_NAME = re.compile(r".*-([0-9]+)\.(png|jpg)", re.DOTALL)


class PictureFiles:
    """The folders ``images`` and ``figures``: files that are called ``<tag with . for />-<count>``.

    Args:
        folder: the folder that they are in.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write(self, kind: str, tag: str, count: int, array: "np.ndarray[Any, Any]") -> None:
        """Write a picture; one of the same tag and count is written over.

        Args:
            kind: "images", which lose nothing, or "figures", which are JPEG.
            tag: its tag.
            count: when it was recorded.
            array: uint8 of shape (H, W, C).
        """
        path = self._folder / kind / picture_name(kind, tag, count)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = _pil().fromarray(array.squeeze(2) if array.shape[2] == 1 else array)
        try:
            picture.save(path)
        except OSError:
            path.unlink(missing_ok=True)  # it is torn
            raise

    def close(self) -> None:
        """Do nothing: each picture is whole when it is written."""

    def files(self) -> list[Path]:
        """List the files that there are.

        Returns:
            Their paths, sorted.
        """
        found = (path for kind in ("images", "figures") for path in (self._folder / kind).glob("*-*.*"))
        return sorted(path for path in found if _NAME.fullmatch(path.name))

    def cut(self, count: int | None) -> None:
        """Remove what was recorded after a count.

        Args:
            count: the last that stays; None to remove all.
        """
        for path in self.files():
            found = _NAME.fullmatch(path.name)
            if found is not None and (count is None or int(found[1]) > count):
                path.unlink()


def picture_name(kind: str, tag: str, count: int) -> str:
    """Name a picture's file.

    Args:
        kind: "images" or "figures".
        tag: its tag.
        count: when it was recorded.

    Returns:
        ``<tag with . for />-<count>`` with its ending.

    Raises:
        InvalidValueError: no file can have so long a name.
    """
    name = f"{tag.replace('/', '.').replace(chr(92), '.')}-{count}.{'png' if kind == 'images' else 'jpg'}"
    if len(os.fsencode(name)) > _LONGEST_NAME:
        raise InvalidValueError(
            f"A picture's tag names its file, and no name has more than {_LONGEST_NAME} bytes. Received: "
            f"{len(os.fsencode(name))} bytes with {tag!r:.60}…. Shorten it."
        )
    return name


def image_array(image: Any) -> "np.ndarray[Any, Any]":
    """Make an array of an image.

    Args:
        image: of PIL; an array of shape (H, W) or (H, W, C); a tensor of shape (H, W) or (C, H, W). C is 1, 3 or 4.
            Floats from 0 to 1, what lies outside is cut; integers from 0 to 255; or bools.

    Returns:
        uint8, of shape (H, W, C).

    Raises:
        InvalidValueError: the shape is another, or integers are out of range.
        InvalidTypeError: it is no image.
    """
    if isinstance(image, torch.Tensor):
        tensor = image.detach().to("cpu")
        array = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    elif isinstance(image, np.ndarray):
        array = image
    elif _is_of(image, "PIL.Image", "Image"):
        array = np.asarray(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB"))
    else:
        raise InvalidTypeError(f"An image is one of PIL, an array or a tensor. Received: {type(image).__qualname__}.")
    shaped = array[:, :, None] if array.ndim == 2 else array
    if shaped.ndim != 3 or shaped.shape[2] not in _CHANNELS or not shaped.size:
        order = "(H, W) or (C, H, W)" if isinstance(image, torch.Tensor) else "(H, W) or (H, W, C)"
        raise InvalidValueError(
            f"An image has the shape {order}, with C of 1, 3 or 4. Received: {tuple(getattr(image, 'shape', ()))}."
        )
    return _bytes(shaped)


def figure_array(figure: Any) -> "np.ndarray[Any, Any]":
    """Draw a figure of matplotlib's.

    Args:
        figure: the figure, which stays open.

    Returns:
        uint8, of shape (H, W, 3).

    Raises:
        InvalidValueError: it is none.
    """
    if not _is_of(figure, "matplotlib.figure", "Figure"):
        raise InvalidValueError(f"A figure is one of matplotlib's. Received: {type(figure).__qualname__}.")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    return np.asarray(_pil().open(drawn).convert("RGB"))


def _bytes(array: "np.ndarray[Any, Any]") -> "np.ndarray[Any, Any]":
    if array.dtype.kind == "f":
        scaled = np.nan_to_num(array.astype(np.float32), nan=0.0).clip(0, 1) * 255
        return np.ascontiguousarray(scaled.round().astype(np.uint8))
    if array.dtype.kind == "b":
        return np.ascontiguousarray(array.astype(np.uint8) * 255)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise InvalidValueError(
            f"An image has floats from 0 to 1, integers from 0 to 255, or bools. Received: {array.dtype}"
            f"{f' from {array.min()} to {array.max()}' if array.dtype.kind in 'iu' else ''}."
        )
    return np.ascontiguousarray(array.astype(np.uint8))


def _is_of(value: Any, module: str, name: str) -> bool:
    """Whether a value is of a class whose module nobody needs to load for that."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _pil() -> ModuleType:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            f"Pictures need the package pillow. Received: {error}. Install it with `pip install pillow`."
        ) from error
    return Image
