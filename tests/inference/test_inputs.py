from __future__ import annotations

import array
import io
import mmap
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from delta_tune.config import UserError
from delta_tune.inference.inputs import open_each

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


class Upload:
    """As in Starlette and FastAPI: `read` has to be awaited, `file` is a file."""

    def __init__(self, content):
        self.file = io.BytesIO(content)

    async def read(self, size=-1):
        return self.file.read(size)


class Forwarding:
    """As in Werkzeug: iterating gives lines, and what it lacks is the stream's."""

    def __init__(self, content):
        self.stream = io.BytesIO(content)

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def __iter__(self):
        return iter(self.stream)


class Download(io.RawIOBase):
    """Not seekable, and gives a few bytes at a time."""

    def __init__(self, content):
        self.rest = content

    def readable(self):
        return True

    def readinto(self, buffer):
        given, self.rest = self.rest[: min(7, len(buffer))], self.rest[7:]
        buffer[: len(given)] = given
        return len(given)


@pytest.fixture(scope="module")
def content():
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def archived(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", content)
    return zipfile.ZipFile(file).open("a.png")


def mapped(content):
    memory = mmap.mmap(-1, len(content))
    memory[:] = content
    return memory


@pytest.mark.parametrize(
    "form",
    [
        bytearray,
        memoryview,
        lambda content: array.array("B", content),
        mapped,
        pa.py_buffer,
        lambda content: np.frombuffer(content, np.uint8),
        io.BytesIO,
        lambda content: io.BufferedReader(io.BytesIO(content)),
        Upload,
        Forwarding,
        Download,
        archived,
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_open_each_takes_every_form_of_an_encoded_image(form, alone, content):
    given = form(content)
    (opened,) = open_each(given if alone else [given])
    assert np.array_equal(np.asarray(opened), PIXELS)


def test_open_each_reads_a_file_that_was_read_before(content):
    file = io.BytesIO(content)
    file.read()
    for _ in range(2):
        assert np.array_equal(np.asarray(next(open_each(file))), PIXELS)


def test_open_each_leaves_a_file_open(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with open(tmp_path / "a.png", "rb") as file:
        assert len(list(open_each([file, tmp_path / "a.png"]))) == 2
        assert not file.closed


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (None, r"^The image is 'NoneType'; give a path, encoded bytes, a file open for reading bytes"),
        ([b"", 3], r"^The image at index 1 is 'int'; give a path"),
        ({"a.jpg": b""}, r"^The image is 'dict'; give a path"),
        (io.StringIO("text"), r"gives no bytes .*; open it with mode 'rb', or give its bytes\.$"),
    ],
)
def test_open_each_says_what_may_be_given(given, said):
    with pytest.raises(UserError, match=said):
        list(open_each(given))


def test_open_each_tells_files_that_cannot_be_read_from_damaged_images(tmp_path):
    with open(tmp_path / "a.png", "wb") as file, pytest.raises(UserError, match="open it with mode 'rb'"):
        list(open_each([file]))
    with pytest.raises(UserError, match="closed by now; give it before it is closed"):
        list(open_each([file]))


def test_open_each_tells_a_file_that_is_open_as_text(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    with open(tmp_path / "a.png", encoding="utf-8") as file, pytest.raises(UserError, match="open it with mode 'rb'"):
        list(open_each([file]))


def test_open_each_takes_an_array_of_paths(content, tmp_path):
    (tmp_path / "a.png").write_bytes(content)
    assert [image.size for image in open_each(np.array([str(tmp_path / "a.png")] * 2))] == [(8, 6)] * 2


def test_open_each_tells_an_unreadable_one_of_several(content):
    good, bad, also_good = open_each([content, Path("missing.png"), content])
    assert str(bad) == (
        "missing.png cannot be read as an image (No such file or directory); give an image file such as JPEG or PNG."
    )
    assert good.size == also_good.size == (8, 6)
