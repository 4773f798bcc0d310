"""How alike two images look to a model: the cosine of their embeddings."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

ROWS = 4096
"""Embeddings that are compared at a time, which bounds the memory."""
UNLIKE = 0.05
"""An image of less typicality is unlike the training images: 3 to 6 % of a model's own test photos, a quarter to nearly
all of foreign ones (benchmarks/unsure.py)."""
MOST_COMPARED = 2000
"""Training images that are compared with all others, at most."""


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Rows (N, D) divided by their lengths; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    found: np.ndarray = vectors / np.where(lengths > 0, lengths, 1)
    return found


def similarities(known: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """The cosine of each embedding (N, D) and each of `known` (M, D), of unit length: float32 (N, M) in [-1, 1]."""
    units = unit_vectors(embeddings).astype(np.float32)
    parts = [units @ known[start : start + ROWS].astype(np.float32).T for start in range(0, len(known), ROWS)]
    return np.concatenate(parts, 1).clip(-1, 1)


def usual_similarities(known: np.ndarray) -> np.ndarray:
    """How alike images are to the nearest other one, in ascending order: float32, of 2,000 of (M, D) at most."""
    if len(known) < 2:
        return np.empty(0, dtype=np.float32)
    rows = np.linspace(0, len(known) - 1, min(len(known), MOST_COMPARED)).round().astype(np.int64)
    return np.sort(np.concatenate(list(_nearest_of_others(known, rows))))


def _nearest_of_others(known: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), ROWS // 16):
        part = rows[start : start + ROWS // 16]
        found = similarities(known, known[part].astype(np.float32))
        found[np.arange(len(part)), part] = -1
        yield found.max(1)


def typicality(usual: np.ndarray, nearest: float) -> float | None:
    """The share of training images that are no more alike to another one than an image is to its nearest, in [0, 1].

    None if there is one training image only.

    Args:
        usual: what `usual_similarities` returned.
        nearest: the image's similarity to the nearest training image.
    """
    return float(np.searchsorted(usual, nearest, side="right") / len(usual)) if len(usual) else None
