"""Text from data and users, such as names of files and classes, written so that it can be seen and does nothing."""

from __future__ import annotations

import re
import unicodedata

UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
"""Unicode categories: control characters, marks of direction and other unseen ones, surrogates, line separators."""
JOINERS = "\u200c\u200d"
"""Unseen, but Persian, Indic scripts and emoji are written with them."""


def visible(text: str, keep: str = "") -> str:
    """`text` with unseen characters as Python's escapes: a line break becomes `\\n`, an escape sequence `\\x1b[2J`.

    Bytes of a file name that are not UTF-8 become `\\xe9` and the like. A terminal prints the result as it is.

    Args:
        text: of any characters, line breaks and surrogates included.
        keep: unseen characters to leave in.
    """
    if text.isprintable():
        return text
    kept = keep + JOINERS
    return "".join(_escaped(c) if unicodedata.category(c) in UNSEEN and c not in kept else c for c in text)


def as_utf8(text: str) -> str:
    """`text` with its surrogates as escapes, so that it can be encoded as UTF-8."""
    return re.sub("[\ud800-\udfff]", lambda found: _escaped(found[0]), text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte, as os.fsdecode has it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()
