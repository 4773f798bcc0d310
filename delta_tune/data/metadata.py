"""Take out of an image file what does not concern its pixels.

Pillow refuses sound photos because of a text, a colour profile or a tag that it cannot read. The orientation stays, and
so does all that decides on colours. Where a file's structure is not as its format says, it is left as it is.
"""

from __future__ import annotations

import re
import struct
import zlib

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# fmt: off
_PNG_METADATA = frozenset((
    b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV",
    b"cLLI", b"pHYs", b"tIME", b"sBIT", b"bKGD", b"hIST", b"sPLT", b"oFFs", b"pCAL",
    b"sCAL", b"sTER", b"dSIG", b"caBX", b"vpAg", b"acTL", b"fcTL", b"fdAT",
))
# fmt: on
"""What does not change the first picture; unknown chunks stay, lest a damaged PLTE or tRNS passes for one of them."""
_JPEG_SHORTEST = {0xE0: 14, 0xEE: 12}
"""JFIF and Adobe tell the colour space; libjpeg, too, passes over shorter ones."""
_TIFF_TAGS = frozenset((*range(256, 260), 262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326)))
_TIFF_TAGS |= {332, 338, 339, 347, *range(512, 522), *range(529, 533)}


def without_metadata(content: bytes) -> bytes:
    """The same picture in a file without texts, profiles and tags; `content` itself where there are none."""
    if content.startswith(_PNG_SIGNATURE):
        return _png(content)
    if content.startswith(b"\xff\xd8"):
        return _jpeg(content)
    if content[:4] in (b"II*\0", b"MM\0*"):
        return _tiff(content)
    if content[4:8] == b"ftyp":
        # AVIF: an item that is of no known type is not read.
        return re.sub(rb"(infe[\2\3].{3}(?:..|....)..)Exif", rb"\1free", content, flags=re.DOTALL)
    return content


def _png(content: bytes) -> bytes:
    kept = [_PNG_SIGNATURE]
    start = len(_PNG_SIGNATURE)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        kind = content[start + 4 : start + 8]
        if kind == b"eXIf" and end <= len(content):
            kept += [content[start : end - 4], zlib.crc32(content[start + 4 : end - 4]).to_bytes(4, "big")]
        elif kind not in _PNG_METADATA:
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _jpeg(content: bytes) -> bytes:
    kept = [content[:2]]
    start = 2
    while start + 4 <= len(content) and content[start] == 0xFF and content[start + 1] != 0xDA:  # before the pixels
        marker = content[start + 1]
        if marker == 0xFF:  # padding
            start += 1
            continue
        end = start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")
        segment = content[start + 4 : end]
        if marker < 0xE0 or len(segment) >= _JPEG_SHORTEST.get(marker, 2**16) or segment.startswith(b"Exif\0"):
            kept.append(content[start:end])
        start = end
    return b"".join([*kept, content[start:]])


def _tiff(content: bytes) -> bytes:
    order = "<" if content.startswith(b"II") else ">"
    try:
        (start,) = struct.unpack_from(f"{order}I", content, 4)
        (count,) = struct.unpack_from(f"{order}H", content, start)
        entries = [content[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
        kept = [entry for entry in entries if struct.unpack_from(f"{order}H", entry)[0] in _TIFF_TAGS]
    except struct.error:
        return content
    # The further pages are left off: their place is after the last entry.
    directory = struct.pack(f"{order}H", len(kept)) + b"".join(kept) + bytes(4)
    return content[:start] + directory + content[start + len(directory) :]
