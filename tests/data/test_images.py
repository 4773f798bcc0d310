"""Pixels as the user sees them, whatever the file; squares as torchvision makes them; damaged files told as such."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from delta_tune.config import UserError
from delta_tune.data.images import DamagedImage, Preprocessing, open_image, to_png, to_square


def encode(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(width, height, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def preprocessing(size):
    return Preprocessing(image_size=size, stored_size=size, mean=(0.5,) * 3, std=(0.2,) * 3, interpolation="bicubic")


def pixel(image, x=0, y=0):
    return image.getpixel((x, y))


def test_open_image_reads_path_bytes_and_image_alike(tmp_path):
    pixels = noise(5, 4)
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), encode(image), image):
        opened = open_image(source)
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_open_image_turns_upright_by_exif(orientation):
    upright = noise(4, 3)
    # What a camera held that way stores, from the EXIF specification: the tag names where row 0 and column 0 lie.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_image(encode(Image.fromarray(np.ascontiguousarray(stored)), exif=exif))
    assert np.array_equal(np.asarray(opened), upright)


def test_open_image_repeats_grey_in_all_channels():
    grey = noise(5, 4)[..., 0]
    assert np.array_equal(np.asarray(open_image(encode(Image.fromarray(grey)))), np.repeat(grey[..., None], 3, axis=2))


def test_open_image_reads_black_and_white():
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    opened = open_image(encode(image))
    assert (pixel(opened, 0), pixel(opened, 1)) == ((0, 0, 0), (255, 255, 255))


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_open_image_scales_16_bit_grey(format):
    values = np.array([[0, 257, 128 * 257, 65535]], dtype=np.uint16)
    opened = open_image(encode(Image.fromarray(values), format))
    assert np.asarray(opened)[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


def test_open_image_scales_16_bit_grey_of_other_byte_order():
    image = Image.frombytes("I;16B", (2, 1), np.array([32896, 65535], dtype=">u2").tobytes())
    assert np.asarray(open_image(image))[0].tolist() == [[128] * 3, [255] * 3]


def test_open_image_looks_up_palette():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    opened = open_image(encode(image))
    assert (pixel(opened, 0), pixel(opened, 1)) == ((10, 20, 30), (200, 100, 50))


@pytest.mark.parametrize(("transparency", "format"), [(1, "PNG"), (1, "GIF"), (b"\xff\x00", "PNG")])
def test_open_image_lays_transparent_palette_entries_on_white(transparency, format):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    opened = open_image(encode(image, format, transparency=transparency))
    assert (pixel(opened, 0), pixel(opened, 1)) == ((10, 20, 30), (255, 255, 255))


def test_open_image_lays_alpha_on_white():
    image = Image.new("RGBA", (3, 1))
    image.putdata([(10, 20, 30, 255), (10, 20, 30, 0), (0, 0, 0, 51)])
    opened = open_image(encode(image))
    assert [pixel(opened, x) for x in range(3)] == [(10, 20, 30), (255, 255, 255), (204, 204, 204)]


def test_open_image_lays_grey_alpha_on_white():
    image = Image.new("LA", (2, 1))
    image.putdata([(70, 255), (70, 0)])
    opened = open_image(encode(image))
    assert [pixel(opened, x) for x in range(2)] == [(70, 70, 70), (255, 255, 255)]


@pytest.mark.parametrize(("mode", "transparent", "seen"), [("RGB", (1, 2, 3), (9, 9, 9)), ("L", 1, 9)])
def test_open_image_lays_a_transparent_colour_on_white(mode, transparent, seen):
    image = Image.new(mode, (2, 1), seen)
    image.putpixel((1, 0), transparent)
    opened = open_image(encode(image, transparency=transparent))
    assert (pixel(opened, 0), pixel(opened, 1)) == ((9, 9, 9), (255, 255, 255))


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_open_image_converts_cmyk(format):
    opened = open_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), format))
    assert pixel(opened) == pytest.approx((255, 0, 0), abs=3)


def test_open_image_leaves_the_given_image_alone():
    image = Image.new("RGBA", (4, 3), (1, 2, 3, 4))
    open_image(image)
    assert (image.mode, image.size, pixel(image)) == ("RGBA", (4, 3), (1, 2, 3, 4))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"this is text",
        encode(Image.fromarray(noise(64, 64)), "JPEG")[:600],
        encode(Image.fromarray(noise(64, 64)))[:600],
        b"\x89PNG\r\n\x1a\n" + bytes(50),
    ],
    ids=["empty", "text", "truncated jpeg", "truncated png", "broken png"],
)
def test_open_image_tells_damage_by_path(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(DamagedImage, match=r"a.jpg cannot be read as an image") as error:
        open_image(path)
    assert isinstance(error.value, UserError)
    assert "0x" not in str(error.value)  # no addresses of objects: the same file gives the same words


def test_open_image_tells_a_missing_file(tmp_path):
    with pytest.raises(DamagedImage, match=r"b\.jpg cannot be read as an image \(No such file"):
        open_image(tmp_path / "b.jpg")


def test_open_image_tells_a_decompression_bomb(monkeypatch):
    content = encode(Image.new("L", (100, 100)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DamagedImage, match="million pixels that are read: make it smaller"):
        open_image(content)


def test_damaged_image_survives_pickle():
    error = DamagedImage("a.jpg", "empty")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("width", "height"), [(80, 50), (50, 80), (61, 61), (33, 20), (131, 32), (32, 33), (9, 7)])
def test_to_square_is_torchvisions_resize_and_centre_crop(width, height, interpolation):
    # Mid-range values: bicubic overshoots are clipped between the two passes, whose order depends on the size.
    image = Image.fromarray(80 + noise(width, height) % 96)
    resized = reference.resize(image, 32, InterpolationMode(interpolation))
    expected = np.asarray(reference.center_crop(resized, 32)).astype(int)
    square = to_square(image, 32, interpolation)
    assert (square.shape, square.dtype) == ((32, 32, 3), np.uint8)
    assert np.abs(square - expected).max() <= 1  # rounding: the box of a resize is in single precision


def test_to_square_takes_an_extreme_strip():
    assert to_square(Image.new("RGB", (30_000, 1), (9, 8, 7)), 64, "bicubic")[5, 5].tolist() == [9, 8, 7]


def test_to_square_leaves_a_square_of_that_size_unchanged():
    pixels = noise(24, 24)
    assert np.array_equal(to_square(open_image(to_png(pixels)), 24, "bicubic"), pixels)


def test_preprocessing_refuses_a_crop_larger_than_what_is_stored():
    with pytest.raises(UserError, match="image_size=224, stored_size=200"):
        Preprocessing(image_size=224, stored_size=200, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bilinear")
