"""Requests that no client should send, with good ones in between."""

from __future__ import annotations

import collections
import json
import random
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from serve_parts.clients import read_answer, request
from serve_parts.process import Running

CLIENTS = 8
GOOD_EVERY = 10
PATIENCE_S = 30.0
GROWTH_MIB = 256.0
BOUNDARY = b"boundary"
Draw = random.Random
Kind = Callable[[Draw, bytes], "bytes | list[bytes]"]


def _head(kind: bytes = b"image/jpeg", length: int | None = None, more: bytes = b"") -> bytes:
    told = b"" if length is None else b"Content-Length: %d\r\n" % length
    return b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: %s\r\n%s%s\r\n" % (kind, told, more)


def _form(name: bytes, content: bytes, field: bytes = b"images") -> bytes:
    told = b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n\r\n' % (BOUNDARY, field, name)
    body = told + content + b"\r\n--" + BOUNDARY + b"--\r\n"
    return _head(b"multipart/form-data; boundary=" + BOUNDARY, len(body)) + body


def _png(width: int, height: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    size = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(7900 * (3 * 7900 + 1)), 9)
"""62 million black pixels, just within the limit: 190 MB once decoded."""


def _flipped(draw: Draw, photo: bytes) -> bytes:
    damaged = bytearray(photo)
    for _ in range(draw.randint(1, 200)):
        damaged[draw.randrange(len(damaged))] = draw.randrange(256)
    return bytes(damaged)


