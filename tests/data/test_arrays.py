"""Arrays and TIFF files of any number of channels; values of more than 8 bits are scaled by one rule."""

import io
import pickle

import numpy as np
import pytest
import tifffile
from PIL import Image

from delta_tune.data.arrays import channels_last, picture_of, to_8_bit
from delta_tune.data.images import DamagedImage, Preprocessing, encode_pixels, open_image, open_picture, stored_square
from delta_tune.data.stored_images import EncodedImages, pack_files

RNG = np.random.default_rng(0)
FIVE = RNG.integers(0, 256, (9, 8, 5), dtype=np.uint8)


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def tiff(array, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("white", [255, 1000, 4095, 65535, 300.5])
def test_16_bit_values_become_the_nearest_of_8_bits(white):
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    exact = np.minimum(values.astype(np.float64), white) * 255 / white
    assert (np.abs(to_8_bit(values, white) - exact) <= 0.5).all()


def test_16_bit_values_have_white_at_65535_if_nothing_is_said():
    assert to_8_bit(np.array([[0, 128, 129, 65406, 65407, 65535]], np.uint16), None).tolist() == [
        [0, 0, 1, 254, 255, 255]
    ]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, ">f4"])
def test_other_numbers_are_scaled_by_white_alone(dtype):
    values = np.array([[0, 1, 2, 4, 9]]).astype(dtype)
    assert to_8_bit(values, 4).tolist() == [[0, 64, 128, 255, 255]]
    with pytest.raises(ValueError, match="whose white nothing tells: give its value with --white"):
        to_8_bit(values, None)


@pytest.mark.parametrize(
    ("values", "said"),
    [([np.nan, 1.0], "not finite"), ([np.inf, 1.0], "not finite"), ([-0.1, 1.0], "negative"), ([True, False], "bool")],
)
def test_values_that_are_no_brightness_are_refused(values, said):
    with pytest.raises(ValueError, match=said):
        to_8_bit(np.array([values]), 1)


@pytest.mark.parametrize("content", [npy(FIVE), npy(np.moveaxis(FIVE, 2, 0)), npy(np.asfortranarray(FIVE))])
def test_npy_files_have_channels_last_or_first(content):
    assert np.array_equal(open_picture(content, 5), FIVE)


@pytest.mark.parametrize(
    "content",
    [
        tiff(FIVE, planarconfig="contig", photometric="minisblack"),
        tiff(np.moveaxis(FIVE, 2, 0), planarconfig="separate", photometric="minisblack"),
        tiff(np.moveaxis(FIVE, 2, 0), photometric="minisblack"),
        tiff(FIVE, planarconfig="contig", photometric="minisblack", compression="zlib"),
        tiff(FIVE, planarconfig="contig", photometric="minisblack", bigtiff=True),
    ],
    ids=["contiguous", "planar", "pages", "deflate", "bigtiff"],
)
def test_tiff_files_have_bands_or_pages(content):
    assert np.array_equal(open_picture(content, 5), FIVE)


def test_a_16_bit_tiff_of_several_bands_is_scaled():
    values = RNG.integers(0, 4096, (9, 8, 5), dtype=np.uint16)
    content = tiff(values, planarconfig="contig", photometric="minisblack")
    assert np.array_equal(open_picture(content, 5, 4095), to_8_bit(values, 4095))
    assert np.array_equal(open_picture(content, 5), to_8_bit(values, 65535))


def test_a_16_bit_colour_tiff_is_scaled_by_white():
    values = RNG.integers(0, 1024, (9, 8, 3), dtype=np.uint16)
    found = open_picture(tiff(values, photometric="rgb"), 3, 1023)
    assert np.array_equal(np.asarray(found), to_8_bit(values, 1023))


def test_a_float_tiff_is_scaled_by_white_and_else_refused():
    values = RNG.random((9, 8), dtype=np.float32)
    assert np.array_equal(np.asarray(open_picture(tiff(values), 3, 1.0))[:, :, 1], to_8_bit(values, 1))
    with pytest.raises(DamagedImage, match="floating-point pixels"):
        open_image(tiff(values))


def test_white_scales_16_bit_grey_and_leaves_8_bits():
    deep = png(Image.fromarray(np.array([[0, 2048, 4095, 60000]], np.uint16)))
    assert np.asarray(open_picture(deep, 3, 4095))[0, :, 0].tolist() == [0, 128, 255, 255]
    flat = png(Image.fromarray(np.array([[0, 1, 200, 255]], np.uint8)))
    assert np.asarray(open_picture(flat, 3, 4095))[0, :, 0].tolist() == [0, 1, 200, 255]


def test_white_refuses_16_bit_colour_of_which_half_is_lost():
    values = np.zeros((4, 4, 3), np.uint8)
    content = bytearray(png(Image.fromarray(values)))
    content[24:26] = b"\x10\x02"  # bits and kind of colour
    with pytest.raises(DamagedImage, match="only the upper 8 bits are read"):
        open_picture(bytes(content), 3, 4095)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA", "P", "I;16"])
