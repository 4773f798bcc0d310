"""Read the images of a request: counted while they come, never by what a header says of their size."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request

from delta_tune.config import visible
from delta_tune.serving.refusal import Busy, Refusal
from delta_tune.serving.settings import Settings

FIELDS = ("image", "images")
RAW = "the image"
"""Name of an image that is the whole body."""
NAME_CHARACTERS = 200
FORMS = "as a form (multipart/form-data, field image or images) or as the body (Content-Type: image/jpeg or the like)"
LINGER_S = 2.0
"""How long the rest of a refused body is read: a client that still sends would not see the answer."""


@dataclass(frozen=True, slots=True)
class Upload:
    """An image file as it was sent."""

    name: str
    """What the client calls it, without folders and unseen characters; never used as a path."""
    content: bytes


class Buffers:
    """Bounds the bytes that all requests hold in memory."""

    def __init__(self, limit: int) -> None:
        self.limit, self.used = limit, 0

    @contextmanager
    def share(self) -> Iterator[Share]:
        """A request's share; given back at the block's end."""
        share = Share(self)
        try:
            yield share
        finally:
            self.used -= share.taken


class Share:
    """What one request holds of `Buffers`."""

    def __init__(self, buffers: Buffers) -> None:
        self._buffers, self.taken = buffers, 0

    def take(self, count: int) -> None:
        """Hold `count` bytes more.

        Raises:
            Busy: all requests together would hold too much.
        """
        if self._buffers.used + count > self._buffers.limit:
            raise Busy("too much is being sent to it")
        self._buffers.used += count
        self.taken += count


async def read_images(request: Request, share: Share, settings: Settings) -> list[Upload]:
    """The images of a request, at least one.

    Raises:
        Refusal: the request is of another kind, too large, too slow, or damaged. The rest of its body has been
            read for a while then.
        ClientDisconnect: the client is gone.
    """
    stream = request.stream()
    try:
        async with asyncio.timeout(settings.read_timeout_s):
            return await _read(request, _counted(stream, share, settings), settings)
    except TimeoutError:
        raise Refusal(
            408, f"The request took longer than {settings.read_timeout_s:g} s to arrive; send less at a time."
        ) from None
    except Refusal:
        if "expect" not in request.headers:  # else the client waits for the word before it sends
            await _discard(stream, settings)
        raise


async def _discard(stream: AsyncIterator[bytes], settings: Settings) -> None:
    left = settings.max_request_bytes
    try:
        async with asyncio.timeout(LINGER_S):
            async for chunk in stream:
                left -= len(chunk)
                if left < 0:
                    break
    except TimeoutError:
        pass


async def _counted(stream: AsyncIterator[bytes], share: Share, settings: Settings) -> AsyncIterator[bytes]:
    total = 0
    async for chunk in stream:
        total += len(chunk)
        if total > settings.max_request_bytes:
            raise _too_large(settings)
        share.take(len(chunk))
        yield chunk


async def _read(request: Request, body: AsyncIterator[bytes], settings: Settings) -> list[Upload]:
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Refusal(415, "The body is compressed (Content-Encoding); send image files as they are.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > settings.max_request_bytes:
        raise _too_large(settings)
    told_kind, options = parse_options_header(request.headers.get("content-type"))
    kind = told_kind.lower()  # older versions leave it as it is where options follow
    if kind == b"multipart/form-data":
        return await _read_form(body, options.get(b"boundary", b""), settings)
    if kind.startswith(b"image/") or kind == b"application/octet-stream":
        content = bytearray()
        async for chunk in body:
            content += chunk
            _check_size(len(content), RAW, settings)
        if not content:
            raise Refusal(422, f"The body is empty; send an image {FORMS}.")
        return [Upload(RAW, bytes(content))]
    told = visible(kind.decode("latin-1"))[:60] or "no Content-Type"
    if kind in (b"application/json", b"text/plain", b"text/uri-list"):
        raise Refusal(415, f"{told} is not taken: the server fetches no addresses; send image files {FORMS}.")
    raise Refusal(415, f"{told} is not taken; send image files {FORMS}.")


async def _read_form(body: AsyncIterator[bytes], boundary: bytes, settings: Settings) -> list[Upload]:
    if not boundary:
        raise Refusal(400, "The form has no boundary in its Content-Type; let the HTTP library write that header.")
    form = _Form(settings)
    try:
        parser = MultipartParser(boundary, form.callbacks())
        async for chunk in body:
            parser.write(chunk)
    except FormParserError as error:
        raise Refusal(
            400, f"The form is damaged ({visible(str(error))[:100]}); let the HTTP library write it."
        ) from None
    if not form.is_complete:
        raise Refusal(400, "The form ends before its last boundary; send it whole.")
    if not form.uploads:
        raise Refusal(422, f"The form has no image; send image files {FORMS}.")
    return form.uploads


class _Form:
    """Collects the files of a form while it is parsed."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.uploads: list[Upload] = []
        self.is_complete = False
        self._headers: dict[bytes, bytes] = {}
        self._field, self._value, self._content = bytearray(), bytearray(), bytearray()
        self._name = ""

    def callbacks(self) -> Any:
        """What `MultipartParser` calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._field.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._complete,
        }

    def _begin(self) -> None:
        self._headers, self._content = {}, bytearray()

    def _header(self) -> None:
        self._headers[bytes(self._field).lower()] = bytes(self._value)
        self._field, self._value = bytearray(), bytearray()

    def _headers_finished(self) -> None:
        _, told = parse_options_header(self._headers.get(b"content-disposition", b"").decode("latin-1"))
        field = _text(told.get(b"name", b""))
        is_file = b"filename" in told or self._headers.get(b"content-type", b"").lower().startswith(b"image/")
        if not is_file and (field in FIELDS or "url" in field.lower()):
            raise Refusal(
                422, f"The field {field[:60]} has no file: the server fetches no addresses; send image files {FORMS}."
            )
        if field not in FIELDS:
            raise Refusal(422, f"The form has the field {field[:60]!r}; name the files image or images.")
        if len(self.uploads) >= self.settings.max_images:
            raise Refusal(413, f"The request has more than {self.settings.max_images} images; send fewer at a time.")
        self._name = _file_name(told.get(b"filename", b"")) or f"image {len(self.uploads) + 1}"

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._content += memoryview(data)[start:end]
        _check_size(len(self._content), self._name, self.settings)

    def _end(self) -> None:
        self.uploads.append(Upload(self._name, bytes(self._content)))

    def _complete(self) -> None:
        self.is_complete = True


def _text(told: bytes) -> str:
    return visible(told.decode("utf-8", "surrogateescape"))


def _file_name(told: bytes) -> str:
    """The name without folders; what is left of ../../etc/passwd is passwd."""
    last = told.replace(b"\\", b"/").rpartition(b"/")[2]
    return _text(last)[:NAME_CHARACTERS]


def _check_size(size: int, name: str, settings: Settings) -> None:
    if size > settings.max_image_bytes:
        raise Refusal(413, f"{name} has more than {_mib(settings.max_image_bytes)}; make it smaller.")


def _too_large(settings: Settings) -> Refusal:
    most = _mib(settings.max_request_bytes)
    return Refusal(413, f"The request has more than {most}; send fewer images at a time.")


def _mib(count: int) -> str:
    return f"{count / 2**20:g} MiB"
