"""What is measured on the frozen source before training: head inputs, mean squares of maps, channel attention."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from delta_tune.attention.layer_attention import LayerAttention, reliability_messages
from delta_tune.attention.measurement import (
    MAX_PROBE_IMAGES,
    ProbeJob,
    add_first_order_agreement,
    measure_layers,
)
from delta_tune.attention.probe_head import FittedHead, SourcePass, fit_probe_head, join_passes, measure_features
from delta_tune.attention.probe_sample import ProbeImages, error_norm
from delta_tune.attention.weights import attention_weights
from delta_tune.config import AttentionEstimator, TrialConfig, UserError
from delta_tune.data.dataset import Dataset
from delta_tune.filesystem.cache import Cache
from delta_tune.models.backbones import Backbone, resolve_layers
from delta_tune.training.co_tuning import learn_relationship
from delta_tune.training.measurement_cache import MeasurementCache
from delta_tune.training.regularizers import channel_factors
from delta_tune.training.workplace import Say, ThisProcess, Workplace, split_parts, split_pieces


def _silent(message: str) -> None:
    pass


@dataclass(kw_only=True)
class Measurements:
    """Measurements of one source on one dataset. Plain arrays, so Ray shares them without copies.

    `measure` fills `features`, `mean_squares` and `attention` with what configurations need. It computes nothing twice:
    what is neither here nor in the cache is computed and written to the cache.
    """

    dataset: Dataset = field(repr=False)
    backbone: Backbone = field(repr=False)
    seed: int
    """Of the probe head and the probe images."""
    probe_images: int = MAX_PROBE_IMAGES
    """At most so many images measure the attention of a layer."""
    cache: Cache | None
    """Where studies share what they measure, in files whose names are keys of all that the content depends on."""
    features: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """Split → the head's inputs for its un-augmented images, float32 (N, D) or (N, C, h, w)."""
    mean_squares: dict[str, float] = field(default_factory=dict)
    """Part of a layer → mean FM_s² over un-augmented training images."""
    head: FittedHead | None = field(default=None, repr=False)
    """A classifier fitted to the features of train."""
    relationship: np.ndarray | None = field(default=None, repr=False)
    """The source classes that go with each target class, p(y_s | y_t), float32 (C_t, C_s)."""
    attention: dict[AttentionEstimator, dict[str, LayerAttention]] = field(default_factory=dict, repr=False)
    """Estimator → layer → its channels' losses and how reliable they are."""

    def measure(
        self,
        configs: Iterable[TrialConfig],
        device: torch.device | str = "cpu",
        say: Say = _silent,
        workplace: Workplace | None = None,
    ) -> None:
        """Measure what these configurations need and what is missing.

        The cache is read and written by this process. Each split's pass and each layer is written once it is there, so
        an interrupt loses only what was under way.

        Args:
            configs: configurations of any methods.
            device: of this process, to compute on if there is no workplace.
            say: called with a sentence about what is computed or was found in the cache.
            workplace: computes what is missing.
        """
        workplace = workplace or ThisProcess(torch.device(device))
        configs = list(configs)
        self.measure_source(configs, say, workplace)
        self.find_attention(configs, say)
        self.keep_attention(self.measure_attention(configs, say, workplace))

    def measure_source(self, configs: Iterable[TrialConfig], say: Say, workplace: Workplace) -> None:
        """Measure all that is missing of what these configurations need, but attention; arguments as of `measure`."""
        configs = list(configs)
        relative = self._layers(c for c in configs if c.uses_behavior and c.behavior_scale == "relative")
        if set(self.backbone.part_names(relative)) - set(self.mean_squares):
            self._measure_source("train", tuple(sorted(relative)), workplace, say)
        if not all(c.method.trains_backbone for c in configs):
            for split in ("train", "val"):
                if split not in self.features:
                    self._measure_source(split, (), workplace, say)
        if any(c.needs_fitted_head for c in configs):
            self._fit_head(workplace, say)
        if any(c.effective_co_tuning for c in configs):
            self._learn_relationship(workplace, say)

    def knows_source(self, say: Say) -> bool:
        """Whether the features of train and val are here or in the cache, from which they are taken now."""
        for split in ("train", "val"):
            if split not in self.features and (found := self.files.read_pass(split, say)):
                self._keep_source(split, found)
        return {"train", "val"} <= self.features.keys()

    def stand_in(self, sample: Measurements) -> None:
        """Take what trials that fine-tune need of a sample's measurements: there is no time for a pass over all images.

        The head's logits are those of the sample's images; only the first model and attention, for which there is no
        time either, would look at them.
        """
        self.mean_squares, self.head = dict(sample.mean_squares), sample.head
        self.relationship = sample.relationship

    def missing_attention(self, configs: Iterable[TrialConfig]) -> dict[AttentionEstimator, tuple[str, ...]]:
        """Estimator → the layers whose attention these configurations need and that is not there."""
        missing: dict[AttentionEstimator, set[str]] = {}
        for config in configs:
            if config.method.uses_attention:
                known = self.attention.get(config.attention_estimator, {})
                lacking = self._layers([config]) - set(known)
                missing.setdefault(config.attention_estimator, set()).update(lacking)
        return {
            estimator: resolve_layers(self.backbone, tuple(sorted(layers)))
            for estimator, layers in sorted(missing.items())
            if layers
        }

    def find_attention(self, configs: Iterable[TrialConfig], say: Say) -> None:
        """Take from the cache what it has of the attention that these configurations need."""
        for estimator, layers in self.missing_attention(configs).items():
            self.keep_attention({estimator: self.files.read_attention(estimator, layers, say)})

    def measure_attention(
        self, configs: Iterable[TrialConfig], say: Say, workplace: Workplace
    ) -> dict[AttentionEstimator, dict[str, LayerAttention]]:
        """Measure what attention of these configurations is missing; it is not kept yet, for others may be reading.

        Returns:
            Estimator → layer → its attention; layers are missing if the workplace gives them too little time.
        """
        return {
            estimator: self._measure_attention(estimator, layers, workplace, say)
            for estimator, layers in self.missing_attention(configs).items()
        }

    def keep_attention(self, found: Mapping[AttentionEstimator, Mapping[str, LayerAttention]]) -> None:
        """Keep attention that was measured."""
        for estimator, layers in found.items():
            self.attention.setdefault(estimator, {}).update(layers)

    def fitted_head(self) -> FittedHead:
        """The classifier that `measure` fitted for configurations that need one."""
        assert self.head is not None, "measured before"
        return self.head

    def learnt_relationship(self) -> np.ndarray:
        """The relationship that `measure` learnt for configurations that need it."""
        assert self.relationship is not None, "measured before"
        return self.relationship

    def channel_factors(self, config: TrialConfig, device: torch.device) -> dict[str, Tensor]:
        """Part of a layer → factor of each channel in the behaviour term of a measured configuration, float32 (C,).

        A layer's term is the mean over its parts, so that alpha means the same with and without a class token.
        """
        factors = {}
        for layer, layout in self.backbone.layouts_of(resolve_layers(self.backbone, config.layers)).items():
            if config.method.uses_attention:
                losses = torch.tensor(self.attention[config.attention_estimator][layer].losses)
                weights = attention_weights(losses, config.attention_temperature)
            else:
                channels = self.backbone.channels[layer]
                weights = torch.full((channels,), 1 / channels)
            names = layout.part_names(layer)
            for name in names:
                mean_square = self.mean_squares[name] if config.behavior_scale == "relative" else None
                factors[name] = (channel_factors(weights, mean_square) / len(names)).to(device)
        return factors

    @property
    def files(self) -> MeasurementCache:
        """The files in the cache, by which later studies find what was measured."""
        return MeasurementCache(
            dataset=self.dataset,
            backbone=self.backbone,
            seed=self.seed,
            probe_images=self.probe_images,
            cache=self.cache,
        )

    def _layers(self, configs: Iterable[TrialConfig]) -> set[str]:
        return {layer for c in configs for layer in resolve_layers(self.backbone, c.layers)}

    def _measure_source(self, split: str, layers: tuple[str, ...], workplace: Workplace, say: Say) -> None:
        """Head inputs of a split, and the mean squares of these layers' maps, which are the training split's."""
        arrays = self.files.read_pass(split, say)
        wanted = {f"mean_square/{name}" for name in self.backbone.part_names(layers)}
        if not wanted | {"features"} <= set(arrays):
            images = self.dataset.for_name(split)
            say(f"Source: one pass over the {len(images)} un-augmented {split} images.")
            pieces = split_pieces(len(images))
            passes = [self._measure_piece(split, piece, layers, workplace, say) for piece in pieces]
            features, mean_squares = join_passes(passes)
            arrays |= {f"mean_square/{name}": np.array(value) for name, value in mean_squares.items()}
            arrays |= {"features": features}
            self.files.write_pass(split, arrays, say)
            if len(pieces) > 1:
                self.files.forget_pieces(split, pieces, say)
        self._keep_source(split, arrays)

    def _keep_source(self, split: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Keep the features of a split, and what mean squares came with them."""
        self.features[split] = arrays["features"]
        for name, array in arrays.items():
            if name.startswith("mean_square/"):
                self.mean_squares[name.removeprefix("mean_square/")] = float(array)

    def _measure_piece(
        self, split: str, piece: range, layers: tuple[str, ...], workplace: Workplace, say: Say
    ) -> SourcePass:
        """The pass over a piece of a split; in the cache, unless it is all, until the whole pass is there."""
        whole = self.dataset.for_name(split)
        alone = len(piece) == len(whole)
        arrays = {} if alone else self.files.read_piece(split, piece, say)
        names = self.backbone.part_names(layers)
        if {"features", *(f"sums/{name}" for name in names)} <= set(arrays):
            return arrays["features"], {name: arrays[f"sums/{name}"].tolist() for name in names}
        # Not all of the split's images: what computes may be a process of its own
        parts, images = split_parts(len(piece), workplace), whole if alone else whole.taken(piece)
        passes = workplace.map(measure_features, parts, self.backbone, images, layers)
        features = np.concatenate([each for each, _ in passes])
        sums = {name: [value for _, of in passes for value in of[name]] for name in names}
        if not alone:
            arrays = {f"sums/{name}": np.array(values) for name, values in sums.items()}
            self.files.write_piece(split, piece, arrays | {"features": features}, say)
        return features, sums

    def _fit_head(self, workplace: Workplace, say: Say) -> FittedHead:
        """The head fitted to the features of train, now if it has not been."""
        if self.head is None:
            self.head = self.files.read_head(say)
        if self.head is None:
            if "train" not in self.features:
                self._measure_source("train", (), workplace, say)
            features, labels = self.features["train"], self.dataset.train.labels
            num_classes = len(self.dataset.classes)
            self.head = workplace.run(fit_probe_head, self.backbone, features, labels, num_classes, self.seed)
            self.files.write_head(self.head, say)
        return self.head

    def _learn_relationship(self, workplace: Workplace, say: Say) -> None:
        """The relationship of source and target classes, learnt now if it has not been."""
        backbone, labels, num_classes = self.backbone, self.dataset.train.labels, len(self.dataset.classes)
        if backbone.source_head is None or backbone.head_fault:
            raise UserError(backbone.source_head_fault)
        if self.relationship is None:
            self.relationship = self.files.read_relationship(len(backbone.source_head["weight"]), say)
        if self.relationship is None:
            if "train" not in self.features:
                self._measure_source("train", (), workplace, say)
            features = self.features["train"]
            self.relationship = workplace.run(learn_relationship, backbone, features, labels, num_classes, self.seed)
            self.files.write_relationship(self.relationship, say)

    def _measure_attention(
        self, estimator: AttentionEstimator, layers: tuple[str, ...], workplace: Workplace, say: Say
    ) -> dict[str, LayerAttention]:
        """Attention of these layers, each in the cache once it is done, unless its time was over before."""
        channels = sum(self.backbone.channels[layer] for layer in layers)
        say(f"Attention: {estimator} losses of {channels} channels in {len(layers)} layers.")
        found: dict[str, LayerAttention] = {}
        for measured, cut_short in self._probe(estimator, layers, workplace, say):
            found |= measured
            for layer, attention in {} if cut_short else measured.items():
                self.files.write_attention(estimator, layer, attention, say)
        in_order = {layer: found[layer] for layer in layers if layer in found}
        for sentence in reliability_messages(in_order) if in_order else ():
            say(sentence)
        return in_order

    def _probe(
        self, estimator: AttentionEstimator, layers: tuple[str, ...], workplace: Workplace, say: Say
    ) -> Iterator[tuple[dict[str, LayerAttention], bool]]:
        """Train a probe head on the source's features, draw the probe images, and ablate the channels of `layers`.

        Yields:
            Layers that are done, and whether that is because their time is over.
        """
        train, num_classes = self.dataset.train, len(self.dataset.classes)
        fitted = self._fit_head(workplace, say)
        errors = error_norm(torch.tensor(fitted.logits), torch.tensor(train.labels))
        images = ProbeImages.draw(self.dataset.kind.strata(train.labels), errors, self.seed)
        first = images.order[: self.probe_images]
        job = ProbeJob(
            backbone=self.backbone,
            head=fitted.state,
            num_classes=num_classes,
            pixels=train.images.batch(first),
            labels=train.labels[first],
            layers=layers,
            estimator=estimator,
        )
        with workplace.probing(job, say) as prober:
            for measured in measure_layers(
                images, layers, prober.losses, seed=self.seed, estimator=estimator, most=self.probe_images
            ):
                cut_short = prober.cut_short
                if estimator == "exact":
                    measured = add_first_order_agreement(prober, images, measured)
                yield measured, cut_short
