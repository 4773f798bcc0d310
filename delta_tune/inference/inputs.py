"""What `predict` takes: one image or many, in any of the forms that programs and web frameworks have them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from delta_tune.config import UserError
from delta_tune.data.fitting import Picture
from delta_tune.data.images import DamagedImage, open_picture
from delta_tune.data.limits import BinaryFile

OneImage: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | np.ndarray | Tensor
)
Images: TypeAlias = OneImage | Iterable[OneImage]


_ALONE = "the image"


@dataclass(frozen=True, slots=True)
class _Takes:
    """What a model takes of arrays."""

    channels: int
    white: float | None

    def type(self, dtype: np.dtype[Any]) -> bool:
        """Whether it takes numbers of this type: all where white is told, 16 bits too of what files have with them."""
        if self.white is not None:
            return dtype.kind in "uif"
        return dtype == np.uint8 or (self.channels != 3 and dtype == np.uint16)

    @property
    def types(self) -> str:
        """The types that it takes, in words."""
        if self.white is not None:
            return "of numbers"
        return "uint8" if self.channels == 3 else "uint8 or uint16"

    @property
    def advice(self) -> str:
        """What to give, in words."""
        if self.white is not None:
            return f"give pixels from 0 to {self.white:g}, or uint8 ones from 0 to 255"
        return "give pixels from 0 to 255, not normalised" if self.channels == 3 else "give pixels, not normalised"


def open_each(images: Images, channels: int = 3, white: float | None = None) -> Iterator[Picture | DamagedImage]:
    """Open the images, each as `open_picture` does; one of several that cannot be read is yielded as its error.

    Args:
        images: one, or many.
        channels: of the images.
        white: its value in images of more than 8 bits.

    Raises:
        DamagedImage: a single image cannot be read.
        UserError: something is no image, or an array has another type or shape.
    """
    takes = _Takes(channels, white)
    for source, place in _sources(images, _ALONE, takes):
        try:
            yield open_picture(source, channels, white)
        except DamagedImage as error:
            name = os.fspath(source) if isinstance(source, str | os.PathLike) else place
            damaged = DamagedImage(name, error.args[1])
            if place == _ALONE:
                raise damaged from error
            yield damaged


def _sources(images: Any, place: str, takes: _Takes) -> Iterator[tuple[Any, str]]:
    """What `open_picture` takes, and where it stands in what was given."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":  # of paths, say
        images = images.tolist()
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 1:
        yield images.tobytes(), place
    elif isinstance(images, np.ndarray | Tensor):
        for pixels in _each_array(images, takes):
            yield pixels, place
    elif isinstance(images, str | os.PathLike | Image.Image):
        yield images, place
    elif (buffer := _buffer(images)) is not None:
        yield buffer, place
    elif (file := _open_file(images)) is not None:
        yield file, place
    elif isinstance(images, Iterable) and not isinstance(images, Mapping):
        for index, image in enumerate(images):
            yield from _sources(image, f"{_ALONE} at index {index}", takes)
    else:
        raise UserError(
            f"{place[0].upper()}{place[1:]} is {type(images).__name__!r}; give a path, encoded bytes, a file open for "
            f"reading bytes, a PIL image, a uint8 array or tensor, or an iterable of them."
        )


def _buffer(value: Any) -> memoryview | None:
    """The bytes of an object with Python's buffer protocol."""
    try:
        return memoryview(value)
    except TypeError:
        return None


def _open_file(value: Any) -> BinaryFile | None:
    """An open file, or the one in an upload whose own `read` has to be awaited (Starlette, FastAPI)."""
    candidate: Any
    for candidate in (value, getattr(value, "file", None)):
        read = getattr(candidate, "read", None)
        if callable(read) and not inspect.iscoroutinefunction(read):
            file: BinaryFile = candidate
            return file
    return None


def _each_array(images: np.ndarray | Tensor, takes: _Takes) -> Iterable[np.ndarray]:
    """The images of an array or tensor, each (H, W, C), or (H, W) where C is 1 or 3."""
    kind, count = "a tensor" if isinstance(images, Tensor) else "an array", takes.channels
    given = f"{images.dtype} {tuple(images.shape)}"
    pixels: np.ndarray | None = None
    if isinstance(images, np.ndarray):
        pixels = images
    elif images.ndim in (3, 4) and images.shape[-3] == count:
        pixels = images.detach().movedim(-3, -1).cpu().numpy()
    if pixels is not None and takes.type(pixels.dtype) and 0 not in pixels.shape[-3:]:
        if (pixels.ndim == 2 and count in (1, 3)) or (pixels.ndim == 3 and pixels.shape[-1] == count):
            return [pixels]
        if pixels.ndim == 4 and pixels.shape[-1] == count:
            return list(pixels)
    flat = "(H, W) " if count in (1, 3) else ""
    shapes = f"(H, W, {count}), {flat}or (N, H, W, {count})"
    shapes = f"({count}, H, W) or (N, {count}, H, W)" if kind == "a tensor" else shapes
    raise UserError(f"Images as {kind} must be {takes.types} {shapes}, but got {given}; {takes.advice}.")
