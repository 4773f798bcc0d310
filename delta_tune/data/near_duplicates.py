"""Find pictures that are there twice, although resized, recompressed, mirrored, turned or slightly cropped.

A picture's perceptual hash is the low frequencies of its cosine transform, as in pHash (Zauner 2010, "Implementation
and benchmarking of perceptual image hash functions"), but not rounded to bits: scipy's k-d tree then finds neighbours
without comparing all with all, and the hash of a mirrored or turned copy is that of the mirrored or turned thumbnail.
Each candidate is compared thumbnail with thumbnail; for a crop, after one has been fitted to the other by Gauss-Newton
steps (Lucas and Kanade 1981).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.fft import dct
from scipy.spatial import cKDTree

from delta_tune.data.thumbnails import SIDE, Thumbnails

Floats = npt.NDArray[np.float64]
Pairs = npt.NDArray[np.int64]

ORIENTATIONS = ("same", "mirrored", "turned by 90°", "turned by 180°", "turned by 270°", "mirrored and turned")
"""What turns one picture of a pair into the other; "same" also if it was resized or recompressed."""
CROPPED = "cropped"
MOST_FOR_CROPS = 30_000
"""With more images crops are not looked for: their wide neighbourhoods would take most of the time."""
NEIGHBOURS = 6
"""At most so many candidates of each image are compared."""
RADIUS, CROP_RADIUS = 0.12, 0.35
"""Between hashes, whose length is 1. Of copies of half to all of the size, at JPEG quality 20 to 90, at most 0.07."""
DIFFERENCE = 0.01
"""1 - correlation of two grey thumbnails, of copies 0.005 at most; the least of two different photos was 0.016."""
SMALL, SMALL_DIFFERENCE = 48, 0.001
"""Images with a shorter side than that many pixels, such as single digits, look alike without being one picture: only
mirrored and recompressed ones are looked for, and their thumbnails may differ by less."""
COLOUR_DIFFERENCE = 14.0
"""The most that a part of the picture may differ in Cb or Cr."""
_FREQUENCIES = [(row, column) for row in range(6) for column in range(6) if 0 < row + column < 6]
_COSINES = dct(np.eye(SIDE, dtype=np.float32), axis=0, norm="ortho")[:8]
"""(8, 32): the lowest frequencies of the cosine transform."""
_CHUNK = 2048
_STEPS = 6
_LARGEST_STEP, _LARGEST_SHIFT, _LARGEST_SCALE = 0.1, 0.25, 1.25


@dataclass(frozen=True, slots=True, eq=False)
class NearDuplicates:
    """Pairs of images that are one picture."""

    pairs: Pairs
    """(P, 2): the lower index first; sorted."""
    kinds: tuple[str, ...]
    """(P,): one of `ORIENTATIONS`, or `CROPPED`."""
    differences: Floats
    """(P,): 1 - correlation."""

    def __len__(self) -> int:
        return len(self.pairs)


def find_near_duplicates(thumbnails: Thumbnails, *, crops: bool = True, turned: bool = True) -> NearDuplicates:
    """The pairs of images that show one picture. Blank images are left out: they are all alike.

    Of many copies of one picture not every pair is named, but all are connected by pairs.

    Args:
        thumbnails: of N images, none of which has the same file as another.
        crops: also look for pictures of which one is a slight crop of the other (a few percent of a side).
        turned: also look for turned ones; else for resized, recompressed and mirrored ones only.
    """
    (known,) = np.nonzero(~thumbnails.is_blank)
    found: dict[tuple[int, int], tuple[str, float]] = {}
    if len(known) > 1:
        for kind, pairs, differences in _pairs(thumbnails.taken(known), crops, turned):
            for (one, other), difference in zip(known[pairs].tolist(), differences.tolist(), strict=True):
                found.setdefault((one, other), (kind, difference))
    order = sorted(found)
    return NearDuplicates(
        pairs=np.array(order, dtype=np.int64).reshape(-1, 2),
        kinds=tuple(found[pair][0] for pair in order),
        differences=np.array([found[pair][1] for pair in order], dtype=float),
    )


def _pairs(thumbnails: Thumbnails, crops: bool, turned: bool) -> Iterator[tuple[str, Pairs, Floats]]:
    """Kind, pairs and their differences, the likeliest kinds first."""
    tree = cKDTree(_hashes(thumbnails.grey))
    small = thumbnails.side < SMALL
    names = ORIENTATIONS if turned else ORIENTATIONS[:2]
    for name in names:
        for grey, colour in _oriented(thumbnails, name):
            pairs = _candidates(tree, _hashes(grey), RADIUS)
            if name not in ORIENTATIONS[:2]:
                pairs = pairs[~small[pairs].any(1)]
            pairs, differences = _alike(thumbnails, Thumbnails(grey, colour, thumbnails.side), pairs)
            clear = ~small[pairs].any(1) | (differences < SMALL_DIFFERENCE)
            yield name, pairs[clear], differences[clear]
    if crops and tree.n <= MOST_FOR_CROPS:
        pairs = _candidates(tree, np.asarray(tree.data), CROP_RADIUS)
        yield CROPPED, *_fitting(thumbnails, pairs[~small[pairs].any(1)])


def _oriented(thumbnails: Thumbnails, name: str) -> Iterator[tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]]:
    """The thumbnails, mirrored and turned as `name` says."""
    for mirrored, quarter in {
        "same": [(False, 0)],
        "mirrored": [(True, 0)],
        "turned by 90°": [(False, 1)],
        "turned by 180°": [(False, 2)],
        "turned by 270°": [(False, 3)],
        "mirrored and turned": [(True, 1), (True, 2), (True, 3)],
    }[name]:
        both = thumbnails.grey, thumbnails.colour
        grey, colour = (np.rot90(each[:, :, ::-1] if mirrored else each, quarter, axes=(1, 2)) for each in both)
        yield grey, colour


def _hashes(grey: npt.NDArray[np.uint8]) -> Floats:
    """(N, 20): low frequencies of thumbnails (N, 32, 32), as a part of a vector of length 1."""
    parts = []
    rows, columns = np.array(_FREQUENCIES).T
    for start in range(0, len(grey), _CHUNK):
        frequencies = _COSINES @ grey[start : start + _CHUNK].astype(np.float32) @ _COSINES.T
        frequencies[:, 0, 0] = 0
        length = np.sqrt(np.square(frequencies).sum((1, 2)))
        parts.append(frequencies[:, rows, columns] / np.maximum(length, 1e-9)[:, None])
    return np.concatenate(parts).astype(float)


def _candidates(tree: cKDTree, queries: Floats, radius: float) -> Pairs:
    """(P, 2): the images that lie near a query, and that query's image, each pair once, the lower index first."""
    count = min(NEIGHBOURS + 1, tree.n)  # an image may be its own neighbour
    _, neighbours = tree.query(queries, k=count, distance_upper_bound=radius, workers=-1)
    queried, place = np.nonzero(neighbours.reshape(len(queries), -1) < tree.n)
    pairs = np.stack([neighbours.reshape(len(queries), -1)[queried, place], queried], axis=1)
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0).astype(np.int64).reshape(-1, 2)


