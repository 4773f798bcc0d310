"""What a reduced file loses and gains against the float32 one: scores, agreement, time and size, on the same images."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from delta_tune.config import MULTILABEL_METRIC, Metric
from delta_tune.console.format import format_bytes, format_count
from delta_tune.data.fitting import Pixels
from delta_tune.export.run_file import OnnxRunner
from delta_tune.inference.model import Model
from delta_tune.labels.kinds import LabelKind, Labels
from delta_tune.results.image_scores import CLASS_METRICS

MAX_LOSS = 0.01
"""Of a score: a file that loses more is not kept."""
WARM_UP, ROUNDS = 5, 40
"""Times that each file sees an image before its time counts, and while it does."""
TINIEST = 1e-7
"""Probabilities below count as this much in a logarithm."""


SplitOfImages = Literal["val", "test", "calibration"]


@dataclass(frozen=True, slots=True, eq=False)
class ScoredImages:
    """Images that a file is calibrated or scored on."""

    split: SplitOfImages
    """What they are: val, test, or calibration, the images that the user named."""
    pixels: Pixels
    """Stored squares, uint8 (N, stored_size, stored_size, C)."""
    labels: Labels | None
    """None if nobody knows."""
    trained_on: bool = False
    """Whether the model has learned from them."""


@dataclass(frozen=True, slots=True)
class SplitEvidence:
    """The two files on the same images."""

    split: SplitOfImages
    images: int
    trained_on: bool
    agreement: float
    """Share of the images whose most probable class is the same; of several labels, with the same labels."""
    divergence: float
    """Mean Kullback-Leibler divergence of the probabilities from those of the float32 file, in nats."""
    before: dict[str, float]
    """Scores of the float32 file, in [0, 1], without labels empty; the first is the one that counts."""
    after: dict[str, float]
    only_before: int = 0
    """Images that only the float32 file gets right."""
    only_after: int = 0
    """Images that only the reduced file gets right."""
    difference: tuple[float, float] | None = None
    """95 % interval of the change of the first score, from the images in pairs; None without labels."""

    @property
    def loss(self) -> float:
        """By how much the worst score is lower; without labels the share of other answers, which bounds it."""
        if not self.before:
            return 1 - self.agreement
        return max(self.before[name] - self.after[name] for name in self.before)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is known of a reduced file."""

    precision: str
    made: str
    """How, in words."""
    splits: tuple[SplitEvidence, ...]
    milliseconds: tuple[float, float]
    """An image, alone, on one thread, of the float32 file and of the reduced one: medians."""
    bytes: tuple[int, int]
    """Size of the two files."""

    @property
    def loss(self) -> float:
        """The largest of any split."""
        return max(split.loss for split in self.splits)

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self) | {"loss": self.loss}


def compare_probabilities(
    model: Model, before: np.ndarray, after: np.ndarray, images: ScoredImages, metric: Metric
) -> SplitEvidence:
    """Compare two files on the same images.

    Args:
        model: whose files they are.
        before: probabilities (N, K) of the float32 file.
        after: of the reduced one.
        images: to compare them on.
        metric: of the study, which is watched too if all classes count alike in it.
    """
    several = model.thresholds is not None
    answers = [_answers(model, each) for each in (before, after)]
    told = SplitEvidence(
        split=images.split,
        images=len(images.pixels),
        trained_on=images.trained_on,
        agreement=float((answers[0] == answers[1]).all(1).mean()),
        divergence=divergence(before, after, several),
        before={},
        after={},
    )
    if images.labels is None:
        return told
    logits = [_logits(each, several) for each in (before, after)]
    labels, kind = images.labels, model.kind
    main: Metric = MULTILABEL_METRIC if several else "val_accuracy"
    watched = dict.fromkeys([main, *([metric] if metric in CLASS_METRICS else [])])
    scores = [kind.metrics(torch.from_numpy(each), torch.from_numpy(labels), model.thresholds) for each in logits]
    names = [name.removeprefix("val_") for name in watched]
    truth = labels > 0 if several else labels[:, None]
    right = [(each == truth).all(1) for each in answers]
    return dataclasses.replace(
        told,
        before={name: scores[0][name] for name in names},
        after={name: scores[1][name] for name in names},
        only_before=int((right[0] & ~right[1]).sum()),
        only_after=int((right[1] & ~right[0]).sum()),
        difference=_interval(kind, logits, labels, main),
    )


def _answers(model: Model, probabilities: np.ndarray) -> np.ndarray:
    """The most probable class of each image, (N, 1); with several labels which are there, (N, K)."""
    if model.thresholds is None:
        best: np.ndarray = probabilities.argmax(1)[:, None]
        return best
    found: np.ndarray = probabilities >= np.array(model.thresholds)
    return found