def test_one_channel_is_pillows_grey_of_what_is_read_as_rgb(mode):
    image = Image.fromarray(FIVE[:, :, :3]).convert("RGBA" if mode == "RGBA" else "L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(FIVE[:, :, 0].astype(np.uint16) * 257)
    found = open_picture(png(image), 1)
    assert np.array_equal(found[:, :, 0], np.asarray(open_image(png(image)).convert("L")))


def test_four_channels_are_rgb_and_transparency():
    pixels = FIVE[:, :, :4]
    assert np.array_equal(open_picture(png(Image.fromarray(pixels)), 4), pixels)
    assert np.array_equal(open_picture(tiff(pixels, photometric="rgb", extrasamples=["unassalpha"]), 4), pixels)
    assert np.array_equal(open_picture(tiff(pixels, photometric="rgb", extrasamples=["unspecified"]), 4), pixels)
    deep = pixels.astype(np.uint16) * 16
    assert np.array_equal(open_picture(tiff(deep, photometric="rgb"), 4, 4080), pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "TIFF", compression="tiff_lzw")  # for which tifffile takes another package
    assert np.array_equal(open_picture(file.getvalue(), 4), pixels)
    grey = Image.merge("LA", [Image.fromarray(np.ascontiguousarray(FIVE[:, :, band])) for band in (0, 1)])
    assert np.array_equal(open_picture(png(grey), 2), FIVE[:, :, :2])


@pytest.mark.parametrize(
    ("source", "channels", "said"),
    [
        (png(Image.new("RGB", (5, 5))), 4, "it has the colours RGB, not 4 channels: set --channels to what it has"),
        (png(Image.new("RGBA", (5, 5))), 5, "RGBA with transparency, not 5 channels"),
        (
            tiff(FIVE, planarconfig="contig", photometric="minisblack"),
            3,
            r"a TIFF of 5 channels: --channels 5 reads them",
        ),
        (npy(FIVE), 3, "an array of 9 × 8 × 5 numbers, not of 3 channels"),
        (npy(FIVE), 4, "an array of 9 × 8 × 5 numbers, not of 4 channels"),
        (npy(FIVE[:, :, 0]), 5, "an array of 9 × 8 numbers, not of 5"),
        (npy(np.zeros((0, 8, 5), np.uint8)), 5, "no pixels"),
        (npy(np.zeros((9, 8, 5), complex)), 5, "complex128, not numbers"),
        (npy(FIVE)[:-1], 5, "has 359 bytes instead of 360"),
        (npy(FIVE)[:20], 5, "EOF"),
        (tiff(FIVE, planarconfig="contig", photometric="minisblack")[:150], 5, "."),
    ],
)
def test_what_has_other_channels_or_is_damaged_is_refused(source, channels, said):
    with pytest.raises(DamagedImage, match=said):
        open_picture(source, channels)


def test_an_array_of_objects_is_not_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    file = io.BytesIO()
    np.save(file, np.array([Bomb()], dtype=object), allow_pickle=True)
    assert pickle.PROTO in file.getvalue()
    for channels in (1, 3, 5):
        with pytest.raises(DamagedImage, match="it holds objects, not numbers"):
            open_picture(file.getvalue(), channels)
    assert not (tmp_path / "written").exists()


def test_a_npy_header_of_a_huge_array_takes_no_memory():
    content = npy(FIVE).replace(b"(9, 8, 5)", b"(99999999, 99999, 5)"[:20])
    with pytest.raises(DamagedImage):
        open_picture(content, 5)


def test_a_tiff_that_says_it_is_huge_is_refused_before_it_is_decoded():
    content = bytearray(tiff(FIVE, planarconfig="contig", photometric="minisblack", byteorder="<"))
    with tifffile.TiffFile(io.BytesIO(bytes(content))) as file:
        for name in ("ImageWidth", "ImageLength"):
            place = file.pages.first.tags[name].valueoffset
            content[place : place + 4] = (2**20).to_bytes(4, "little")
    with pytest.raises(DamagedImage, match="million that are read"):
        open_picture(bytes(content), 5)


def test_grey_and_rgb_arrays_become_one_another():
    grey = FIVE[:, :, 0]
    for values in (grey, grey[:, :, None], grey[None]):
        assert np.array_equal(np.asarray(picture_of(values, 3, None)), np.stack([grey] * 3, 2))
    colour = FIVE[:, :, :3]
    assert np.array_equal(picture_of(colour, 1, None)[:, :, 0], np.asarray(Image.fromarray(colour).convert("L")))


@pytest.mark.parametrize("shape", [(3, 8), (1, 8), (3, 8, 1), (5, 3, 3), (3, 5, 3), (1, 6, 3)])
def test_the_last_axis_goes_before_the_first(shape):
    values = np.zeros(shape)
    assert channels_last(values, 3).shape == (*shape[:2], 1 if len(shape) == 2 else shape[2])


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 13])
@pytest.mark.parametrize("resize", ["crop", "squash", "letterbox"])
def test_encoded_pixels_are_the_same_when_they_are_read_again(channels, resize):
    half = (0.5,) * channels
    p = Preprocessing(
        image_size=16, stored_size=19, mean=half, std=half, interpolation="bicubic", resize=resize, channels=channels
    )
    pixels = RNG.integers(0, 256, (30, 22, channels), dtype=np.uint8)
    split = EncodedImages(pack_files([encode_pixels(pixels)] * 2), p)
    assert np.array_equal(split.batch(np.array([1]))[0], stored_square(pixels, p))
    assert split.batch(np.array([0, 1])).shape == (2, 19, 19, channels)