def _alike(thumbnails: Thumbnails, others: Thumbnails, pairs: Pairs) -> tuple[Pairs, Floats]:
    """The pairs whose thumbnails correlate as they are, of which either may be the turned one."""
    kept, differences = [], []
    for chunk in _chunks(pairs):
        for first, second in (chunk.T, chunk.T[::-1]):
            difference = _difference(_centred(thumbnails.grey[first]), _centred(others.grey[second]))
            alike = (difference < DIFFERENCE) & (_colours_apart(thumbnails, others, first, second) < COLOUR_DIFFERENCE)
            kept.append(chunk[alike])
            differences.append(difference[alike])
    return _joined(kept, differences)


def _fitting(thumbnails: Thumbnails, pairs: Pairs) -> tuple[Pairs, Floats]:
    """The pairs of which one correlates with a part of the other."""
    kept, differences = [], []
    for chunk in _chunks(pairs):
        near = _colours_apart(thumbnails, thumbnails, *chunk.T) < COLOUR_DIFFERENCE
        chunk = chunk[near]
        for first, second in (chunk.T, chunk.T[::-1]):
            difference = _fitted_difference(thumbnails.grey[first], thumbnails.grey[second])
            alike = difference < DIFFERENCE
            kept.append(chunk[alike])
            differences.append(difference[alike])
    return _joined(kept, differences)


