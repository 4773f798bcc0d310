"""Which figure tells that an image is unlike anything that the model was trained on: probability, or nearest image?

    python benchmarks/unsure.py [--sets SET …] [--seeds 0 1] [--epochs 6] [--out FILE]

For each set and seed MobileNetV2 is fine-tuned at 96 px (plain L2, learning rate 0.001, batches of 8) on at most 30
photos of each class. Its own test photos, at most 300, are then mixed with as many of each other set, whose pictures
it can only answer wrongly. AUROC of telling its own from foreign ones, 0.5 by chance, of

- `probability`: the calibrated one of the answer, with the temperature of validation;
- `nearest`: the cosine similarity to the nearest training image (`embeddings` of the last layer);
- `fifth`: that to the fifth nearest (Sun et al. 2022, arXiv 2204.06507);
- `both`: the mean of two ranks: of the probability among those of validation, and of the nearest similarity among those
  of the training images to one another (leave-one-out: the typicality).

and, in the rows `mistakes`, of telling the right answers from the wrong ones among the own test photos.

Beside it stands how many of the own and of the foreign images have a typicality below 1 and 5 %.

The rule, fixed before any figure was seen: predict gets a typicality if `nearest` or `both` is better than
`probability` by 0.02 on the mean over the foreign sets and worse on no set's own mean.

About three minutes a set and seed on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from development_data import DATA, MISSING, WEIGHTS
from rich.console import Console
from rich.table import Table

import delta_tune
from delta_tune.config import TrialConfig
from delta_tune.data.resampling import pool_splits
from delta_tune.explanation.similarity import similarities
from delta_tune.explanation.training_images import embed_images
from delta_tune.inference.model import Model, load
from delta_tune.inference.model_folder import save_model
from delta_tune.results.calibration import fit_temperature
from delta_tune.training.checkpoint import save_weights
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

SETS = ("flowers17", "clothing", "trashnet96")
FOREIGN = (*SETS, "ants_bees")
PER_CLASS, MOST = 30, 300
SCORES = ("probability", "nearest", "fifth", "both")
LEVELS = (0.01, 0.05)
"""Of typicality: below it an image is called unlike the training images."""


def auroc(inside: np.ndarray, outside: np.ndarray) -> float:
    """The share of pairs in which the score inside is the higher one; ties count half."""
    higher = (inside[:, None] > outside[None]).mean() + 0.5 * (inside[:, None] == outside[None]).mean()
    return float(higher)


def photos(name: str) -> list[str]:
    """At most `MOST` files of the set, evenly spaced: of its test split where it has one."""
    folder = DATA / name
    folder = next((folder / part for part in ("test", "val") if (folder / part).is_dir()), folder)
    found = sorted(str(file) for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
    return [found[n] for n in np.linspace(0, len(found) - 1, min(MOST, len(found))).round().astype(int)]


def fine_tuned(task: Task, seed: int, epochs: int, folder: Path) -> Model:
    """The model of one run, calibrated on validation."""
    config = TrialConfig(regularizer="l2", lr=0.001, batch_size=8, max_epochs=epochs, seed=seed)
    result = run_trial(task, config)
    assert result.model_state is not None
    save_weights(result.model_state, folder / "run.safetensors")
    save_model(task.backbone, task.dataset.classes, [folder / "run.safetensors"], {}, folder / "best")
    model = load(folder / "best")
    probabilities = np.array([list(p.probabilities.values()) for p in model.predict(list(task.dataset.val.names))])
    model.temperature = fit_temperature(np.log(np.maximum(probabilities, 1e-30)), np.array(task.dataset.val.labels))
    return model


def ranks(values: np.ndarray, among: np.ndarray) -> np.ndarray:
    """The share of `among` that is not above each value."""
    return np.searchsorted(np.sort(among), values, side="right") / len(among)


class Scorer:
    """The four scores of images, of a model and what it was trained on."""

    def __init__(self, model: Model, task: Task) -> None:
        self.model = model
        self.known = embed_images(model, pool_splits([task.dataset.train]))
        self.usual = np.array([p.probability for p in model.predict(list(task.dataset.val.names))])

    def __call__(self, files: Sequence[str]) -> dict[str, np.ndarray]:
        probability = np.array([p.probability for p in self.model.predict(files)])
        ordered = np.sort(similarities(self.known.embeddings, self.model.embed(files)), axis=1)
        nearest = ordered[:, -1]
        both = (ranks(probability, self.usual) + ranks(nearest, self.known.usual)) / 2
        typical = ranks(nearest, self.known.usual)
        return {
            "probability": probability,
            "nearest": nearest,
            "fifth": ordered[:, -5],
            "both": both,
            "typical": typical,
        }


def measure(name: str, seed: int, epochs: int) -> list[dict[str, Any]]:
    """A row for each foreign set, and one for the mistakes."""
    split = {} if (DATA / name / "test").is_dir() else {"test_fraction": 0.3}
    task = delta_tune.prepare(
        DATA / name, "mobilenet_v2", str(WEIGHTS / "mobilenet_v2.pth"), image_size=96, seed=seed,
        train_per_class=PER_CLASS, **split,
    )  # fmt: skip
    test = task.dataset.for_name("test")
    chosen = np.linspace(0, len(test) - 1, min(MOST, len(test))).round().astype(int).tolist()
    own, true = [test.names[n] for n in chosen], [task.dataset.classes[test.labels[n]] for n in chosen]
    with tempfile.TemporaryDirectory() as folder:
        model = fine_tuned(task, seed, epochs, Path(folder))
    score = Scorer(model, task)
    inside = score(own)
    right = np.array([p.label == label for p, label in zip(model.predict(own), true, strict=True)])
    about = {"set": name, "seed": seed, "accuracy": float(right.mean())}
    mistakes = {key: auroc(values[right], values[~right]) for key, values in inside.items() if key in SCORES}
    rows = [about | {"foreign": "mistakes"} | mistakes]
    for other in FOREIGN:
        if other != name:
            outside = score(photos(other))
            below = {
                f"{which} below {level}": float((scores["typical"] < level).mean())
                for level in LEVELS
                for which, scores in (("own", inside), ("foreign", outside))
            }
            rows.append(about | {"foreign": other} | {key: auroc(inside[key], outside[key]) for key in SCORES} | below)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    shares = [f"{which} below {level}" for level in LEVELS for which in ("own", "foreign")]
    table = Table("set", "seed", "accuracy", "against", *SCORES, *shares)
    for row in rows:
        figures = [f"{row[key]:.3f}" for key in SCORES]
        figures += [f"{100 * row[key]:.0f} %" if key in row else "" for key in shares]
        table.add_row(row["set"], str(row["seed"]), f"{100 * row['accuracy']:.1f} %", row["foreign"], *figures)
    console = Console(highlight=False, width=160)
    console.print(table)
    foreign = [row for row in rows if row["foreign"] != "mistakes"]
    wrong = [row for row in rows if row["foreign"] == "mistakes"]
    for title, part in (("foreign", foreign), ("mistakes", wrong)):
        means = "  ".join(f"{key} {np.mean([row[key] for row in part]):.3f}" for key in SCORES)
        console.print(f"mean, {title}: {means}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--out", type=Path, help="JSON lines, a row each")
    given = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(MISSING)
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        for name in given.sets:
            rows += measure(name, seed, given.epochs)
            if given.out:
                given.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    show(rows)


if __name__ == "__main__":
    main()
