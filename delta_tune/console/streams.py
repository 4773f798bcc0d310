"""Standard output that never stops the program: of any encoding, closed, or with a reader that is gone."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TextIO, cast

SIMILAR = str.maketrans(
    {"–": "-", "−": "-", "×": "x", "·": "-", "→": "->", "…": "...", "≥": ">=", "≤": "<=", "±": "+-", "‖": "||"}
)
"""Signs in our own texts, for alphabets that lack some of them."""


def encodable(text: str, encoding: str) -> str:
    """`text` in an alphabet: a sign that it lacks becomes a similar one, or else an escape such as `\\u0142`."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return text.translate(SIMILAR).encode(encoding, "backslashreplace").decode(encoding)
    return text


class _TolerantStream:
    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"
        self.lost = False
        """Whether something could not be written."""

    def write(self, text: str) -> int:
        if self._stream is not None:
            try:
                self._stream.write(encodable(text, self.encoding))
            except (OSError, ValueError):  # nobody reads the pipe, the disk is full, the file is closed
                self.lost = True
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self.lost = True

    def isatty(self) -> bool:
        return self._stream is not None and not getattr(self._stream, "closed", False) and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerant(stream: TextIO | None) -> TextIO:
    """A stream that writes to `stream` what can be written there and drops the rest.

    Signs that its encoding lacks are replaced. None is a standard stream that the process was started without.
    """
    return cast(TextIO, _TolerantStream(stream))


@contextmanager
def tolerant_output() -> Iterator[None]:
    """Make standard output and standard error tolerant while the block, a whole program, runs."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # a standard stream was closed: the next file would take its number, and what is printed
    os.close(descriptor)
    streams = [(sys.stdout, _TolerantStream(sys.stdout)), (sys.stderr, _TolerantStream(sys.stderr))]
    try:
        with redirect_stdout(cast(TextIO, streams[0][1])), redirect_stderr(cast(TextIO, streams[1][1])):
            yield
    finally:
        for stream, wrapped in streams:
            wrapped.flush()
            if wrapped.lost:
                _discard(stream)


def _discard(stream: TextIO) -> None:
    """Let Python write nowhere what it still holds for a stream: at its end it would fail over it."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # no file
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
