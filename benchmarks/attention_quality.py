"""Attention weights as good as the reference's: how many images, how much time.

Quality is the correlation of a scheme's W with the W of a disjoint half of all training images, both with the same
probe head, mean over seeds: Pearson's, and in brackets Spearman's. Schemes draw from the other half:

    reference      128 images at random, every channel (timed with the loop that builds graphs, and without)
    all            every image of the half
    random, drawn  a first round's number of images, at random or as studies draw them: what the drawing is worth
    adaptive       what studies do: images drawn by surprise, in rounds, each layer until it is reliable
    first_order    the gradient estimate on every image of the half

Times are of the ablations alone; features and probe head are the same for all. The loops are timed on some forwards of
each layer between the runs of `adaptive`, and scaled.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from ablation_speed import BATCH, LAYERS, PIXELS, loop, seconds
from development_data import DATA, WEIGHTS
from torch import Tensor

from delta_tune.attention.channel_losses import first_order_losses_per_image
from delta_tune.attention.measurement import FIRST_ROUND, ProbeJob, measure_layers, population_mean
from delta_tune.attention.probe_head import fit_probe_head, measure_features
from delta_tune.attention.probe_sample import ProbeImages, error_norm
from delta_tune.attention.weights import attention_weights, correlation, rank_correlation
from delta_tune.data.batches import evaluation_batches
from delta_tune.training.task import Task, prepare

REFERENCE_IMAGES = 128
NETS = {
    "mobilenet_v2": ("mobilenet_v2", str(WEIGHTS / "mobilenet_v2.pth")),
    "tf_efficientnet_lite0": ("timm:tf_efficientnet_lite0", "demo"),
}
CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class QualityRow:
    """A scheme on a net; times in seconds, `images` per layer, `quality` per layer."""

    net: str
    scheme: str
    images: list[float]
    time: float
    quality: list[float]
    rank_quality: list[float]

    def line(self, graph: float, no_grad: float) -> str:
        quality = "  ".join(f"{q:.3f} ({r:.3f})" for q, r in zip(self.quality, self.rank_quality, strict=True))
        mean = f"{np.mean(self.quality):.3f} ({np.mean(self.rank_quality):.3f})"
        images = " ".join(f"{n:4.0f}" for n in self.images)
        speed = f"{graph / self.time:7.1f}x {no_grad / self.time:7.1f}x"
        return f"{self.net:22s}{self.scheme:20s}{images:>20s} {self.time:9.1f} {speed}   {mean}   {quality}"


HEADER = (
    f"{'net':22s}{'scheme':20s}{'images by layer':>20s} {'seconds':>9s} {'vs graph':>8s} {'vs no_grad':>8s}"
    f"   {'mean':15s} by layer"
)


def measure(name: str, *, quick: bool) -> tuple[list[QualityRow], list[str]]:
    """The rows of a net, and their lines."""
    model, weights = NETS[name]
    pixels = 65 if quick else PIXELS[name]
    data = DATA / "flowers17"
    task = prepare(data, model, weights, image_size=pixels, val_fraction=0.02, train_per_class=17 if quick else None)
    layers, train = LAYERS[name], task.dataset.train
    labels = torch.tensor(train.labels)
    features, _ = measure_features(task.backbone, train, (), CPU)
    head, logits = fit_probe_head(task.backbone, features, train.labels, len(task.dataset.classes), 0, CPU)
    scores = error_norm(logits, labels)
    print(f"{name} at {pixels} px, {len(labels)} photos of Flowers-17, half of them to draw from", flush=True)

    everything = prober(task, head, np.arange(len(labels)), layers).on(CPU)
    start = time.perf_counter()
    exact = everything.losses(range(len(labels)), layers)
    all_seconds = (time.perf_counter() - start) / 2
    images = torch.cat(list(evaluation_batches(train, task.backbone.preprocessing, CPU)))
    start = time.perf_counter()
    first_order = first_order_losses_per_image(everything.model, images, labels, layers)
    first_order_seconds = (time.perf_counter() - start) / 2

    schemes = ("reference", "all", "random", "drawn", "adaptive", "first_order")
    qualities: dict[str, list[list[tuple[float, float]]]] = {scheme: [] for scheme in schemes}
    counts, times, graph, no_grad = [], [], [], []
    for seed in range(3 if quick else 5):
        order = np.random.default_rng(seed).permutation(len(labels))
        ours, theirs = order[: len(order) // 2], order[len(order) // 2 :]
        for layer in layers:
            # As people call a network: with images in torch's default memory format
            arguments = (everything.model, images[:BATCH].contiguous(), labels[:BATCH], layer, 0)
            everything.model.requires_grad_(True)
            graph.append(seconds(partial(loop, *arguments)))
            everything.model.requires_grad_(False)
            with torch.no_grad():
                no_grad.append(seconds(partial(loop, *arguments)))
        drawn = ProbeImages.draw(train.labels[ours], scores[ours], seed)
        given = prober(task, head, ours[drawn.order], layers)
        start = time.perf_counter()
        rounds = measure_layers(drawn, layers, given.on(CPU).losses, seed=seed)
        adaptive = {layer: measured for done in rounds for layer, measured in done.items()}
        times.append(time.perf_counter() - start)
        counts.append([adaptive[layer].images for layer in layers])
        first = drawn.order[:FIRST_ROUND]
        weights = torch.from_numpy(drawn.weights(FIRST_ROUND))
        found = {
            "random": {layer: exact[layer][ours[:FIRST_ROUND]].double().mean(0) for layer in layers},
            "drawn": {layer: population_mean(exact[layer][ours[first]], weights, len(ours)) for layer in layers},
            "reference": {layer: exact[layer][ours[:REFERENCE_IMAGES]].double().mean(0) for layer in layers},
            "all": {layer: exact[layer][ours].double().mean(0) for layer in layers},
            "adaptive": {layer: torch.from_numpy(adaptive[layer].losses) for layer in layers},
            "first_order": {layer: first_order[layer][ours].double().mean(0) for layer in layers},
        }
        for scheme, losses in found.items():
            qualities[scheme].append(
                [agreement(losses[layer], exact[layer][theirs].double().mean(0)) for layer in layers]
            )

    forwards = (sum(exact[layer].shape[1] for layer in layers) + 1) * REFERENCE_IMAGES / BATCH
    loops = {"graph": forwards * statistics.median(graph), "no_grad": forwards * statistics.median(no_grad)}
    half = len(labels) / 2
    rows = [
        row(name, "reference, graph", [REFERENCE_IMAGES] * len(layers), loops["graph"], qualities["reference"]),
        row(name, "reference, no_grad", [REFERENCE_IMAGES] * len(layers), loops["no_grad"], qualities["reference"]),
        row(name, "all", [half] * len(layers), all_seconds, qualities["all"]),
        row(name, "random", [FIRST_ROUND] * len(layers), all_seconds * FIRST_ROUND / half, qualities["random"]),
        row(name, "drawn", [FIRST_ROUND] * len(layers), all_seconds * FIRST_ROUND / half, qualities["drawn"]),
        row(name, "adaptive", list(np.mean(counts, 0)), statistics.mean(times), qualities["adaptive"]),
        row(name, "first_order", [half] * len(layers), first_order_seconds, qualities["first_order"]),
    ]
    return rows, [each.line(loops["graph"], loops["no_grad"]) for each in rows]


def prober(task: Task, head: dict[str, np.ndarray], indices: np.ndarray, layers: tuple[str, ...]) -> ProbeJob:
    train = task.dataset.train
    return ProbeJob(
        backbone=task.backbone,
        head=head,
        num_classes=len(task.dataset.classes),
        pixels=train.images.batch(indices),
        labels=train.labels[indices],
        layers=layers,
        estimator="exact",
    )


def agreement(losses: Tensor, others: Tensor) -> tuple[float, float]:
    weights = attention_weights(losses.double()), attention_weights(others.double())
    return correlation(*weights), rank_correlation(*weights)


def row(
    net: str, scheme: str, images: list[float], taken: float, qualities: list[list[tuple[float, float]]]
) -> QualityRow:
    mean = np.mean(qualities, 0)
    return QualityRow(net, scheme, [float(n) for n in images], taken, mean[:, 0].tolist(), mean[:, 1].tolist())
