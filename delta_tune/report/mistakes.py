"""A mistake of a model, as a report shows it."""

from __future__ import annotations

from dataclasses import dataclass

WORST = 12
"""Of them are shown."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Mistake:
    """An image whose answer is wrong."""

    image: str
    true: str
    verb: str = "taken for"
    predicted: str
    probability: float
    thumbnail: bytes
    """JPEG."""
