"""Does screening find the backbone that is best once it is tuned? Scores before training against tuned accuracy.

    python benchmarks/screening.py --record [--sets SET …] [--backbones NAME …] [--quick]
    python benchmarks/screening.py [--quick]

`--record` tunes: each of four networks on each of four sets of photos at 96 pixels, with a few starting points of the
default space for all their epochs. The rule, fixed before any test accuracy was seen: the configuration with the best
accuracy on val is the pair's, of equals the one with the lower loss on val, and only its network is scored on test.
A row is appended to `screening.jsonl` after each pair, and what is there is not run again, so it may be stopped.

Without it: the scores of the networks on each set (the study's own screening, and four others on the same features),
Kendall's tau with the tuned accuracy, and the regret: by how many points the network of the best score, and the better
one of the two that a study keeps, stay below the best of all on test. The CPU time of the screening stands beside that
of a trial: the mean of the networks' trials of the first configuration.

The rule for choosing the score, fixed before any test accuracy was seen: the cross-validated log-likelihood, unless
another score has both a mean tau that is higher by 0.1 at least and no larger mean regret of its best network. The rule
for keeping a second network is the study's: unless it is clearly less likely. If the mean regret of the kept ones is
above half a point, the second is always kept.
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

import numpy as np
import safetensors.torch
import torch
import torchvision
from anytime_parts.tasks import DIGITS, Files, drawn, files_in, link_splits, write_digits
from development_data import DATA, MISSING, WEIGHTS
from rich.console import Console
from rich.table import Table
from scipy import stats

import delta_tune
from delta_tune.attention.probe_head import measure_features
from delta_tune.config import Candidate, TrialConfig, labels_of
from delta_tune.console.progress import Progress
from delta_tune.console.screening_table import screening_lines
from delta_tune.data.cutting import cut_for_study
from delta_tune.data.training_sample import TrainingSample
from delta_tune.models.network_state import build_network
from delta_tune.report.predictions import split_logits
from delta_tune.results.screened import Screening
from delta_tune.study.screening import Machine, screen
from delta_tune.study.screening_rules import Room
from delta_tune.training.checkpoint import last_weights
from delta_tune.training.task import Task
from delta_tune.training.transferability import head_inputs_as_vectors, predict_folds
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


def log_evidence(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """LogME (arXiv 2102.11005, algorithm 1): log evidence an image of Bayesian linear models, mean over classes."""
    count, dims = features.shape
    u, scales, _ = np.linalg.svd(features, full_matrices=False)
    squares, found = scales**2, []
    for label in range(classes):
        y = (labels == label).astype(np.float64)
        projected = u.T @ y
        inside = projected**2
        outside = max(float(y @ y - inside.sum()), 0.0)
        alpha, beta = 1.0, 1.0
        for _ in range(100):
            t = alpha / beta
            gamma = (squares / (squares + t)).sum()
            m2 = (squares * inside / (squares + t) ** 2).sum()
            residual = ((t / (squares + t)) ** 2 * inside).sum() + outside
            alpha, beta = gamma / max(m2, 1e-12), (count - gamma) / max(residual, 1e-12)
            if abs(alpha / beta - t) <= 1e-3 * t:
                break
        evidence = dims / 2 * np.log(alpha) + count / 2 * np.log(beta) - count / 2 * np.log(2 * np.pi)
        evidence -= beta / 2 * residual + alpha / 2 * m2
        evidence -= (np.log(alpha + beta * squares).sum() + (dims - len(squares)) * np.log(alpha)) / 2
        found.append(evidence / count)
    return float(np.mean(found))


def h_score(features: np.ndarray, labels: np.ndarray) -> float:
    """H-score (arXiv 1905.09319) with the shrunk covariance of Ledoit and Wolf, as arXiv 2110.06893 has it."""
    from sklearn.covariance import ledoit_wolf

    centred = features - features.mean(0)
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    means = np.zeros_like(centred)
    for label in np.unique(labels):
        means[labels == label] = centred[labels == label].mean(0)
    between = (1 - shrinkage) * means.T @ means / len(means)
    return float(np.trace(np.linalg.solve(covariance, between)))


def n_leep(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """N-LEEP (arXiv 2102.08895): the likelihood of the labels given a mixture of Gaussians on the main components."""
    from sklearn.decomposition import PCA
    from sklearn.mixture import GaussianMixture

    reduced = PCA(0.8, random_state=0).fit_transform(features)
    mixture = GaussianMixture(
        min(3 * classes, len(labels) // 4), covariance_type="diag", reg_covar=1e-3, random_state=0
    )
    shares = mixture.fit(reduced).predict_proba(reduced)
    joint = np.stack([shares[labels == label].sum(0) for label in range(classes)])
    given = joint / joint.sum(0, keepdims=True).clip(1e-12)
    return float(np.log((shares @ given.T)[np.arange(len(labels)), labels].clip(1e-12)).mean())


def screened(name: str, backbones: list[str], work: Path) -> tuple[Screening, float]:
    """The study's own screening of a set, and its CPU seconds."""
    cut = cut_for_study(str(folder_of(name, work)))
    candidates = [Candidate(*backbone_of(backbone, work)) for backbone in backbones]
    epochs = TrialConfig().max_epochs
    began = time.process_time()
    found, _ = screen(
        candidates,
        TrainingSample(cut, "auto", None, 0),
        image_size=IMAGE_SIZE,
        channels=3,
        seed=0,
        room=Room(seconds=float("inf"), slots=1, epochs=epochs),
        machine=Machine(device=torch.device("cpu"), threads=1, slots=1),
        suits=lambda label, task: None,
        progress=Progress(verbose=0),
    )
    return found, time.process_time() - began


