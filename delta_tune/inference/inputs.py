"""What `predict` takes: one image or many, in any of the forms that programs and web frameworks have them."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from PIL import Image
from torch import Tensor

from delta_tune.config import UserError
from delta_tune.data.fitting import Pixels
from delta_tune.data.images import DamagedImage, open_image
from delta_tune.data.limits import BinaryFile

OneImage: TypeAlias = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryFile | Image.Image | np.ndarray | Tensor
)
Images: TypeAlias = OneImage | Iterable[OneImage]


_ALONE = "the image"


def open_each(images: Images) -> Iterator[Image.Image | DamagedImage]:
    """Open the images, each as RGB; one of several that cannot be read is yielded as its error.

    Raises:
        DamagedImage: a single image cannot be read.
        UserError: something is no image, or an array has another type or shape.
    """
    for source, place in _sources(images, _ALONE):
        try:
            yield open_image(source)
        except DamagedImage as error:
            name = os.fspath(source) if isinstance(source, str | os.PathLike) else place
            damaged = DamagedImage(name, error.args[1])
            if place == _ALONE:
                raise damaged from error
            yield damaged


def _sources(images: Any, place: str) -> Iterator[tuple[Any, str]]:
    """What `open_image` takes, and where it stands in what was given."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":  # of paths, say
        images = images.tolist()
    if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 1:
        yield images.tobytes(), place
    elif isinstance(images, np.ndarray | Tensor):
        for pixels in _uint8(images):
            yield Image.fromarray(pixels), place
    elif isinstance(images, str | os.PathLike | Image.Image):
        yield images, place
    elif (buffer := _buffer(images)) is not None:
        yield buffer, place
    elif (file := _open_file(images)) is not None:
        yield file, place
    elif isinstance(images, Iterable) and not isinstance(images, Mapping):
        for index, image in enumerate(images):
            yield from _sources(image, f"{_ALONE} at index {index}")
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


def _uint8(images: np.ndarray | Tensor) -> Iterable[Pixels]:
    """The images of an array or tensor, each (H, W, 3) or (H, W)."""
    kind = "a tensor" if isinstance(images, Tensor) else "an array"
    given = f"{images.dtype} {tuple(images.shape)}"
    pixels: np.ndarray | None = None
    if isinstance(images, np.ndarray):
        pixels = images
    elif images.ndim in (3, 4) and images.shape[-3] == 3:
        pixels = images.detach().movedim(-3, -1).cpu().numpy()
    if pixels is not None and pixels.dtype == np.uint8 and 0 not in pixels.shape[-3:]:
        if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] == 3):
            return [pixels]
        if pixels.ndim == 4 and pixels.shape[-1] == 3:
            return list(pixels)
    shapes = "(3, H, W) or (N, 3, H, W)" if kind == "a tensor" else "(H, W, 3), (H, W) or (N, H, W, 3)"
    raise UserError(
        f"Images as {kind} must be uint8 {shapes}, but got {given}; give pixels from 0 to 255, not normalised."
    )
