"""How fast are images that do not fit into memory, and how much memory do they take?

    python benchmarks/large_data.py [--gigabytes 5] [--limit 1GB] [--kind folder|parquet] [--quick] [--json FILE]

It makes photos of 320 × 256 pixels (noise of several sizes, JPEG, each with a comment of its own), reads them as a
study does, and trains a small network for an epoch on some of them: once with the images packed on disk in a process
with a limit, once with all files in memory. It reads batches in random order from packs, from memory, and from each
photo's own file. The limit is one of the process's own memory (RLIMIT_DATA: what it may allocate after its libraries
are loaded), not of the page cache, which the system takes back when it needs it: `cold` is after the page cache of what
is read was dropped. `private` is the largest private memory (/proc/self/smaps_rollup) that was seen, the libraries'
0.4 GB included; where it is above the limit, this ends with status 1. Everything is removed at the end; the disk needs
twice `--gigabytes`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import json
import os
import pickle
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from delta_tune.config import TrialConfig
from delta_tune.config.sizes import parse_bytes
from delta_tune.console.format import format_bytes
from delta_tune.data.dataset import Dataset
from delta_tune.data.images import Preprocessing
from delta_tune.data.packed_images import PackedImages, as_encoded
from delta_tune.data.stored_images import DecodedImages, Images, pack_files

MODEL, IMAGE_SIZE, CLASSES = "mobilenetv3_small_050", 224, 10
BASES, WIDTH, HEIGHT = 40, 320, 256
QUALITY = 97
MEMORY = 64 * 10**6
"""What the images' files may take in the process with the limit."""
BATCH, ROUNDS = 64, 3


