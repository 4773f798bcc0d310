"""Does screening find the backbone that is best once it is tuned? Scores before training against tuned accuracy.

    python benchmarks/screening.py --record [--sets SET …] [--backbones NAME …] [--quick]
    python benchmarks/screening.py

`--record` tunes: each of four networks on each of four sets of photos at 96 pixels, with a few starting points of the
default space for all their epochs. The rule, fixed before any test accuracy was seen: the configuration with the best
accuracy on val is the pair's, of equals the one with the lower loss on val, and only its network is scored on test.
A row is appended to `screening.jsonl` after each pair, and what is there is not run again, so it may be stopped.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import torchvision
from anytime_parts.tasks import DIGITS, Files, drawn, files_in, link_splits, write_digits
from development_data import DATA, MISSING, WEIGHTS

import delta_tune
from delta_tune.config import TrialConfig
from delta_tune.models.network_state import build_network
from delta_tune.report.predictions import split_logits
from delta_tune.training.checkpoint import last_weights
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

SETS = {"flowers17": (18, 8), "trashnet96": (50, 25), "clothing": (30, 15), "ants_bees": (90, 30)}
"""Images a class of train and of val, as far as there are."""
BACKBONES = {
    "mobilenet_v2": ("mobilenet_v2", str(WEIGHTS / "mobilenet_v2.pth")),
    "efficientnet_lite0": ("timm:tf_efficientnet_lite0", "demo"),
    "squeezenet1_1": ("squeezenet1_1", str(WEIGHTS / "squeezenet1_1.pth")),
    "random_resnet18": ("resnet18", ""),
}
"""`--model` and `--weights`; the last one's are drawn."""
IMAGE_SIZE, SPLIT_SEED, TEST_FRACTION = 96, 0, 0.25
CONFIGURATIONS: tuple[dict[str, Any], ...] = (
    {"regularizer": "l2", "lr": 0.001, "batch_size": 8},
    {"regularizer": "l2", "lr": 0.002, "batch_size": 16},
    {"regularizer": "l2", "lr": 0.0005, "batch_size": 8},
)
"""Starting points of `search_spaces/delta.py` without a source beside the target."""
FILE = Path(__file__).with_name("screening.jsonl")


def photos_of(name: str, work: Path) -> dict[str, Files]:
    """The files of train, val and test; test does not depend on the number of the others."""
    if name == DIGITS:
        write_digits(work / "digits")
        found, train, val = {"train": files_in(work / "digits")}, 6, 6
    else:
        train, val = SETS[name]
        folders = {"train": DATA / name / "train", "val": DATA / name / "validation", "test": DATA / name / "test"}
        if name == "ants_bees":
            folders = {"train": DATA / name / "train", "test": DATA / name / "val"}
        found = {split: files_in(path) for split, path in folders.items() if path.is_dir()}
        found = found or {"train": files_in(DATA / name)}
    if "test" not in found:
        found["test"], found["train"] = drawn(found["train"], TEST_FRACTION, random.Random(0))
    rng = random.Random(SPLIT_SEED)
    if "val" not in found:
        found["val"], found["train"] = drawn(found["train"], val, rng)
    else:
        found["val"], _ = drawn(found["val"], val, rng)
    found["train"], _ = drawn(found["train"], train, rng)
    return found


def backbone_of(name: str, work: Path) -> tuple[str, str]:
    """`--model` and `--weights`."""
    model, weights = BACKBONES[name]
    if not weights:
        file = work / f"{name}.pth"
        torch.manual_seed(0)
        torch.save(torchvision.models.resnet18().state_dict(), file)
        weights = str(file)
    return model, weights


@functools.cache
def folder_of(name: str, work: Path) -> Path:
    """The set's photos as a folder with splits, once per process."""
    place = Path(tempfile.mkdtemp(dir=work))
    link_splits(photos_of(name, place), place / "photos")
    return place / "photos"


def task_of(name: str, backbone: str, work: Path) -> Task:
    """A set and a network; nothing that is measured is kept."""
    model, weights = backbone_of(backbone, work)
    return delta_tune.prepare(str(folder_of(name, work)), model, weights, image_size=IMAGE_SIZE)


def tuned(name: str, backbone: str, work: Path, quick: bool) -> dict[str, Any]:
    """The row of a pair: accuracy on val of each configuration, and on test of the best one by val."""
    task, runs, logits = task_of(name, backbone, work), [], []
    test = task.dataset.for_name("test")
    for settings in CONFIGURATIONS[: 2 if quick else None]:
        config = TrialConfig(**settings) if not quick else TrialConfig(**settings, max_epochs=1)
        task.measurements.measure([config])
        began = time.process_time()
        with tempfile.TemporaryDirectory(dir=work) as folder:
            result = run_trial(task, config, checkpoint=Path(folder))
            seconds = time.process_time() - began
            if result.state != "completed":
                runs.append({"settings": settings, "state": result.state, "seconds": seconds})
                continue
            network = build_network(task.backbone, safetensors.torch.load_file(last_weights(Path(folder))))
        last = result.epochs[-1]
        scores = {"val_accuracy": last["val_accuracy"], "val_loss": last["val_loss"]}
        runs.append({"settings": settings, "state": result.state, **scores, "seconds": seconds})
        logits.append((scores["val_accuracy"], -scores["val_loss"], len(runs) - 1, network))
    row: dict[str, Any] = {"set": name, "backbone": backbone, "runs": runs}
    row["images"] = {split: len(task.dataset.for_name(split)) for split in ("train", "val", "test")}
    row["classes"] = len(task.dataset.classes)
    if logits:
        *_, chosen, network = max(logits, key=lambda each: each[:2])
        answers, labels = split_logits(task, test, network), torch.as_tensor(test.labels).long()
        row["chosen"] = chosen
        row["test_accuracy"] = 100 * float((answers.argmax(1) == labels).float().mean())
        row["test_loss"] = float(torch.nn.functional.cross_entropy(answers, labels))
    return row


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def record(file: Path, sets: list[str], backbones: list[str], quick: bool, work: Path) -> None:
    """Append the rows that are missing."""
    torch.set_num_threads(1)
    known = {(row["set"], row["backbone"]) for row in read(file)}
    for name in sets:
        for backbone in backbones:
            if (name, backbone) in known:
                continue
            began = time.monotonic()
            row = tuned(name, backbone, work, quick)
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            told = " ".join(f"{run.get('val_accuracy', 0):.3f}/{run['seconds']:.0f}s" for run in row["runs"])
            where = f"{time.strftime('%H:%M:%S')} {name:11s} {backbone:19s}"
            print(f"{where} {told} in {time.monotonic() - began:.0f} s, load {os.getloadavg()[0]:.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="tune the pairs that are not recorded")
    parser.add_argument("--quick", action="store_true", help="digits, two configurations of one epoch, not kept")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=BACKBONES)
    parser.add_argument("--file", type=Path, default=FILE)
    arguments = parser.parse_args()
    if not DATA.exists():
        parser.error(MISSING)
    work = Path(tempfile.mkdtemp(prefix="screening-"))
    file, sets = arguments.file, arguments.sets
    if arguments.quick:
        file, sets = work / "screening.jsonl", [DIGITS]
    if arguments.record:
        record(file, sets, arguments.backbones, arguments.quick, work)


if __name__ == "__main__":
    main()
