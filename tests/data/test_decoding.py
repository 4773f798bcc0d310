"""What Pillow alone gets wrong: odd metadata, grey levels without a scale, and damage of every kind."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib

import numpy as np
import pytest
from helpers.fuzz import cases
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from delta_tune.data.images import DamagedImage, open_image, to_square

PIXELS = np.random.default_rng(0).integers(0, 256, (23, 31, 3), dtype=np.uint8)
PHOTO = Image.fromarray(PIXELS)
RAMP = np.tile(np.linspace(0, 1, 64), (3, 1))


def encode(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def exif():
    tags = Image.Exif()
    tags[274], tags[271], tags[282] = 6, "Canon", 72.0
    return tags


def chunk(kind, content, checksum=None):
    checksum = zlib.crc32(kind + content) if checksum is None else checksum
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)


def segment(marker, content):
    return bytes((0xFF, marker)) + struct.pack(">H", len(content) + 2) + content


JPEG, PNG, TIFF, AVIF = (encode(PHOTO, kind) for kind in ("JPEG", "PNG", "TIFF", "AVIF"))


def png_with(*chunks):
    return PNG[:33] + b"".join(chunks) + PNG[33:]


def jpeg_with(*segments):
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def tiff_with(tag, kind, count, value):
    """A TIFF with one more entry in its directory, which moves to the end of the file."""
    (start,) = struct.unpack_from("<I", TIFF, 4)
    (number,) = struct.unpack_from("<H", TIFF, start)
    entries = [TIFF[start + 2 + 12 * i :][:12] for i in range(number)] + [struct.pack("<HHII", tag, kind, count, value)]
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return TIFF[:4] + struct.pack("<I", len(TIFF)) + TIFF[8:] + directory


@pytest.mark.parametrize(
    ("plain", "content"),
    [
        (PNG, png_with(chunk(b"eXIf", b"garbage"))),
        (PNG, png_with(chunk(b"tEXt", b"a\0b", checksum=0))),
        (PNG, png_with(chunk(b"tEXt", b"transparency\0often"))),
        (PNG, png_with(chunk(b"tEXt", b"bbox\0here"))),
        (PNG, png_with(chunk(b"tEXt", b"Raw profile type exif\0\n\n\nno number"))),
        (PNG, png_with(chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 2**20))))),
        (PNG, png_with(chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(2 * 2**20))))),
        (PNG, png_with(chunk(b"iCCP", b"a\0\7"))),
        (PNG, png_with(chunk(b"acTL", b"1"), chunk(b"caBX", b"", checksum=0))),
        (PNG, png_with(chunk(b"gAMA", b""), chunk(b"pHYs", b"1"))),
        (JPEG, jpeg_with(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\3\xed\0\0\0\0\0\2\0\0"))),
        (JPEG, jpeg_with(segment(0xED, b"Photoshop 3.0\0" + b"8BIM\0"))),
        (JPEG, jpeg_with(segment(0xE2, b"MPF\0" + b"garbage"), segment(0xE2, b"ICC_PROFILE\0"))),
        (JPEG, jpeg_with(segment(0xE2, b"MPF\0" + b"II*\0\x08\0\0\0\1\0" + struct.pack("<HHII", 0xB001, 2, 1, 0)))),
        (JPEG, jpeg_with(segment(0xE0, b"JFIF\0"))),
        (JPEG, jpeg_with(segment(0xEE, b"Adobe"))),
        (JPEG, jpeg_with(segment(0xE1, b"Exif\0\0garbage"))),
        (TIFF, tiff_with(700, 4, 1, 7)),
        (TIFF, tiff_with(34665, 4, 1, 2**31)),
        (TIFF, tiff_with(305, 77, 1, 2**31)),
        (AVIF, encode(PHOTO, "AVIF", exif=exif()).replace(b"MM\0*", b"none").replace(b"II*\0", b"none")),
    ],
)
def test_metadata_cannot_refuse_a_sound_photo(plain, content):
    seen = np.asarray(open_image(content))
    expected = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    if plain is AVIF:  # turned by its container, whatever the EXIF says
        expected = np.rot90(expected, -1)
    assert np.array_equal(seen, expected)


@pytest.mark.parametrize("kind", [b"PLTE", b"tRNS", b"IHDR"])
def test_damage_to_what_decides_on_colours_is_not_taken_for_metadata(kind):
    content = SOUND["palette png"]
    assert np.asarray(open_image(content)).shape == (23, 31, 3)
    for at in (content.index(kind), content.index(kind) + 6):
        damaged = bytearray(content)
        damaged[at] ^= 1
        with pytest.raises(DamagedImage):
            open_image(bytes(damaged))


@pytest.mark.parametrize("tag", [(282, 10, 1, struct.pack("<ii", -1, 0)), (270, 5, 1, struct.pack("<II", 7, 1))])
def test_orientation_is_read_beside_an_odd_tag(tag):
    number, kind, count, value = tag
    entries = sorted([struct.pack("<HHII", 274, 3, 1, 6), struct.pack("<HHII", number, kind, count, 38)])
    entries.sort(key=lambda entry: struct.unpack_from("<H", entry))
    tags = b"Exif\0\0II*\0\x08\0\0\0\2\0" + b"".join(entries) + bytes(4) + value
    assert open_image(jpeg_with(segment(0xE1, tags))).size == (23, 31)


@given(data=st.data())
@cases(150)
def test_changed_metadata_cannot_change_the_pixels(data):
    change = st.binary(max_size=40)
    content = data.draw(
        st.one_of(
            st.builds(
                lambda kind, content: png_with(chunk(kind, content)),
                st.sampled_from(
                    [b"eXIf", b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"pHYs", b"tIME"]
                ),
                st.one_of(change, change.map(lambda end: b"exif\0\0" + end)),
            ),
            st.builds(
                lambda marker, start, end: jpeg_with(segment(marker, start + end)),
                st.sampled_from([*range(0xE0, 0xEE), 0xEF, 0xFE]),
                st.sampled_from(
                    [b"", b"Exif\0\0II*\0\x08\0\0\0", b"ICC_PROFILE\0", b"MPF\0II*\0", b"Photoshop 3.0\x008BIM"]
                ),
                change,
            ),
            st.builds(
                tiff_with,
                st.sampled_from([270, 271, 282, 305, 306, 330, 700, 33723, 34377, 34665, 34675, 34853, 42112, 65000]),
                st.integers(0, 20),
                st.integers(0, 2**32 - 1),
                st.integers(0, 2**32 - 1),
            ),
        )
    )
    plain = {0x89: PNG, 0xFF: JPEG, 0x49: TIFF}[content[0]]
    expected = np.asarray(Image.open(io.BytesIO(plain)).convert("RGB"))
    seen = np.asarray(open_image(content))
    assert np.array_equal(np.sort(seen, axis=None), np.sort(expected, axis=None))  # any orientation


SOUND = {
    "jpeg": encode(PHOTO, "JPEG", exif=exif(), icc_profile=bytes(range(256)), comment=b"hello"),
    "progressive jpeg": encode(PHOTO, "JPEG", progressive=True),
    "cmyk jpeg": encode(PHOTO.convert("CMYK"), "JPEG"),
    "png": encode(PHOTO, "PNG", exif=exif()),
    "palette png": encode(PHOTO.quantize(9), "PNG", transparency=3),
    "16-bit png": encode(Image.fromarray(np.arange(99, dtype=np.uint16).reshape(9, 11) * 600), "PNG"),
    "webp": encode(PHOTO, "WEBP", exif=exif()),
    "lossless webp": encode(PHOTO.convert("RGBA"), "WEBP", lossless=True),
    "gif": encode(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(180)], transparency=1),
    "bmp": encode(PHOTO, "BMP"),
    "tiff": encode(PHOTO, "TIFF", exif=exif(), description="hi"),
    "lzw tiff": encode(PHOTO, "TIFF", compression="tiff_lzw"),
    "jpeg tiff": encode(PHOTO, "TIFF", compression="jpeg"),
    "avif": encode(PHOTO, "AVIF"),
    "jpeg 2000": encode(PHOTO, "JPEG2000"),
    "ppm": encode(PHOTO, "PPM"),
    "tga": encode(PHOTO, "TGA", compression="tga_rle"),
    "ico": encode(PHOTO, "ICO"),
}


@st.composite
def damaged_files(draw):
    content = bytearray(SOUND[draw(st.sampled_from(sorted(SOUND)))])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        change = draw(st.sampled_from(["flip", "cut", "insert", "end"]))
        if change == "flip":
            content[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif change == "cut":
            del content[at : at + draw(st.integers(1, 100))]
        elif change == "insert":
            content[at:at] = draw(st.one_of(st.binary(max_size=12), st.just(chunk(b"tEXt", b"a\0b"))))
        else:
            del content[at:]
    return bytes(content)


@given(content=damaged_files())
@cases(200)
def test_a_damaged_file_gives_an_image_or_one_sentence(content):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's warnings do not reach the user
        try:
            square = to_square(open_image(content), 16, "bilinear")
        except DamagedImage as error:
            sentence = str(error)
        else:
            assert square.shape == (16, 16, 3)
            return
    assert sentence.startswith("the image cannot be read as an image (")
    assert "\n" not in sentence
    assert " at 0x" not in sentence  # the same file gives the same words


def test_libtiff_prints_nothing(capfd):
    content = bytearray(encode(PHOTO, "TIFF", compression="tiff_adobe_deflate"))
    content[20:60] = bytes(40)
    with pytest.raises(DamagedImage):
        open_image(bytes(content))
    assert capfd.readouterr() == ("", "")


def test_filters_of_warnings_stay_as_they_were():
    before = list(warnings.filters)
    for content in (PNG, b"no image"):
        try:
            open_image(content)
        except DamagedImage:
            continue
    assert warnings.filters == before


@pytest.mark.parametrize("pixels", [RAMP.astype(np.float32), RAMP * 65535, (RAMP * 255).astype(np.int32)])
def test_grey_levels_without_a_scale_are_refused(pixels):
    image = Image.fromarray(pixels.astype(np.float32 if pixels.dtype == float else pixels.dtype))
    for source in (image, encode(image, "TIFF")):
        with pytest.raises(DamagedImage, match=r"whose black and white nothing tells: save all images as 8- or 16-bit"):
            open_image(source)


def tiff_of_grey(values, bits, photometric=1, sample_format=1):
    """A TIFF of one row."""
    entries = [(256, 3, 64), (257, 3, 1), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8), (277, 3, 1)]
    entries += [(278, 3, 1), (279, 4, len(values)), (339, 3, sample_format)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(values)) + values + directory + bytes(4)


def test_12_bit_grey_is_scaled_from_12_bits():
    values = np.round(RAMP[0] * 4095).astype(int)
    pairs = [bytes((a >> 4, (a & 15) << 4 | b >> 8, b & 255)) for a, b in values.reshape(-1, 2).tolist()]
    seen = np.asarray(open_image(tiff_of_grey(b"".join(pairs), 12)))[0, :, 0]
    assert np.abs(seen - RAMP[0] * 255).max() <= 0.6


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (tiff_of_grey((RAMP[0] * 255 - 128).astype(np.int8).tobytes(), 8, sample_format=2), "signed pixels"),
        (tiff_of_grey((RAMP[0] * 9999).astype("<i2").tobytes(), 16, sample_format=2), "32-bit or signed pixels"),
        (tiff_of_grey((RAMP[0] * 65535).astype("<u2").tobytes(), 16, photometric=0), "of which 0 is white"),
    ],
)
def test_grey_levels_that_pillow_reads_wrongly_are_refused(content, said):
    with pytest.raises(DamagedImage, match=said):
        open_image(content)


@pytest.mark.parametrize("most", [4095, 65535])
def test_deep_portable_greymaps_are_scaled_by_their_own_range(most):
    values = np.round(RAMP[0] * most).astype(">u2")
    seen = np.asarray(open_image(b"P5 64 1 %d\n" % most + values.tobytes()))[0, :, 0]
    assert np.abs(seen - RAMP[0] * 255).max() <= 0.6


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in for Ghostscript is a shell script")
def test_postscript_is_never_run(tmp_path, monkeypatch):
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    content = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
    for source in (content, Image.open(io.BytesIO(content))):
        with pytest.raises(DamagedImage):
            open_image(source)
    assert not (tmp_path / "ran").exists()
