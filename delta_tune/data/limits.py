"""How large an image may be, checked before it is read or decoded."""

from __future__ import annotations

import errno
import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol

from delta_tune.config import UserError
from delta_tune.data.memory import total_memory

MAX_FILE_SIZE = 512 * 2**20
"""Bytes of one encoded image."""
MAX_PIXELS = 120_000_000
"""Pixels of one image, width × height; decoding takes up to 12 bytes for each."""
_DECODER_COST = {"AVIF": 2, "JPEG2000": 2, "WEBP": 2}
"""Formats whose decoders hold twice as much memory for a pixel; their images may have half of `MAX_PIXELS`."""


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a local file.

    Raises:
        OSError: it is missing, larger than `MAX_FILE_SIZE`, or a folder, pipe, socket or device; those are not opened.
    """
    status = os.stat(path)  # follows links; to open a pipe would wait for its writer
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file", path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "a pipe, socket or device, not a file", path)
    check_file_size(status.st_size)
    with open(path, "rb") as file:
        return file.read()


class BinaryFile(Protocol):
    """An open file, or what stands for one: an upload, a download, a member of an archive."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""
        ...


def read_open_file(file: BinaryFile) -> bytes:
    """The content of an open file, from its beginning if it can go there.

    Raises:
        OSError: it is larger than `MAX_FILE_SIZE`, or as the file itself.
        UserError: it is closed, not open for reading, or gives text.
    """
    if getattr(file, "closed", False):
        raise UserError("An open file was given that is closed by now; give it before it is closed, or its bytes.")
    content = bytearray()
    try:
        if hasattr(file, "seek"):
            with suppress(OSError):  # a pipe or download, say, which nobody has read from yet
                file.seek(0)
        while len(content) <= MAX_FILE_SIZE and (chunk := file.read(2**20)):
            content += chunk
    except (io.UnsupportedOperation, TypeError, UnicodeDecodeError) as error:
        raise UserError(
            f"An open file was given that gives no bytes ({error}); open it with mode 'rb', or give its bytes."
        ) from error
    check_file_size(len(content))
    return bytes(content)


def check_file_size(size: int) -> None:
    """Raises OSError if a file has more bytes than `MAX_FILE_SIZE`."""
    if size > MAX_FILE_SIZE:
        raise OSError(errno.EFBIG, f"more than {MAX_FILE_SIZE // 2**20} MiB: make it smaller")


def check_pixels(size: tuple[int, int], format: str | None) -> None:
    """Raises ValueError if an image of this width and height has no pixels, or too many for its format."""
    width, height = size
    cost = _DECODER_COST.get(format or "", 1)
    if width < 1 or height < 1:
        raise ValueError("it has no pixels")
    if width * height > _max_pixels // cost:
        kind = f" of a {format}" if cost > 1 else ""
        raise ValueError(
            f"{width} × {height} pixels are more than the {in_millions(_max_pixels // cost)} million that are read"
            f"{kind}: make it smaller"
        )


class PixelBudget:
    """Bounds the pixels that all threads of a process decode at the same time; the others wait."""

    def __init__(self, pixels: int) -> None:
        """`pixels`: at least those of the largest image that is read, so that every image has its turn."""
        self._free = self._all = pixels
        self._changed = threading.Condition()

    def resize(self, pixels: int) -> None:
        """Bound them by another number from now on."""
        with self._changed:
            self._free += pixels - self._all
            self._all = pixels
            self._changed.notify_all()

    @contextmanager
    def reserve(self, size: tuple[int, int], format: str | None) -> Iterator[None]:
        """Wait until an image of this width and height, which passes `check_pixels`, can be decoded."""
        cost = size[0] * size[1] * _DECODER_COST.get(format or "", 1)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= cost)
            self._free -= cost
        try:
            yield
        finally:
            with self._changed:
                self._free += cost
                self._changed.notify_all()


_max_pixels = MAX_PIXELS
_DECODED_AT_ONCE = total_memory() // 48
"""A quarter of the memory, at 12 bytes a pixel."""
DECODING = PixelBudget(max(MAX_PIXELS, _DECODED_AT_ONCE))


def max_pixels() -> int:
    """Pixels that an image may have in this process."""
    return _max_pixels


def set_max_pixels(pixels: int) -> None:
    """Read only images of at most so many pixels in this process from now on.

    Args:
        pixels: from 1 to `MAX_PIXELS`.
    """
    global _max_pixels
    assert 1 <= pixels <= MAX_PIXELS
    _max_pixels = pixels
    DECODING.resize(max(pixels, _DECODED_AT_ONCE))


def in_millions(pixels: int) -> str:
    """A number of pixels in millions: whole ones, or as many digits as a smaller number needs."""
    return str(pixels // 10**6) if pixels >= 10**6 else f"{pixels / 10**6:g}"
