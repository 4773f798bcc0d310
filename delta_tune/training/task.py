"""What all trials of a study share: the decoded data, the frozen source, and the measurements of that source."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from delta_tune.attention.measurement import MAX_PROBE_IMAGES
from delta_tune.config import Candidate, UserError, names_several
from delta_tune.data.dataset import Dataset
from delta_tune.data.loading import load_datasets
from delta_tune.filesystem.cache import Cache
from delta_tune.models.backbones import Backbone, build_source, can_be_negative, load_backbone
from delta_tune.models.devices import half_precision
from delta_tune.models.fusion import cast_weights, fold_batch_norms, fuse_activations
from delta_tune.training.measurements import Measurements


@dataclass(kw_only=True)
class Task:
    """Data and source of a study. Plain arrays throughout, so Ray shares it without copies."""

    dataset: Dataset = field(repr=False)
    backbone: Backbone = field(repr=False)
    seed: int = 0
    cache: Cache | None = None
    """Where studies share what they measure."""
    probe_images: int = MAX_PROBE_IMAGES
    """At most so many images measure the attention of a layer."""
    measurements: Measurements = field(init=False, repr=False)
    """Empty at first; `run_trial` adds what its configuration needs, `measurements.measure` what many need."""
    _sources: dict[str, nn.Module] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.measurements = Measurements(
            dataset=self.dataset,
            backbone=self.backbone,
            seed=self.seed,
            cache=self.cache,
            probe_images=self.probe_images,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Arrays only: each process builds its own networks."""
        return self.__dict__ | {"_sources": {}}

    def on(self, dataset: Dataset) -> Task:
        """The same source and cache with other data, for which nothing is measured yet."""
        return dataclasses.replace(self, dataset=dataset)

    def source_model(self, device: torch.device, layers: tuple[str, ...]) -> nn.Module:
        """The frozen source in eval mode, for the outputs of `layers`, built once in this process.

        On CPUs its batch norms are folded into the convolutions, those of `layers` aside, and the activations fused. In
        half precision a folded batch norm would round otherwise than the target's: maps would differ at equal weights.
        Where trials compute in half precision its convolutions hold their weights in it: run it under `autocast`.
        """
        key = f"{device} {layers}"
        if key not in self._sources:
            source = build_source(self.backbone)
            if device.type == "cpu":
                fold_batch_norms(source, layers)
                fuse_activations(source, layers)
            elif (dtype := half_precision(device)) is not None:
                cast_weights(source, dtype)
            self._sources[key] = source.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self._sources[key]

    def forget_networks(self) -> None:
        """Drop what `source_model` built."""
        self._sources.clear()


def prepare(
    data: str | Path = "demo",
    model: str | None = None,
    weights: str | None = None,
    *,
    image_size: int | None = None,
    channels: int = 3,
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
        channels: of the input; other than 3 (RGB), the first convolution is adapted.
        seed: of splits, probe head and probe images.
        cache: folder, or an address such as s3://bucket/folder, where studies share what they measure.
        **data_options: see `delta_tune.data.loading.load_datasets`.

    Raises:
        UserError: data, model or weights that cannot be used.
    """
    if names_several(model):
        raise UserError(f"model must be one network here, but got {model!r}; tune chooses among several.")
    (task,) = prepare_several(
        data,
        [Candidate(model, weights)],
        image_size=image_size,
        channels=channels,
        seed=seed,
        cache=cache,
        **data_options,
    )
    return task


def prepare_several(
    data: str | Path,
    sources: Sequence[Candidate | Backbone],
    *,
    image_size: int | None = None,
    channels: int = 3,
    seed: int = 0,
    cache: str | Path | None = None,
    **data_options: Any,
) -> list[Task]:
    """The same data and splits for several sources; those whose images are stored alike share their memory.

    Args:
        data: as of `prepare`, as are all arguments that are not named here.
        sources: ≥ 1; one that is loaded is taken as it is, and was loaded for this size and these channels.
        **data_options: see `delta_tune.data.loading.load_datasets`.

    Returns:
        A task for each source, in order.

    Raises:
        UserError: data, a model or its weights cannot be used.
    """
    shared = None if cache is None else Cache(cache)
    backbones = [
        each if isinstance(each, Backbone) else load_backbone(each.model, each.weights, image_size, channels)
        for each in sources
    ]
    preprocessings = [backbone.preprocessing for backbone in backbones]
    datasets, tasks = load_datasets(data, preprocessings=preprocessings, seed=seed, **data_options), []
    for backbone, dataset in zip(backbones, datasets, strict=True):
        check_labels(backbone, dataset)
        backbone = dataclasses.replace(backbone, preprocessing=dataset.preprocessing)
        tasks.append(Task(dataset=dataset, backbone=backbone, seed=seed, cache=shared))
    return tasks


def check_labels(backbone: Backbone, dataset: Dataset) -> None:
    """Refuse a network that cannot say that an image lacks a label, if images have several.

    Raises:
        UserError: says so.
    """
    if dataset.is_multilabel and not can_be_negative(backbone):
        raise UserError(
            f"{backbone.model} cannot say that an image lacks a label, and images of {dataset.name} have several: its "
            f"outputs are never below 0, so each label would be there with 50 % at least; give another model."
        )