def base_photos() -> list[bytes]:
    """JPEG files of noise of several sizes, which compresses about as photos do."""
    rng, found = np.random.default_rng(0), []
    for _ in range(BASES):
        pixels = np.zeros((HEIGHT, WIDTH, 3))
        for cell, weight in ((64, 0.4), (16, 0.2), (4, 0.2), (1, 0.2)):
            coarse = Image.fromarray(rng.integers(0, 256, (HEIGHT // cell, WIDTH // cell, 3), dtype=np.uint8)).resize(
                (WIDTH, HEIGHT), Image.Resampling.BICUBIC
            )
            pixels += weight * np.asarray(coarse)
        file = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
        found.append(file.getvalue())
    return found


def photos(size: int) -> Iterator[tuple[str, str, bytes]]:
    """Class, name and content of different photos of so many bytes together."""
    bases, number, written = base_photos(), 0, 0
    while written < size:
        base = bases[number % BASES]
        content = base[:2] + b"\xff\xfe\x00\x0a" + number.to_bytes(8, "big") + base[2:]  # a comment
        yield f"class-{number % CLASSES}", f"{number:08}.jpg", content
        written += len(content)
        number += 1


def make_data(folder: Path, size: int, kind: str) -> int:
    """Write photos; return how many."""
    count, rows = 0, []

    def flush() -> None:
        table = pa.table({"image": [row[2] for row in rows], "label": [row[0] for row in rows]})
        pq.write_table(table, folder / f"train-{count:08}.parquet", row_group_size=200, compression="none")
        rows.clear()

    for label in range(CLASSES if kind == "folder" else 0):
        (folder / f"class-{label}").mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    for label, name, content in photos(size):
        count += 1
        if kind == "folder":
            (folder / label / name).write_bytes(content)
            continue
        rows.append((label, name, content))
        if len(rows) == 1000:
            flush()
    if rows:
        flush()
    return count


def private_memory() -> int:
    """Bytes of this process that no other shares and no file backs up."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    found = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return found["Private_Dirty"] + found["Private_Clean"]


@contextmanager
def watched() -> Iterator[Callable[[], int]]:
    """Yields a function that returns the largest private memory so far, looked at ten times a second."""
    most, over = [private_memory()], threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            most[0] = max(most[0], private_memory())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield lambda: most[0]
    over.set()
    thread.join()


def limit_growth(limit: int) -> None:
    """Let this process allocate only so much more than its libraries did."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    data = int(status["VmData"].split()[0]) * 1024
    most = data + limit
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def drop_page_cache(folder: Path) -> None:
    """Have the system forget what it has read of all files of a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            number = os.open(file, os.O_RDONLY)
            os.fsync(number)
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(number)


def read_rates(dataset: Dataset, preprocessing: Preprocessing, places: Sequence[Path], sample: int) -> dict[str, float]:
    """Images a second in batches in random order, the best of three rounds of all ways in turn.

    Args:
        dataset: packed on disk, with room in memory for `sample` of its files.
        preprocessing: of its images.
        places: folders of data and packs.
        sample: how many images are read.
    """
    images, order = dataset.train.images, np.random.default_rng(1).permutation(len(dataset.train))[:sample]
    assert isinstance(images, PackedImages)
    origin = images.origin
    in_memory = as_encoded(pack_files(origin.read(order)), preprocessing)
    decoded = DecodedImages(in_memory.batch(np.arange(len(order))))
    ways: dict[str, tuple[Images, np.ndarray]] = {
        "packed": (images, order),
        "encoded": (in_memory, np.arange(len(order))),
        "decoded": (decoded, np.arange(len(order))),
    }
    if Path(dataset.train.names[0]).exists():
        in_place = dataclasses.replace(origin, in_packs=np.zeros(len(origin.rows), dtype=bool))
        ways["files"] = PackedImages(in_place), order
    found: dict[str, float] = {}
    for _ in range(ROUNDS):
        for cold in (True, False):
            for way, (source, rows) in ways.items():
                if cold and way in ("encoded", "decoded"):
                    continue
                for place in places if cold else ():
                    drop_page_cache(place)
                began = time.perf_counter()
                for start in range(0, len(rows), BATCH):
                    source.batch(rows[start : start + BATCH])
                name = f"read_{way}{'_cold' if cold else ''}"
                found[name] = max(found.get(name, 0.0), len(rows) / (time.perf_counter() - began))
    return found


def child(way: str, data: Path, scratch: Path, weights: Path, limit: int, sample: int) -> dict[str, Any]:
    """Load, read and train in this process."""
    threading.stack_size(2**20)
    from delta_tune.data.resampling import pool_train_val
    from delta_tune.training.task import prepare
    from delta_tune.training.trial import run_trial

    options: dict[str, Any] = {"memory_limit": MEMORY, "scratch": str(scratch)}
    if way == "packed":
        limit_growth(limit)
    else:  # what is packed there need not be decoded to be checked
        options |= {"memory_limit": sum(file.stat().st_size for file in data.rglob("*") if file.is_file()) * 11 // 10}
    model: dict[str, Any] = {"model": f"timm:{MODEL}", "weights": str(weights), "image_size": IMAGE_SIZE}
    with watched() as most:
        began = time.perf_counter()
        task = prepare(data, **model, **options)
        figures: dict[str, Any] = {"load_seconds": time.perf_counter() - began, "notes": task.dataset.notes}
        train = task.dataset.train
        count, figures["kind"] = len(train) + len(task.dataset.val), type(train.images).__name__
        figures |= {"images": count, "load_rate": count / figures["load_seconds"], "private_load": most()}
        if way == "packed":
            began = time.perf_counter()
            prepare(data, **model, **options)
            figures["load_again_rate"] = count / (time.perf_counter() - began)
            figures["pack"] = sum(file.stat().st_size for file in scratch.rglob("*.images"))
            figures["index"] = sum(file.stat().st_size for file in scratch.rglob("*.index"))
            buffers: list[pickle.PickleBuffer] = []
            stream = pickle.dumps(task.dataset, protocol=5, buffer_callback=buffers.append)
            figures["handle"] = (len(stream) + sum(buffer.raw().nbytes for buffer in buffers)) / count
            figures |= read_rates(task.dataset, task.backbone.preprocessing, (data, scratch), sample // 4)
        pool, drawn = pool_train_val(task.dataset), np.random.default_rng(2).permutation(count)[:sample]
        parts: dict[str, Any] = {"train": pool.split(drawn[sample // 5 :]), "val": pool.split(drawn[: sample // 5])}
        small = dataclasses.replace(task, dataset=dataclasses.replace(task.dataset, **parts), cache=None)
        config = TrialConfig(regularizer="l2", head_start="random", lr=0.01, batch_size=8, max_epochs=1)
        result = run_trial(small, config)
        assert result.model_state is not None, "it is not saved"
        row = result.epochs[0]
        figures["train"] = len(small.dataset.train) / row["seconds"]
        figures["trial"] = [row["train_loss"], row["val_loss"]]
        state = b"".join(value.numpy().tobytes() for value in result.model_state.values())
        figures["state"] = hashlib.sha256(state).hexdigest()
        figures["private"] = most()
    return figures


def run_child(way: str, arguments: list[str]) -> dict[str, Any]:
    """The figures of a process of its own."""
    environment = os.environ | {"MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, __file__, "--child", way, *arguments], stdout=subprocess.PIPE, check=True, env=environment
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gigabytes", type=float, default=5.0, help="of photos")
    parser.add_argument("--limit", default="1GB", help="memory of the process that reads from disk")
    parser.add_argument("--kind", choices=("folder", "parquet"), default="folder")
    parser.add_argument("--sample", type=int, default=4000, help="images that are read in random order, and trained on")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--quick", action="store_true", help="0.1 GB and 400 images")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    parser.add_argument("--child", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, data, scratch, weights, limit, sample = options.child
        print(json.dumps(child(way, Path(data), Path(scratch), Path(weights), int(limit), int(sample))))
        return
    if options.quick:
        options.gigabytes, options.sample = 0.1, 400
    with tempfile.TemporaryDirectory(prefix="large-data-", dir=options.folder) as temporary:
        root = Path(temporary)
        began = time.perf_counter()
        made = make_data(root / "data", int(options.gigabytes * 10**9), options.kind)
        print(f"{made:,} photos made in {time.perf_counter() - began:.0f} s", flush=True)
        weights = root / "weights.safetensors"
        make = (
            "import sys, timm, torch, safetensors.torch as s; torch.manual_seed(0); "
            "s.save_file(timm.create_model(sys.argv[1]).state_dict(), sys.argv[2])"
        )
        subprocess.run([sys.executable, "-c", make, MODEL, str(weights)], check=True)
        limit = str(parse_bytes(options.limit, "limit"))
        arguments = [str(root / "data"), str(root / "scratch"), str(weights), limit, str(options.sample)]
        found: dict[str, Any] = {"made": made, "kind": options.kind, "gigabytes": options.gigabytes}
        for way in ("packed", "encoded"):
            found[way] = figures = run_child(way, arguments)
            print(f"{way} ({figures['kind']}, {figures['images']:,} images)")
            for note in figures["notes"]:
                print(f"    {note}")
            for name, value in figures.items():
                if name.startswith(("private", "pack", "index")):
                    print(f"  {name:16} {format_bytes(value)}")
                elif isinstance(value, float):
                    print(f"  {name:16} {value:.1f}")
            sys.stdout.flush()
        same = all(found["packed"][name] == found["encoded"][name] for name in ("trial", "state"))
        print(f"The trial is {'the same bit for bit' if same else 'ANOTHER'} from disk and from memory.")
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n")
        if not same or found["packed"]["private"] > int(limit):
            sys.exit(1)


if __name__ == "__main__":
    main()