KINDS: dict[str, Kind] = {
    "random bytes as an image": lambda draw, photo: request(draw.randbytes(draw.randint(0, 2**16))),
    "random bytes as HTTP": lambda draw, photo: draw.randbytes(draw.randint(1, 2**12)) + b"\r\n\r\n",
    "truncated JPEG": lambda draw, photo: request(photo[: draw.randrange(len(photo))]),
    "damaged JPEG": lambda draw, photo: request(_flipped(draw, photo)),
    "bomb within the limit": lambda draw, photo: request(_png(7900, 7900, BOMB)),
    "bomb beyond the limit": lambda draw, photo: request(_png(draw.randint(10_000, 2**31 - 1), 2**20, BOMB)),
    "huge headers": lambda draw, photo: b"GET / HTTP/1.1\r\n" + b"X-%d: y\r\n" % draw.randrange(99) * 50_000,
    "a huge line": lambda draw, photo: b"GET /" + b"a" * draw.randint(2**16, 2**20),
    "a huge chunk size": lambda draw, photo: _head(more=b"Transfer-Encoding: chunked\r\n") + b"f" * 40 + b"\r\n",
    "wrong type": lambda draw, photo: _head(draw.choice((b"application/json", b"text/html", b"\xff", b"")), 2) + b"{}",
    "addresses": lambda draw, photo: _form(b"", b"http://127.0.0.1/", b"urls"),
    "half-sent body": lambda draw, photo: _head(length=len(photo)) + photo[: len(photo) // 2],
    "half-sent headers": lambda draw, photo: _head()[: draw.randrange(len(_head()))],
    "length too long": lambda draw, photo: _head(length=len(photo) + draw.randint(1, 9)) + photo,
    "length too short": lambda draw, photo: _head(length=draw.randrange(len(photo))) + photo,
    "absurd length": lambda draw, photo: _head(length=draw.choice((10**12, 10**30))) + photo,
    "negative length": lambda draw, photo: _head(more=b"Content-Length: -5\r\n") + photo,
    "two lengths": lambda draw, photo: _head(length=3, more=b"Content-Length: 9\r\n") + photo,
    "name that is not UTF-8": lambda draw, photo: _form(
        draw.randbytes(20).replace(b'"', b"").replace(b"\r", b""), photo
    ),
    "name with a path": lambda draw, photo: _form(b"../" * draw.randint(1, 30) + b"etc/passwd", photo),
    "many fields": lambda draw, photo: _form(b"a", b"", b"x" * 5000),
    "form without an end": lambda draw, photo: _head(b"multipart/form-data; boundary=b", 4) + b"--b\r",
    "slow headers": lambda draw, photo: [b"POST", b" /pre", b"dict", b" HT"],
    "slow body": lambda draw, photo: [_head(length=len(photo)), *(photo[i : i + 5] for i in range(0, 40, 5))],
    "unknown address": lambda draw, photo: b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n" % draw.randbytes(9).hex().encode(),
    "unknown method": lambda draw, photo: b"BREW /predict HTTP/1.1\r\nHost: x\r\n\r\n",
    "no answer awaited": lambda draw, photo: [request(photo)],
}
SLOW_S = 0.5
"""Between the pieces that a slow client sends."""


def send_bad_requests(server: Running, photo: bytes, count: int) -> dict[str, Any]:
    """Send so many bad requests, a good one after each tenth; print and return what became of them."""
    kinds, faults, answers, memory, good = (
        list(KINDS),
        list[str](),
        collections.Counter[str](),
        list[float](),
        list[float](),
    )
    expected, _ = _ask_good(server, photo)
    numbers, lock = iter(range(count)), threading.Lock()

    def client() -> None:
        for number in _taken(numbers, lock):
            draw = random.Random(number)
            kind = kinds[number % len(kinds)]
            status = _send(server, KINDS[kind](draw, photo))
            with lock:
                answers[f"{kind}: {status}"] += 1
            if number % GOOD_EVERY == 0:
                try:
                    found, seconds = _ask_good(server, photo)
                except (OSError, AssertionError) as error:
                    faults.append(f"after {kind}: {error!r}")
                    continue
                good.append(seconds)
                memory.append(server.memory_mib())
                if found != expected:
                    faults.append(f"after {kind}: {found!r:.200} instead of {expected!r:.200}")

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    first, last = max(memory[: max(1, len(memory) // 5)]), memory[-1]
    if last - first > GROWTH_MIB:
        faults.append(f"memory grew from {first:.0f} to {last:.0f} MiB")
    if server.process.poll() is not None:
        faults.append(f"the server ended with status {server.process.returncode}")
    for line, number in sorted(answers.items()):
        print(f"{number:5d} {line}")
    print(
        f"{count} bad requests of {len(kinds)} kinds, {len(good)} good ones in between, the slowest {max(good):.2f} s\n"
        f"memory: {first:.0f} MiB at most in the first fifth, {max(memory):.0f} at most, {last:.0f} at the end\n"
        f"{len(faults)} faults"
    )
    for fault in faults:
        print(f"FAULT {fault}")
    return {"answers": dict(answers), "memory_mib": memory, "good_seconds": good, "faults": faults}


def _taken(numbers: Iterator[int], lock: threading.Lock) -> Iterator[int]:
    while True:
        with lock:
            number = next(numbers, None)
        if number is None:
            return
        yield number


def _ask_good(server: Running, photo: bytes) -> tuple[Any, float]:
    """The prediction for a photo, after as many 503 as there are, and the seconds that it took."""
    start = time.perf_counter()
    while True:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
            connection.sendall(request(photo))
            status, body = read_answer(connection)
        assert time.perf_counter() - start < PATIENCE_S, "no answer but 503"
        if status != 503:
            assert status == 200, body
            return json.loads(body), time.perf_counter() - start
        time.sleep(0.2)


def _send(server: Running, content: bytes | list[bytes]) -> str:
    """Send it, slowly if it is in pieces; the status of the answer, or what became of the connection."""
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE_S) as connection:
            if isinstance(content, list):
                for piece in content:
                    connection.sendall(piece)
                    time.sleep(SLOW_S)
                if len(content) == 1:
                    return "left"
            else:
                connection.sendall(content)
            answer = connection.recv(2**16)
            return answer[9:12].decode("latin-1") if answer else "closed"
    except TimeoutError:
        return "NO ANSWER"
    except OSError as error:
        return type(error).__name__
