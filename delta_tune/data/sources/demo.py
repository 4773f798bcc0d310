"""The demo's data source: scikit-learn's handwritten digits."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from delta_tune.config import UserError
from delta_tune.data.sources.base import Examples, Source


def from_demo(seed: int) -> Source:
    """scikit-learn's handwritten digits: 997 for training, 300 for validation, 500 for test."""
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise UserError('The demo needs scikit-learn; run: pip install "delta-tune[demo]".') from error
    digits, labels = load_digits(return_X_y=True)
    pixels = np.round(digits.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    # Add a black border: some strokes touch the edge, and random crops cut off an eighth of the side.
    pixels = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    rest, test = train_test_split(np.arange(len(labels)), test_size=500, stratify=labels, random_state=seed)
    train, val = train_test_split(rest, test_size=300, stratify=labels[rest], random_state=seed)

    def examples(rows: Any) -> Examples:
        rows = np.sort(rows)
        return Examples(
            labels=[str(label) for label in labels[rows]],
            names=[f"digits:{row}" for row in rows],
            read=lambda index: Image.fromarray(pixels[rows[index]]),
        )

    return Source(name="demo", splits={"train": examples(train), "val": examples(val), "test": examples(test)})