def divergence(before: np.ndarray, after: np.ndarray, several: bool) -> float:
    """Mean over the images of Σ p log(p / q), p before and q after; with several labels of each label's two answers."""
    if not np.isfinite(after).all():
        return math.inf
    p, q = (np.clip(each.astype(np.float64), TINIEST, 1 - TINIEST) for each in (before, after))
    terms = p * np.log(p / q)
    if several:
        terms += (1 - p) * np.log((1 - p) / (1 - q))
    return float(terms.sum(1).mean())


def _logits(probabilities: np.ndarray, several: bool) -> np.ndarray:
    """Of which these are the probabilities."""
    p = np.clip(probabilities.astype(np.float64), TINIEST, 1 - TINIEST)
    found: np.ndarray = (np.log(p) - np.log1p(-p) if several else np.log(p)).astype(np.float32)
    return found


def _interval(kind: LabelKind, logits: Sequence[np.ndarray], labels: Labels, metric: Metric) -> tuple[float, float]:
    """95 % interval of the mean change of the images' scores.

    It is that of Agresti and Min for matched pairs (2005), who add half an image to each of the four cells of right and
    wrong, before and after, so that no change at all is no proof; written for scores that need not be 0 or 1.
    """
    before, after = (kind.image_scores(each, labels, metric) for each in logits)
    change, n = after - before, len(before) + 2
    mean = float(change.sum()) / n
    variance = (float((change**2).sum()) + 1) / n - mean**2
    half = 1.96 * math.sqrt(max(variance, 0.0) / n)
    return mean - half, mean + half


def time_files(files: Sequence[OnnxRunner], pixels: Pixels) -> tuple[float, ...]:
    """Milliseconds an image of each file, the median of rounds in which each sees the same image alone, in turns."""
    taken: list[list[float]] = [[] for _ in files]
    for number in range(WARM_UP + ROUNDS):
        image = pixels[number % len(pixels)][None]
        for file, times in zip(files, taken, strict=True):
            feed = file.feed(image)
            started = time.perf_counter()
            file.answer(feed)
            if number >= WARM_UP:
                times.append(time.perf_counter() - started)
    return tuple(1000 * float(np.median(times)) for times in taken)


def table(evidence: Evidence) -> list[tuple[str, str, str]]:
    """What is compared, of the float32 file, of the reduced one: rows for a table."""
    rows = []
    for split in evidence.splits:
        where = f"{split.split}, {split.images} images{', which it was trained on' if split.trained_on else ''}"
        for name, value in split.before.items():
            rows.append(
                (
                    f"{name.replace('_', ' ').replace('f1', 'F1')} ({where})",
                    _percent(value),
                    _percent(split.after[name]),
                )
            )
        rows.append((f"same answer ({where})", "", _percent(split.agreement)))
    slow, fast = evidence.milliseconds
    large, small = evidence.bytes
    rows.append(("ms an image, on one thread", f"{slow:.2f}", f"{fast:.2f}"))
    rows.append(("size", format_bytes(large), format_bytes(small)))
    return rows


def sentences(evidence: Evidence) -> list[str]:
    """What the figures mean, in plain words."""
    return [f"{evidence.precision}: {evidence.made}.", *map(_judged, evidence.splits)]


def _judged(split: SplitEvidence) -> str:
    if split.difference is None:
        return (
            f"The images of {split.split} have no labels: {_percent(1 - split.agreement)} of the answers change, and "
            f"no more than that is lost."
        )
    low, high = (100 * each for each in split.difference)
    counts = (
        f"of {format_count(split.images, 'image')} float32 alone is right for {split.only_before}, the reduced file "
        f"alone for {split.only_after}"
    )
    noise = "the difference is within noise" if low <= 0 <= high else "the difference is more than noise"
    what = f"{split.split}: {counts}; {noise} (95 % interval {low:+.1f} to {high:+.1f} points)."
    return (
        f"{what} It was trained on these images, of which it is surer than of new ones." if split.trained_on else what
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def card_section(evidence: Evidence) -> tuple[str, str]:
    """Title and text of what the model card says of a reduced file, as Markdown; no name from data is in it."""
    rows = "\n".join(f"| {what} | {before} | {after} |" for what, before, after in table(evidence))
    told = "\n\n".join(sentences(evidence))
    return f"ONNX in {evidence.precision}", f"| | float32 | {evidence.precision} |\n|---|---|---|\n{rows}\n\n{told}"
