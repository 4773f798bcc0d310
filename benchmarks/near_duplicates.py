"""How many altered copies of photos are found, and how many pairs that are named are no copies.

    python benchmarks/near_duplicates.py [--quick] [--data FOLDER ...] [--sheets FOLDER] [--json FILE]

For each kind of change, copies of photos of flowers17, clothing and trashnet96 are added to the set, and the search of
`python -m delta_tune inspect` runs over all of it: "resized" to 0.5 to 0.9 of the sides or to a square of 64 to 224
pixels, "recompressed" as JPEG of quality 20 to 60 or WebP of 30 to 60, "mirrored", "turned" by a multiple of 90
degrees, "brighter" by a tenth, "cropped" by 1 to 3 and by 3 to 6 percent of each side. A copy is found if it is paired
with its photo or with that photo's near duplicates. Required of the first three are 95 %.

What is false is counted in two ways. "false" are pairs of a copy with a photo that is neither its own nor paired with
its own in the untouched set, as a share of all pairs that were named. The pairs of the untouched sets, which have real
ones (twice the same photo, bursts), are listed apart, and none of them is taken for true unless somebody has looked:
`--sheets` writes them as pictures. docs/experiments.md says what was seen. `--scale N` times the search over N
thumbnails, mixed from these photos.

The photos are in the folder that DELTA_TUNE_TEST_DATA names.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from development_data import DATA, MISSING
from PIL import Image, ImageDraw

from delta_tune.data.images import open_image
from delta_tune.data.near_duplicates import NearDuplicates, find_near_duplicates
from delta_tune.data.sources.find import find_source
from delta_tune.data.thumbnails import Thumbnails, joined, stack, thumbnail

SETS = ("flowers17", "clothing", "trashnet96")
REQUIRED, FALSE = 0.95, 0.01
COPIES = 300
TILE = 120


def encoded(image: Image.Image, kind: str = "JPEG", quality: int = 85) -> Image.Image:
    """The image as a file has it."""
    file = io.BytesIO()
    image.save(file, kind, quality=quality)
    return open_image(file.getvalue())


def resized(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    side = int(rng.integers(64, 225))
    factor = rng.uniform(0.5, 0.9)
    size = (side, side) if rng.random() < 0.3 else tuple(max(8, round(factor * each)) for each in image.size)
    filters = (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC, Image.Resampling.BILINEAR, Image.Resampling.NEAREST)
    return encoded(image.resize(size, filters[int(rng.integers(len(filters)))]), quality=90)


def recompressed(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    if rng.random() < 0.3:
        return encoded(image, "WEBP", int(rng.integers(30, 60)))
    return encoded(image, quality=int(rng.integers(20, 60)))


def mirrored(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def turned(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return encoded(image.rotate(90 * int(rng.integers(1, 4)), expand=True))


def brighter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    return encoded(image.point(lambda value: min(255, round(1.1 * value))))


def cropped(least: float, most: float) -> Callable[[Image.Image, np.random.Generator], Image.Image]:
    def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
        left, top, right, bottom = rng.uniform(least, most, 4)
        width, height = image.size
        return encoded(image.crop((left * width, top * height, (1 - right) * width, (1 - bottom) * height)), quality=90)

    return crop


KINDS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "resized": resized,
    "recompressed": recompressed,
    "mirrored": mirrored,
    "turned": turned,
    "brighter": brighter,
    "cropped 1 to 3 %": cropped(0.01, 0.03),
    "cropped 3 to 6 %": cropped(0.03, 0.06),
}
ASKED = ("resized", "recompressed", "mirrored")


def photos_of(data: Path) -> list[bytes]:
    """The files of all splits, each content once."""
    found = {}
    for examples in find_source(data, seed=0).splits.values():
        for index in range(len(examples.labels)):
            content = examples.read(index)
            assert isinstance(content, bytes)
            found.setdefault(hashlib.sha256(content).digest(), content)
    return list(found.values())


def measure(data: Path, copies: int, sheets: Path | None) -> dict[str, Any]:
    """Recall and false share by kind, and the pairs of the untouched set."""
    files = photos_of(data)
    start = time.perf_counter()
    photos = stack([thumbnail(open_image(content)) for content in files])
    read_seconds = time.perf_counter() - start
    start = time.perf_counter()
    untouched = find_near_duplicates(photos)
    seconds = time.perf_counter() - start
    if sheets is not None:
        write_sheet(files, untouched, sheets / f"{data.name}.png")
    known = {frozenset(pair) for pair in untouched.pairs.tolist()}
    rng = np.random.default_rng(0)
    chosen = rng.choice(len(files), min(copies, len(files)), replace=False)
    row: dict[str, Any] = {
        "data": data.name,
        "photos": len(files),
        "untouched": dict(Counter(untouched.kinds)),
        "decode_seconds": read_seconds,
        "search_seconds": seconds,
        "kinds": {},
    }
    print(
        f"{data.name}: {len(files)} photos; decoding {read_seconds:.1f} s, search {seconds:.1f} s; pairs in the "
        f"untouched set: {', '.join(f'{count} {kind}' for kind, count in row['untouched'].items()) or 'none'}"
    )
    print(f"  {'change':<17} copies  found  pairs  false")
    for kind, change in KINDS.items():
        added = stack([thumbnail(change(open_image(files[index]), rng)) for index in chosen])
        pairs = find_near_duplicates(joined([photos, added])).pairs
        source = np.concatenate([np.arange(len(files)), chosen])
        both = source[pairs]
        own = (both[:, 0] == both[:, 1]) | [frozenset(pair) in known for pair in both.tolist()]
        of_copies = (pairs >= len(files)).any(1)
        found = np.intersect1d(pairs[of_copies & own].ravel(), np.arange(len(files), len(source)))
        false = int((of_copies & ~own).sum())
        recall, share = len(found) / len(chosen), false / max(1, int(of_copies.sum()))
        row["kinds"][kind] = {"recall": recall, "pairs": int(of_copies.sum()), "false": false, "false_share": share}
        print(f"  {kind:<17} {len(chosen):>6} {100 * recall:>5.1f}% {int(of_copies.sum()):>6} {false:>6}", flush=True)
    return row


def write_sheet(files: list[bytes], found: NearDuplicates, file: Path) -> None:
    """The pairs as pictures, the least alike first."""
    order = np.argsort(-found.differences)
    sheet = Image.new("RGB", (8 * (2 * TILE + 8), max(1, -(-len(order) // 8)) * (TILE + 16)), "white")
    draw = ImageDraw.Draw(sheet)
    for place, number in enumerate(order):
        x, y = place % 8 * (2 * TILE + 8), place // 8 * (TILE + 16)
        for side, index in enumerate(found.pairs[number]):
            sheet.paste(open_image(files[index]).resize((TILE, TILE)), (x + side * TILE, y))
        draw.text((x, y + TILE), f"{found.kinds[number]} {found.differences[number]:.4f}", fill="black")
    file.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(file)


def time_search(count: int, sets: list[Path]) -> float:
    """Seconds of the search over so many thumbnails, each a mixture of two photos."""
    photos = stack([thumbnail(open_image(content)) for data in sets for content in photos_of(data)])
    rng = np.random.default_rng(0)
    one, other = rng.integers(len(photos), size=(2, count))
    share = rng.uniform(0.3, 0.7, (count, 1, 1)).astype(np.float32)
    grey = (share * photos.grey[one] + (1 - share) * photos.grey[other]).astype(np.uint8)
    mixed = Thumbnails(grey, photos.colour[one], np.full(count, 255, dtype=np.uint8))
    start = time.perf_counter()
    pairs = len(find_near_duplicates(mixed))
    seconds = time.perf_counter() - start
    print(f"{count} thumbnails: {seconds:.0f} s, {pairs} pairs")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="flowers17 with 60 copies of each kind")
    parser.add_argument("--data", nargs="+", type=Path, metavar="FOLDER", help="data sets instead of the three")
    parser.add_argument("--sheets", type=Path, metavar="FOLDER", help="write the untouched sets' pairs as pictures")
    parser.add_argument("--scale", type=int, metavar="N", help="also time the search over N thumbnails")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    given = parser.parse_args()
    sets = given.data or [DATA / name for name in (SETS[:1] if given.quick else SETS)]
    if not sets[0].is_dir():
        raise SystemExit(MISSING)
    rows = [measure(data, 60 if given.quick else COPIES, given.sheets) for data in sets]
    least = min(row["kinds"][kind]["recall"] for row in rows for kind in ASKED)
    kinds = [kind for row in rows for kind in row["kinds"].values()]
    false = sum(kind["false"] for kind in kinds) / max(1, sum(kind["pairs"] for kind in kinds))
    print(f"Least recall of {', '.join(ASKED)}: {100 * least:.1f} % (required {100 * REQUIRED:.0f} %).")
    print(f"False among the pairs of copies: {100 * false:.2f} % (at most {100 * FALSE:.0f} %).")
    figures: dict[str, Any] = {"sets": rows, "least_recall": least, "false_share": false}
    if given.scale:
        figures |= {"scale": given.scale, "scale_seconds": time_search(given.scale, sets)}
    if given.json:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
