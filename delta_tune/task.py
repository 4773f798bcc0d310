"""What every trial of a study shares: the decoded data, the frozen source and what was measured on it, made once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from delta_tune.attention import ablation_losses_per_image, attention_weights, first_order_losses_per_image
from delta_tune.attention_store import describe_reliability, measure_attention, read_attention, write_attention
from delta_tune.config import AttentionEstimator, TrialConfig
from delta_tune.data import Dataset, load_dataset
from delta_tune.models import Backbone, build_source, load_backbone, resolve_layers
from delta_tune.probe import centred_batches, measure_features, probe_model
from delta_tune.regularizers import channel_factors

PROBE_RECIPE = "head: L-BFGS, penalty held out; images: class-balanced, seeded; 2"
MAX_PROBE_IMAGES = 512


@dataclass(kw_only=True)
class Task:
    """Data and source of a study. Plain arrays throughout, so Ray shares it without copies.

    What a configuration needs beyond them is measured at its first use, or ahead for all by `measure`.
    """

    dataset: Dataset = field(repr=False)
    backbone: Backbone = field(repr=False)
    seed: int = 0
    attention_cache: Path | None = None
    """Folder where attention losses are kept under the key of their content and found again by later studies."""
    features: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Split → the frozen source's head inputs of its un-augmented images, (N, D) or (N, C, h, w)."""
    mean_squares: dict[str, float] = field(default_factory=dict)
    """Layer → mean FM_s² over un-augmented training images."""
    attention: dict[str, dict[str, np.ndarray]] = field(default_factory=dict, repr=False)
    """Estimator → layer → ablation losses d, float32 (C,)."""
    attention_files: list[Path] = field(default_factory=list)
    """Where they are kept, if there is a cache."""
    _sources: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Networks are built where they are used: only arrays travel."""
        return self.__dict__ | {"_sources": {}}

    def source_model(self, device: torch.device) -> nn.Module:
        """The frozen source in eval mode, built once in this process."""
        key = str(device)
        if key not in self._sources:
            source = build_source(self.backbone)
            self._sources[key] = source.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._sources[key]

    def measure(
        self,
        configs: Iterable[TrialConfig],
        device: torch.device | str = "cpu",
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Measure what these configurations need and what is not there yet.

        Args:
            configs: configurations of any methods.
            device: where to compute.
            say: told in a sentence what is about to be computed, or was found.
        """
        device = torch.device(device)
        configs = list(configs)
        delta = [c for c in configs if c.uses_behavior]
        relative = [c for c in delta if c.behavior_scale == "relative"]
        layers = {layer for c in relative for layer in resolve_layers(self.backbone, c.layers)}
        if layers - set(self.mean_squares):
            self._measure_source("train", tuple(sorted(layers)), device)
        if any(c.regularizer == "l2_fe" for c in configs):
            for split in ("train", "val"):
                if split not in self.features:
                    self._measure_source(split, (), device)
        for estimator in sorted({c.attention_estimator for c in delta if c.regularizer == "delta"}):
            wanted = {
                layer
                for c in delta
                if c.regularizer == "delta" and c.attention_estimator == estimator
                for layer in resolve_layers(self.backbone, c.layers)
            }
            if wanted - set(self.attention.get(estimator, {})):
                ordered = resolve_layers(self.backbone, tuple(sorted(wanted)))
                self.attention[estimator] = self._attention_losses(estimator, ordered, device, say)

    def channel_factors(self, config: TrialConfig, device: torch.device) -> dict[str, Tensor]:
        """Layer → factor of each channel in the behaviour term of a delta configuration, float32 (C,)."""
        self.measure([config], device)
        factors = {}
        for layer in resolve_layers(self.backbone, config.layers):
            if config.regularizer == "delta":
                losses = torch.tensor(self.attention[config.attention_estimator][layer])
                weights = attention_weights(losses, config.attention_temperature)
            else:
                channels = self.backbone.channels[layer]
                weights = torch.full((channels,), 1 / channels)
            mean_square = self.mean_squares[layer] if config.behavior_scale == "relative" else None
            factors[layer] = channel_factors(weights, mean_square).to(device)
        return factors

    def attention_key(self, estimator: AttentionEstimator, layers: Iterable[str]) -> str:
        """Hex key of everything that the losses depend on: weights, data and split, layers, probe recipe, seed."""
        content = [self.backbone.fingerprint, self.dataset.fingerprint, estimator, *layers]
        recipe = [PROBE_RECIPE, str(MAX_PROBE_IMAGES), str(self.seed)]
        return hashlib.sha256(json.dumps(content + recipe).encode()).hexdigest()[:32]

    def _measure_source(self, split: str, layers: tuple[str, ...], device: torch.device) -> None:
        self.features[split], mean_squares = measure_features(
            self.backbone, self.dataset.for_name(split), layers, device
        )
        self.mean_squares.update(mean_squares)

    def _attention_losses(
        self, estimator: AttentionEstimator, layers: tuple[str, ...], device: torch.device, say: Callable[[str], None]
    ) -> dict[str, np.ndarray]:
        file = None
        if self.attention_cache is not None:
            file = self.attention_cache / f"{self.attention_key(estimator, layers)}.parquet"
            self.attention_files.append(file)
            if file.exists():
                try:
                    found = read_attention(file)
                except (OSError, pa.ArrowInvalid, KeyError) as error:
                    say(f"Attention: {file} is damaged ({error}) and computed again.")
                else:
                    say(f"Attention: {estimator} losses found in {file}.")
                    say(describe_reliability(found))
                    return {layer: measured.losses for layer, measured in found.items()}
        train = self.dataset.train
        chosen = balanced_subset(train.labels, MAX_PROBE_IMAGES, self.seed)
        channels = sum(self.backbone.channels[layer] for layer in layers)
        say(f"Attention: {estimator} losses of {channels} channels in {len(layers)} layers on {len(chosen)} images.")
        if "train" not in self.features:
            self._measure_source("train", (), device)
        model = probe_model(
            self.backbone, self.features["train"], train.labels, len(self.dataset.classes), self.seed, device
        )
        images = torch.cat(list(centred_batches(train, self.backbone.preprocessing, device, chosen)))
        estimate = ablation_losses_per_image if estimator == "exact" else first_order_losses_per_image
        per_image = estimate(model, images, torch.tensor(train.labels[chosen], device=device), layers)
        measured = {layer: measure_attention(per_image[layer], self.seed) for layer in layers}
        say(describe_reliability(measured))
        if file is not None:
            write_attention(file, measured)
        return {layer: each.losses for layer, each in measured.items()}


