"""Clients that keep their connections, in a process of their own: plain sockets, which take little of the CPUs."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from typing import Any

WARM_S = 0.5


def load_in_own_process(port: int, photos: list[bytes], clients: int, seconds: float) -> dict[str, float]:
    """Requests a second, and percentiles of their time in milliseconds."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_load, args=(sending, port, photos, clients, seconds))
    process.start()
    sending.close()
    found: dict[str, float] = receiving.recv()
    process.join()
    return found


def _load(answer: Any, port: int, photos: list[bytes], clients: int, seconds: float) -> None:
    times: list[tuple[float, float]] = []
    begin, used = time.perf_counter() + WARM_S, time.process_time()
    end = begin + seconds
    threads = [
        threading.Thread(target=_client, args=(port, photos[number::clients] or photos, end, times))
        for number in range(clients)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = sorted(1000 * (last - first) for first, last in times if first >= begin and last <= end)
    answer.send(
        {
            "client_cpu_ms": 1000 * (time.process_time() - used) / max(1, len(times)),
            "rate": sum(begin <= last <= end for _, last in times) / seconds,
            "p50_ms": taken[len(taken) // 2],
            "p99_ms": taken[int(len(taken) * 0.99)],
            "requests": float(len(times)),
        }
    )


def request(photo: bytes, path: str = "/predict") -> bytes:
    """A request with a photo as its body."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(photo)}\r\n\r\n"
    return head.encode() + photo


def read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of an answer with a Content-Length."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += _some(connection)
    head, _, body = found.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += _some(connection)
    return int(head[9:12]), body


def _some(connection: socket.socket) -> bytes:
    chunk = connection.recv(2**16)
    if not chunk:
        raise ConnectionError("the server closed the connection")
    return chunk


def _client(port: int, photos: list[bytes], end: float, times: list[tuple[float, float]]) -> None:
    sent = [request(photo) for photo in photos]
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = 0
        while time.perf_counter() < end:
            first = time.perf_counter()
            connection.sendall(sent[number % len(sent)])
            status, body = read_answer(connection)
            assert status == 200, (status, body)
            times.append((first, time.perf_counter()))
            number += 1
