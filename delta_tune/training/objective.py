"""What a trial minimises: the cross entropy and what keeps the target near the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from delta_tune.config import TrialConfig
from delta_tune.models.feature_maps import FeatureMaps, feature_maps
from delta_tune.training.regularizers import behavior, head_l2, weight_l2_sp
from delta_tune.training.source_map_index import Batch
from delta_tune.training.source_maps import MapStore, SourceMaps
from delta_tune.training.task import Task

PARTS = ("cross_entropy", "behavior", "weight_l2_sp", "head_l2")


class Objective:
    """loss = CE + alpha · (behavior or weight_l2_sp) + beta · head_l2 (method.md), with its parts by name."""

    def __init__(
        self, task: Task, config: TrialConfig, target: nn.Module, device: torch.device, store: MapStore | None = None
    ) -> None:
        self.config, self._target = config, target
        self._head = target.get_submodule(task.backbone.head)
        self._maps: FeatureMaps | None = None
        if config.uses_behavior:
            task.measurements.measure([config], device)
            self._factors = task.measurements.channel_factors(config, device)
            self._source = SourceMaps(task.source_model(device, tuple(self._factors)), tuple(self._factors), store)
        if config.regularizer == "l2_sp":
            head = {id(p) for p in self._head.parameters()}
            self._moving = [p for p in target.parameters() if id(p) not in head]
            self._start = [p.detach().clone() for p in self._moving]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Within it forward passes of the target leave their feature maps for the next call; it may be nested."""
        if not self.config.uses_behavior or self._maps is not None:
            yield
            return
        with feature_maps(self._target, list(self._factors)) as self._maps, self._source.hooked():
            try:
                yield
            finally:
                self._maps = None

    def before(self, images: Tensor, batch: Batch) -> None:
        """Called before the target's forward pass of `images`, which `batch` describes."""
        if self._maps is not None:
            self._source.before(images, batch)

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`train_loss` and its unweighted parts, float32 scalars, right after the target's forward of `images`."""
        config = self.config
        parts = {"cross_entropy": F.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)}
        loss = parts["cross_entropy"]
        if self._maps is not None:
            parts["behavior"] = behavior(self._maps, self._source.after(images, batch), self._factors)
            loss = loss + config.alpha * parts["behavior"]
        elif config.regularizer == "l2_sp":
            parts["weight_l2_sp"] = weight_l2_sp(self._moving, self._start)
            loss = loss + config.alpha * parts["weight_l2_sp"]
        if config.regularizer != "l2":
            parts["head_l2"] = head_l2(self._head)
            loss = loss + config.beta * parts["head_l2"]
        return {"train_loss": loss, **parts}