def _chunks(pairs: Pairs) -> Iterator[Pairs]:
    for start in range(0, len(pairs), _CHUNK):
        yield pairs[start : start + _CHUNK]


def _joined(kept: list[Pairs], differences: list[Floats]) -> tuple[Pairs, Floats]:
    if not kept:
        return np.empty((0, 2), dtype=np.int64), np.empty(0)
    return np.concatenate(kept), np.concatenate(differences)


def _colours_apart(one: Thumbnails, other: Thumbnails, first: Pairs, second: Pairs) -> Floats:
    """(P,): the largest difference of Cb or Cr in any part of the picture."""
    apart = one.colour[first].astype(float) - other.colour[second].astype(float)
    found: Floats = np.abs(apart).max((1, 2, 3))
    return found


def _centred(grey: npt.NDArray[np.uint8] | Floats) -> Floats:
    found = grey.astype(float)
    centred: Floats = found - found.mean((1, 2), keepdims=True)
    return centred


def _difference(one: Floats, other: Floats) -> Floats:
    """1 - correlation of centred pictures (P, 32, 32) with one another."""
    scale = np.sqrt(np.square(one).sum((1, 2)) * np.square(other).sum((1, 2)))
    difference: Floats = 1 - (one * other).sum((1, 2)) / np.maximum(scale, 1e-9)
    return difference


_POSITIONS = np.linspace(-1, 1, SIDE)


def _fitted_difference(whole: npt.NDArray[np.uint8], part: npt.NDArray[np.uint8]) -> Floats:
    """The least 1 - correlation of `part` with a part of `whole`, both (P, 32, 32).

    Fitted are a scale and a shift of each axis, a contrast and a brightness.
    """
    moved, target = whole.astype(float), part.astype(float)
    centred = _centred(target)
    scale, shift = np.ones((len(whole), 2)), np.zeros((len(whole), 2))
    least = np.full(len(whole), np.inf)
    for step in range(_STEPS + 1):
        seen = _sampling(scale[:, 0], shift[:, 0]) @ moved @ _sampling(scale[:, 1], shift[:, 1]).transpose(0, 2, 1)
        least = np.minimum(least, _difference(_centred(seen), centred))
        if step < _STEPS and len(whole):
            change = np.clip(_gauss_newton(seen, target)[:, :4], -_LARGEST_STEP, _LARGEST_STEP)
            shift = np.clip(shift + scale * change[:, 2:], -_LARGEST_SHIFT, _LARGEST_SHIFT)
            scale = np.clip(scale * (1 + change[:, :2]), 1 / _LARGEST_SCALE, _LARGEST_SCALE)
    return least


def _sampling(scale: Floats, shift: Floats) -> Floats:
    """(P, 32, 32): matrices that take a row or column at scaled and shifted positions, between pixels linearly."""
    pixels = np.clip((scale[:, None] * _POSITIONS + shift[:, None] + 1) * (SIDE - 1) / 2, 0, SIDE - 1)
    weights: Floats = np.maximum(0, 1 - np.abs(pixels[:, :, None] - np.arange(SIDE)))
    return weights


def _gauss_newton(seen: Floats, target: Floats) -> Floats:
    """(P, 6): changes of scales and shifts (vertical first), contrast and brightness to make `target` of `seen`."""
    down, across = np.gradient(seen, _POSITIONS, axis=1), np.gradient(seen, _POSITIONS, axis=2)
    slopes = [down * _POSITIONS[:, None], across * _POSITIONS, down, across, seen, np.ones_like(seen)]
    jacobian = np.stack(slopes, axis=-1).reshape(len(seen), -1, len(slopes))
    normal = jacobian.transpose(0, 2, 1) @ jacobian
    normal += 1e-6 * normal.trace(axis1=1, axis2=2)[:, None, None] * np.eye(len(slopes)) + 1e-6 * np.eye(len(slopes))
    residual = (target - seen).reshape(len(seen), -1, 1)
    change: Floats = np.linalg.solve(normal, jacobian.transpose(0, 2, 1) @ residual)[..., 0]
    return change
