"""What the server may be asked for, and how much of the machine it takes."""

from __future__ import annotations

from dataclasses import dataclass, fields

from delta_tune.config import UserError
from delta_tune.data.limits import MAX_PIXELS

MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Limits of requests, and the shares of the machine."""

    threads: int = 1
    """That decode images, and that compute; of each kind so many."""
    batch_size: int = 8
    """Most images that are computed together."""
    batch_wait_s: float = 0.002
    """How long an image waits for others that are being decoded."""
    max_queue: int = 256
    """Images that may wait or be at work; requests beyond are answered 503."""
    max_images: int = 64
    """In one request."""
    max_image_bytes: int = 32 * MIB
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

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "access_log" and not (value > 0 or (field.name == "batch_wait_s" and value == 0)):
                raise UserError(f"{field.name} must be more than 0, but got {value}.")
        if self.max_pixels > MAX_PIXELS:
            raise UserError(f"max_pixels must be at most {MAX_PIXELS}, but got {self.max_pixels}.")
        if self.max_images > self.max_queue:
            raise UserError(
                f"A request of max_images {self.max_images} would never fit into max_queue {self.max_queue}; give a "
                f"longer queue or fewer images."
            )
        if not self.max_image_bytes <= self.max_request_bytes <= self.max_buffered_bytes:
            raise UserError(
                f"max_image_bytes {self.max_image_bytes} <= max_request_bytes {self.max_request_bytes} <= "
                f"max_buffered_bytes {self.max_buffered_bytes} must hold."
            )
