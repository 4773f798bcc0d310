"""What the server may be asked for, and how much of the machine it takes."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Limits of requests, and the shares of the machine: above 0, or at least 0 for `batch_wait_s`.

    `cli/serve.py` checks them, by the names of its flags.
    """

    threads: int = 1
    """That decode images, and that compute; of each kind so many."""
    batch_size: int = 8
    """Most images that are computed together."""
    batch_wait_s: float = 0.002
    """How long an image waits for others that are being decoded."""
    max_queue: int = 256
    """Images that may wait or be at work; requests beyond are answered 503."""
    max_images: int = 64
    """In one request, ≤ max_queue."""
    max_image_bytes: int = 32 * MIB
    """Of an image file, ≤ max_request_bytes ≤ max_buffered_bytes."""
    max_request_bytes: int = 128 * MIB
    max_buffered_bytes: int = 512 * MIB
    """Of all requests together, that are in memory at the same time."""
    max_pixels: int = 64_000_000
    """Width × height of an image."""
    max_connections: int = 512
    read_timeout_s: float = 30.0
    """For a client to send its whole request."""
    timeout_s: float = 60.0
    """From the last byte of a request to its answer."""
    drain_s: float = 10.0
    """For requests that are in progress when the server is told to end."""
    access_log: bool = True
