from __future__ import annotations

import io
import os
import socket
import threading

import numpy as np
import pytest
from PIL import Image

from delta_tune.data import limits
from delta_tune.data.file_tree import FileTree
from delta_tune.data.images import DamagedImage, open_image


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.fixture
def pipe(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    return tmp_path / "a.jpg"


@pytest.fixture
def listening(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "a.jpg"))
        yield tmp_path / "a.jpg"


@pytest.mark.parametrize("kind", ["pipe", "listening"])
def test_what_is_no_file_is_refused_without_waiting(kind, request):
    path = request.getfixturevalue(kind)
    with pytest.raises(DamagedImage, match="a pipe, socket or device, not a file"):
        open_image(path)
    with pytest.raises(OSError, match="a pipe, socket or device, not a file"):
        FileTree(path.parent).read(str(path))


def test_folders_and_link_loops_are_told(tmp_path):
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(DamagedImage, match=r"\(a folder, not a file\)"):
        open_image(tmp_path)
    with pytest.raises(DamagedImage, match="Too many levels of symbolic links"):
        open_image(tmp_path / "loop.jpg")


def test_a_huge_sparse_file_is_not_read(tmp_path):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(10 * 2**40)
    with pytest.raises(DamagedImage, match="more than 512 MiB: make it smaller"):
        open_image(tmp_path / "a.jpg")
    with pytest.raises(OSError, match="more than 512 MiB"):
        FileTree(tmp_path).read(str(tmp_path / "a.jpg"))


def test_bytes_and_endless_files_have_the_limit_of_files(monkeypatch):
    class Endless:
        def read(self, size):
            return bytes(size)

    monkeypatch.setattr(limits, "MAX_FILE_SIZE", 3 * 2**20)
    for source in (bytes(3 * 2**20 + 1), Endless()):
        with pytest.raises(DamagedImage, match="more than 3 MiB"):
            open_image(source)


@pytest.mark.parametrize(
    ("mode", "size", "format", "said"),
    [
        ("1", (12_001, 10_000), "PNG", "12001 × 10000 pixels are more than the 120 million that are read:"),
        ("L", (10_001, 6_000), "WEBP", "are more than the 60 million that are read of a WEBP: make it"),
        ("1", (15_000, 15_000), "PNG", "more than the 120 million pixels that are read: make it smaller"),
    ],
)
def test_pixels_are_limited_before_they_are_decoded(mode, size, format, said):
    options = {"lossless": True, "quality": 0, "method": 0} if format == "WEBP" else {}
    content = encode(Image.new(mode, size), format, **options)
    with pytest.raises(DamagedImage, match=said):
        open_image(content)


def test_a_photo_of_108_megapixels_is_read_without_pillows_warning(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60)  # Pillow warns above it, and refuses twice as many
    assert open_image(encode(Image.new("RGB", (10, 10)), "PNG")).size == (10, 10)


def test_an_image_without_pixels_is_refused():
    with pytest.raises(DamagedImage, match="it has no pixels"):
        open_image(Image.new("RGB", (0, 5)))


def test_threads_together_stay_within_the_budget():
    budget = limits.PixelBudget(10)
    inside, most = 0, 0
    lock = threading.Lock()

    def decode():
        nonlocal inside, most
        for _ in range(50):
            with budget.reserve((2, 1), "WEBP"):
                with lock:
                    inside += 4
                    most = max(most, inside)
                with lock:
                    inside -= 4

    threads = [threading.Thread(target=decode) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most <= 10


def test_budget_is_given_back_after_a_failure():
    budget = limits.PixelBudget(10)
    for _ in range(3):
        with pytest.raises(ValueError, match="damaged"), budget.reserve((10, 1), "PNG"):
            raise ValueError("damaged")


def test_large_images_are_converted_in_strips(monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 17, 4), dtype=np.uint8)
    content = encode(Image.fromarray(pixels), "PNG")
    whole = np.asarray(open_image(content))
    monkeypatch.setattr("delta_tune.data.decoding._STRIP", 40)
    assert np.array_equal(np.asarray(open_image(content)), whole)