def prepare(
    data: str | Path = "demo",
    model: str | None = None,
    weights: str | None = None,
    *,
    image_size: int | None = None,
    seed: int = 0,
    attention_cache: Path | None = None,
    **data_options: Any,
) -> Task:
    """Decode the data and load the source.

    Args:
        data: image folder, Parquet file or folder, `torchvision:NAME` or `demo`.
        model: `NAME` of torchvision.models or `timm:NAME`; None is the demo's backbone.
        weights: `default`, a local `.pth` or `.safetensors`, or `demo`.
        image_size: square input in pixels; None is the weights' own.
        seed: of splits, probe head and probe images.
        attention_cache: folder for attention losses, shared by studies.
        **data_options: see `delta_tune.data.load_dataset`.

    Raises:
        UserError: data, model or weights that cannot be used.
    """
    backbone = load_backbone(model, weights, image_size)
    dataset = load_dataset(data, preprocessing=backbone.preprocessing, seed=seed, **data_options)
    return Task(dataset=dataset, backbone=backbone, seed=seed, attention_cache=attention_cache)


def balanced_subset(labels: np.ndarray, limit: int, seed: int) -> np.ndarray:
    """Sorted indices of at most `limit` examples, as many of each class as there are in equal turns, seeded."""
    if len(labels) <= limit:
        return np.arange(len(labels))
    order = np.random.default_rng(seed).permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)  # how many of its class come before it
    for k in np.unique(labels):
        members = order[labels[order] == k]
        turn[members] = np.arange(len(members))
    return np.sort(order[np.argsort(turn[order], kind="stable")][:limit])
