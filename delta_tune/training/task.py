"""What every trial of a study shares: the decoded data, the frozen source and what was measured on it, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from delta_tune.attention.layer_attention import LayerAttention, from_bytes, reliability_messages, to_bytes
from delta_tune.attention.measurement import (
    MAX_PROBE_IMAGES,
    ProbeJob,
    Runner,
    add_first_order_agreement,
    in_this_process,
    measure_layers,
)
from delta_tune.attention.probe_head import fit_probe_head, measure_features
from delta_tune.attention.probe_sample import ProbeImages, error_norm
from delta_tune.attention.weights import attention_weights
from delta_tune.config import AttentionEstimator, TrialConfig
from delta_tune.data.dataset import Dataset, load_dataset
from delta_tune.filesystem.cache import Cache, content_key
from delta_tune.models.backbones import Backbone, build_source, load_backbone, resolve_layers
from delta_tune.models.fusion import fold_batch_norms, fuse_activations
from delta_tune.training.regularizers import channel_factors

SOURCE_RECIPE = "head inputs and mean squares of un-augmented images; 2"
PROBE_RECIPE = "head: L-BFGS, penalty held out; images: drawn by surprise in rounds of 56 and half as many again; 4"


@dataclass(kw_only=True)
class Task:
    """Data and source of a study. Plain arrays throughout, so Ray shares it without copies.

    What a configuration needs beyond them is measured at its first use, or ahead for all by `measure`.
    """

    dataset: Dataset = field(repr=False)
    backbone: Backbone = field(repr=False)
    seed: int = 0
    cache: Cache | None = None
    """Where what is measured is kept, under the key of its content, and found again by later studies."""
    features: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Split → the frozen source's head inputs of its un-augmented images, (N, D) or (N, C, h, w)."""
    mean_squares: dict[str, float] = field(default_factory=dict)
    """Layer → mean FM_s² over un-augmented training images."""
    attention: dict[str, dict[str, LayerAttention]] = field(default_factory=dict, repr=False)
    """Estimator → layer → what was measured."""
    _sources: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)

    def __getstate__(self) -> dict[str, Any]:
        """Networks are built where they are used: only arrays travel."""
        return self.__dict__ | {"_sources": {}}

    def source_model(self, device: torch.device, layers: tuple[str, ...]) -> nn.Module:
        """The frozen source in eval mode, for the outputs of `layers`, built once in this process.

        Its batch norms are folded into the convolutions, those of `layers` aside, and on CPUs the activations fused.
        """
        key = f"{device} {layers}"
        if key not in self._sources:
            source = build_source(self.backbone)
            fold_batch_norms(source, layers)
            if device.type == "cpu":
                fuse_activations(source, layers)
            self._sources[key] = source.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._sources[key]

    def on(self, dataset: Dataset) -> Task:
        """The same source and cache with other data, for which nothing is measured yet."""
        return Task(dataset=dataset, backbone=self.backbone, seed=self.seed, cache=self.cache)

    def forget_networks(self) -> None:
        """Drop what `source_model` built."""
        self._sources.clear()

    def measure(
        self,
        configs: Iterable[TrialConfig],
        device: torch.device | str = "cpu",
        say: Callable[[str], None] = lambda _: None,
        runner: Runner = in_this_process,
    ) -> None:
        """Measure what these configurations need and what is not there yet.

        Args:
            configs: configurations of any methods.
            device: where to compute.
            say: told in a sentence what is about to be computed, or was found.
            runner: computes the ablation losses.
        """
        device = torch.device(device)
        configs = list(configs)
        delta = [c for c in configs if c.uses_behavior]
        relative = [c for c in delta if c.behavior_scale == "relative"]
        layers = {layer for c in relative for layer in resolve_layers(self.backbone, c.layers)}
        if layers - set(self.mean_squares):
            self._measure_source("train", tuple(sorted(layers)), device, say)
        if any(c.regularizer == "l2_fe" for c in configs):
            for split in ("train", "val"):
                if split not in self.features:
                    self._measure_source(split, (), device, say)
        for estimator in sorted({c.attention_estimator for c in delta if c.regularizer == "delta"}):
            wanted = {
                layer
                for c in delta
                if c.regularizer == "delta" and c.attention_estimator == estimator
                for layer in resolve_layers(self.backbone, c.layers)
            }
            known = self.attention.setdefault(estimator, {})
            if wanted - set(known):
                missing = resolve_layers(self.backbone, tuple(sorted(wanted - set(known))))
                known |= self._measure_attention(estimator, missing, device, say, runner)

    def channel_factors(self, config: TrialConfig, device: torch.device) -> dict[str, Tensor]:
        """Layer → factor of each channel in the behaviour term of a delta configuration, float32 (C,)."""
        self.measure([config], device)
        factors = {}
        for layer in resolve_layers(self.backbone, config.layers):
            if config.regularizer == "delta":
                losses = torch.tensor(self.attention[config.attention_estimator][layer].losses)
                weights = attention_weights(losses, config.attention_temperature)
            else:
                channels = self.backbone.channels[layer]
                weights = torch.full((channels,), 1 / channels)
            mean_square = self.mean_squares[layer] if config.behavior_scale == "relative" else None
            factors[layer] = channel_factors(weights, mean_square).to(device)
        return factors

    def attention_key(self, estimator: AttentionEstimator, layer: str) -> str:
        """Hex key of everything that a layer's losses depend on: weights, data and split, probe recipe, seed."""
        content = [self.backbone.fingerprint, self.dataset.fingerprint, estimator, layer]
        recipe = [PROBE_RECIPE, str(MAX_PROBE_IMAGES), str(self.seed)]
        return content_key(content + recipe)

    def _measure_source(
        self, split: str, layers: tuple[str, ...], device: torch.device, say: Callable[[str], None]
    ) -> None:
        """Head inputs of a split, and the mean squares of these layers' maps, which are the training split's."""
        name = content_key([self.backbone.fingerprint, self.dataset.fingerprint, split, SOURCE_RECIPE]) + ".safetensors"
        kept: dict[str, np.ndarray] = {}
        if self.cache is not None and (content := self.cache.read(name)):
            try:
                kept = safetensors.numpy.load(content)
            except SafetensorError as error:
                say(f"Source: {self.cache.path(name)} is damaged ({error}) and measured again.")
        wanted = {f"mean_square/{layer}" for layer in layers}
        if not wanted | {"features"} <= set(kept):
            say(f"Source: one pass over the {len(self.dataset.for_name(split))} un-augmented {split} images.")
            features, mean_squares = measure_features(self.backbone, self.dataset.for_name(split), layers, device)
            kept |= {f"mean_square/{layer}": np.array(value) for layer, value in mean_squares.items()}
            kept["features"] = features
            self._keep(name, safetensors.numpy.save(kept), say)
        self.features[split] = kept["features"]
        self.mean_squares |= {layer: float(kept[f"mean_square/{layer}"]) for layer in layers}

    def _measure_attention(
        self,
        estimator: AttentionEstimator,
        layers: tuple[str, ...],
        device: torch.device,
        say: Callable[[str], None],
        runner: Runner,
    ) -> dict[str, LayerAttention]:
        found = self._kept(estimator, layers, say)
        missing = tuple(layer for layer in layers if layer not in found)
        if missing:
            channels = sum(self.backbone.channels[layer] for layer in missing)
            say(f"Attention: {estimator} losses of {channels} channels in {len(missing)} layers.")
            measured = self._probe(estimator, missing, device, say, runner)
            found |= measured
            for layer, each in measured.items():
                self._keep(f"{self.attention_key(estimator, layer)}.parquet", to_bytes(layer, each), say)
        for sentence in reliability_messages({layer: found[layer] for layer in layers}):
            say(sentence)
        return found

    def _kept(
        self, estimator: AttentionEstimator, layers: tuple[str, ...], say: Callable[[str], None]
    ) -> dict[str, LayerAttention]:
        found: dict[str, LayerAttention] = {}
        if self.cache is None:
            return found
        for layer in layers:
            name = f"{self.attention_key(estimator, layer)}.parquet"
            try:
                if content := self.cache.read(name):
                    found[layer] = from_bytes(content)
            except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
                say(f"Attention: {self.cache.path(name)} is damaged ({error}) and computed again.")
        if found:
            say(f"Attention: {estimator} losses of {len(found)} layers found in {self.cache.location}.")
        return found

    def _keep(self, name: str, content: bytes, say: Callable[[str], None]) -> None:
        if self.cache is None:
            return
        try:
            self.cache.write(name, content)
        except OSError as error:  # the study has what it needs; only later ones will compute it again
            say(f"Cache: {self.cache.path(name)} cannot be written ({error}); this study goes on without.")

    def _probe(
        self,
        estimator: AttentionEstimator,
        layers: tuple[str, ...],
        device: torch.device,
        say: Callable[[str], None],
        runner: Runner,
    ) -> dict[str, LayerAttention]:
        train, num_classes = self.dataset.train, len(self.dataset.classes)
        if "train" not in self.features:
            self._measure_source("train", (), device, say)
        head, logits = fit_probe_head(
            self.backbone, self.features["train"], train.labels, num_classes, self.seed, device
        )
        images = ProbeImages.draw(train.labels, error_norm(logits, torch.tensor(train.labels)), self.seed)
        first = images.order[:MAX_PROBE_IMAGES]
        prober = ProbeJob(
            backbone=self.backbone,
            head=head,
            num_classes=num_classes,
            pixels=train.images.batch(first),
            labels=train.labels[first],
            layers=layers,
            estimator=estimator,
        )
        with runner(prober, device, say) as ablate:
            measured = measure_layers(images, layers, ablate, seed=self.seed, estimator=estimator)
        if estimator == "exact":
            measured = add_first_order_agreement(prober.on(device), images, measured)
        return measured


def prepare(
    data: str | Path = "demo",
    model: str | None = None,
    weights: str | None = None,
    *,
    image_size: int | None = None,
    seed: int = 0,
    cache: str | Path | None = None,
    **data_options: Any,
) -> Task:
    """Decode the data and load the source.

    Args:
        data: image folder, Parquet file or folder, `torchvision:NAME` or `demo`.
        model: `NAME` of torchvision.models or `timm:NAME`; None is the demo's backbone.
        weights: `default`, a local `.pth` or `.safetensors`, or `demo`.
        image_size: square input in pixels; None is the weights' own.
        seed: of splits, probe head and probe images.
        cache: folder, or an address such as s3://bucket/folder, where studies share what they measure.
        **data_options: see `delta_tune.data.load_dataset`.

    Raises:
        UserError: data, model or weights that cannot be used.
    """
    shared = None if cache is None else Cache(cache)
    backbone = load_backbone(model, weights, image_size)
    dataset = load_dataset(data, preprocessing=backbone.preprocessing, seed=seed, **data_options)
    return Task(dataset=dataset, backbone=backbone, seed=seed, cache=shared)