def scores_of(name: str, backbone: str, work: Path) -> dict[str, float]:
    """The scores of a network on the features of all training images."""
    task = task_of(name, backbone, work)
    train, classes = task.dataset.train, len(task.dataset.classes)
    vectors = head_inputs_as_vectors(measure_features(task.backbone, train, (), torch.device("cpu"))[0])
    labels = np.asarray(train.labels)
    logits = torch.from_numpy(predict_folds(vectors, labels, classes, None, 0))
    return {
        "log-likelihood": -float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels))),
        "accuracy": float((logits.argmax(1).numpy() == labels).mean()),
        "LogME": log_evidence(vectors, labels, classes),
        "H-score": h_score(vectors, labels),
        "N-LEEP": n_leep(vectors, labels, classes),
    }


def tau_of(scores: list[float], accuracies: list[float]) -> float:
    """Kendall's tau-b."""
    return float(stats.kendalltau(scores, accuracies).statistic)


def compare(rows: list[dict[str, Any]], sets: list[str], work: Path) -> None:
    """Print the scores, and how well they foretell the tuned accuracy."""
    torch.set_num_threads(1)
    console, taus = Console(width=160), dict[str, list[float]]()
    lost, lost_of_two = dict[str, list[float]](), dict[str, list[float]]()
    kept_lost, ratios = [], []
    for name in sets:
        of_set = {row["backbone"]: row for row in rows if row["set"] == name}
        found = {backbone: scores_of(name, backbone, work) for backbone in of_set}
        tuned_to = {backbone: row["test_accuracy"] for backbone, row in of_set.items()}
        best, numbers = max(tuned_to.values()), list(found[next(iter(found))])
        table = Table(name, *numbers, "tuned, val", "tuned, test", "trial, s")
        for backbone, row in of_set.items():
            val = max(run.get("val_accuracy", 0.0) for run in row["runs"])
            cells = [*(f"{found[backbone][each]:.3f}" for each in numbers), f"{100 * val:.1f}"]
            table.add_row(backbone, *cells, f"{tuned_to[backbone]:.1f}", f"{row['runs'][0]['seconds']:.0f}")
        for each in numbers:
            order = [found[backbone][each] for backbone in of_set]
            taus.setdefault(each, []).append(tau_of(order, [tuned_to[backbone] for backbone in of_set]))
            ranked = sorted(of_set, key=lambda backbone, each=each: -found[backbone][each])
            lost.setdefault(each, []).append(best - tuned_to[ranked[0]])
            lost_of_two.setdefault(each, []).append(best - max(tuned_to[backbone] for backbone in ranked[:2]))
        table.add_row("tau", *(f"{taus[each][-1]:.2f}" for each in numbers))
        table.add_row("regret", *(f"{lost[each][-1]:.1f}" for each in numbers))
        console.print(table)
        screening, seconds = screened(name, list(of_set), work)
        labels = dict(zip(labels_of([Candidate(*backbone_of(each, work)) for each in of_set]), of_set, strict=True))
        kept = [labels[network.label] for network in screening.kept]
        kept_lost.append(best - max(tuned_to[backbone] for backbone in kept))
        trial = float(np.mean([row["runs"][0]["seconds"] for row in of_set.values()]))
        ratios.append(seconds / trial)
        print("\n".join(screening_lines(screening)))
        print(
            f"kept {' and '.join(kept)}: regret {kept_lost[-1]:.1f}; screening {seconds:.0f} s, a trial {trial:.0f} s"
        )
    for each, values in taus.items():
        regret = f"mean regret of its best {np.mean(lost[each]):.2f}, of its best two {np.mean(lost_of_two[each]):.2f}"
        print(f"{each:15s} mean tau {np.mean(values):+.2f}, {regret} points")
    print(f"kept by the study: mean regret {np.mean(kept_lost):.2f} points; screening {np.mean(ratios):.2f} of a trial")


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
    if arguments.record or arguments.quick:
        record(file, sets, arguments.backbones, arguments.quick, work)
    if not arguments.record:
        compare([row for row in read(file) if row["backbone"] in arguments.backbones], sets, work)


if __name__ == "__main__":
    main()
