"""The recorded configurations of a set as arrays, and what can be told from their logits."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

Floats = NDArray[np.float64]
Metric = Literal["accuracy", "balanced_accuracy"]
OLD_PHOTOS = 170
"""Validation photos of `curves.parquet`, which does not say so itself."""
TEMPERATURES = (0.05, 20.0)


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Completed configurations of one set, by number: N of them, E epochs, V validation photos, K classes."""

    name: str
    metric: Metric = "accuracy"
    num_val: int
    methods: tuple[str, ...]
    """Each one's regularizer."""
    starts: NDArray[np.bool_]
    """(N,), whether it is a starting point of its space."""
    score: Floats
    """(N, E), the metric on validation."""
    loss: Floats
    """(N, E), on validation."""
    accuracy: Floats
    """(N, E), what rungs compare."""
    test: Floats
    """(N,), the metric after the last epoch."""
    best_test: Floats | None = None
    """(N,), with the weights of the epoch that was the best by val_accuracy."""
    logits: Floats | None = None
    """(N, V, K), on validation after the last epoch."""
    labels: NDArray[np.int64] | None = None
    """(V,)."""

    def __len__(self) -> int:
        return len(self.test)

    @functools.cached_property
    def nll(self) -> Floats:
        """(N,), mean negative log-likelihood of the validation labels at each configuration's own best temperature."""
        assert self.logits is not None
        assert self.labels is not None
        return np.array([tempered_nll(logits, self.labels) for logits in self.logits])

    def with_photos(self, photos: NDArray[np.int64]) -> Pool:
        """The same judged by these validation photos, after the last epoch only."""
        assert self.logits is not None
        assert self.labels is not None
        logits, labels = self.logits[:, photos], self.labels[photos]
        loss = np.array([nll(each, labels) for each in logits])[:, None]
        scores = {"score": SCORES[self.metric](logits, labels)[:, None], "accuracy": accuracy(logits, labels)[:, None]}
        return dataclasses.replace(self, num_val=len(photos), **scores, loss=loss, logits=logits, labels=labels)


def read_pool(file: Path, metric: Metric = "accuracy") -> Pool:
    """The completed configurations of a table of `record_curves.py`, new or old; the old one has no logits."""
    table = pq.read_table(file)
    by_number: dict[int, list[dict[str, Any]]] = {}
    for row in table.to_pylist():
        if row["state"] == "completed":
            by_number.setdefault(row["number"], []).append(row)
    runs = [sorted(rows, key=lambda row: row["epoch"]) for _, rows in sorted(by_number.items())]

    def curves(column: str) -> Floats:
        return np.array([[row[column] for row in rows] for rows in runs], dtype=float)

    common = {"name": file.stem, "metric": metric, "score": curves(f"val_{metric}"), "loss": curves("val_loss")}
    common |= {"accuracy": curves("val_accuracy")}
    lasts = [rows[-1] for rows in runs]
    metadata = table.schema.metadata or {}
    if b"labels" not in metadata:
        assert metric == "accuracy"
        methods = tuple(json.loads(row["params"])["regularizer"] for row in lasts)
        common |= {"starts": np.zeros(len(lasts), bool)}  # its space is no longer there
        test = np.array([row["test_accuracy"] for row in lasts])
        return Pool(**common, num_val=OLD_PHOTOS, methods=methods, test=test)
    told = json.loads(metadata[b"labels"])
    labels = {split: np.array(told[split]) for split in ("val", "test")}

    def logits(column: str) -> Floats:
        return np.array([row[column] for row in lasts], dtype=float).reshape(len(lasts), -1, told["classes"])

    score = SCORES[metric]
    return Pool(
        **common,
        num_val=len(labels["val"]),
        methods=tuple(json.loads(row["config"])["regularizer"] for row in lasts),
        starts=np.array([is_start(row["space"], row["number"]) for row in lasts]),
        test=score(logits("test_logits"), labels["test"]),
        best_test=score(logits("best_test_logits"), labels["test"]),
        logits=logits("val_logits"),
        labels=labels["val"],
    )


STARTS = {"delta.py": 3, "methods.py": 5}
"""Space → how many of its first configurations were starting points when the tables were recorded (at d2adc45)."""


def is_start(space: str, number: int) -> bool:
    """Whether the configuration of this number, of two spaces in turn, is a starting point of its space."""
    return number // len(STARTS) < STARTS[space]


def accuracy(logits: Floats, labels: NDArray[np.int64]) -> Floats:
    """Of each configuration: (N, V, K) → (N,)."""
    return np.asarray((logits.argmax(2) == labels).mean(1))


def balanced_accuracy(logits: Floats, labels: NDArray[np.int64]) -> Floats:
    """Mean recall over the classes that occur: (N, V, K) → (N,)."""
    right = logits.argmax(2) == labels
    return np.asarray(np.mean([right[:, labels == label].mean(1) for label in np.unique(labels)], axis=0))


SCORES = {"accuracy": accuracy, "balanced_accuracy": balanced_accuracy}


def nll(logits: Floats, labels: NDArray[np.int64]) -> float:
    """Mean negative log-likelihood of the labels: (V, K) → a number."""
    return float(np.mean(logsumexp(logits, axis=1) - logits[np.arange(len(labels)), labels]))


def tempered_nll(logits: Floats, labels: NDArray[np.int64]) -> float:
    """The same at the temperature that makes it least."""
    bounds = tuple(np.log(TEMPERATURES))
    found = minimize_scalar(lambda log_t: nll(logits / np.exp(log_t), labels), bounds=bounds, method="bounded")
    return float(found.fun)


def parts_of(labels: NDArray[np.int64], count: int, most: float, least: float) -> list[NDArray[np.int64]]:
    """Indices of a part of each class's photos, rounded up; `count` draws of them.

    Args:
        labels: (V,).
        count: of draws.
        most: share of the photos that one class keeps, a random one; from class to class it falls in equal steps.
        least: share that the last one keeps.
    """
    rng = np.random.default_rng(1)
    classes = np.unique(labels)

    def part() -> NDArray[np.int64]:
        shares = zip(rng.permutation(classes), np.linspace(most, least, len(classes)), strict=True)
        by_class = [(np.flatnonzero(labels == label), share) for label, share in shares]
        return np.concatenate([rng.choice(own, math.ceil(share * len(own)), replace=False) for own, share in by_class])

    return [part() for _ in range(count)]


def tables(folder: Path) -> Sequence[Path]:
    """The new tables in this folder, by name."""
    return sorted(folder.glob("*.parquet"))
