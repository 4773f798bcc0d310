"""What a trial minimises: the cross entropy, the penalties that keep the target near the source, and further terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from delta_tune.config import TrialConfig
from delta_tune.labels.kinds import LabelKind
from delta_tune.labels.one_label import ONE_LABEL
from delta_tune.models.feature_maps import FeatureMaps, feature_maps
from delta_tune.models.map_layout import CHANNELS_FIRST, MapLayout, named_parts
from delta_tune.training.co_tuning import SourceHead
from delta_tune.training.regularizers import WEIGHT_PENALTIES, behavior, head_l2, supervised_contrast
from delta_tune.training.source_map_index import StepKey
from delta_tune.training.source_maps import SourceMaps


class Objective:
    """loss = CE + alpha · penalty + beta · head_l2 + further strengths · terms (method.md), with its parts by name."""

    def __init__(
        self,
        config: TrialConfig,
        target: nn.Module,
        head: nn.Module,
        source: SourceMaps | None = None,
        factors: Mapping[str, Tensor] | None = None,
        class_weights: Tensor | None = None,
        source_head: SourceHead | None = None,
        kind: LabelKind = ONE_LABEL,
        logit_offsets: Tensor | None = None,
        layouts: Mapping[str, MapLayout] | None = None,
    ) -> None:
        """Take the target before its first step: l2_sp measures distances from the weights that it has now.

        Args:
            config: the method and its strengths.
            target: the network that is trained.
            head: its new head.
            source: the source's feature maps, for methods that compare them.
            factors: part of a layer → factor of each channel in the behaviour term, (C,), for the same methods.
            class_weights: of the cross entropy, as `kind.balanced_weights` returns them, on the target's device; None
                weighs all classes alike.
            source_head: the source's own head, if it is trained along.
            kind: of the labels.
            logit_offsets: what is added to the logits before their cross entropy, (K,) on the target's device.
            layouts: of the outputs of the hooked layers; None is that of convolutions, of the layers with factors.
        """
        assert (source is not None) == config.uses_behavior
        assert (source_head is not None) == (config.effective_co_tuning > 0)
        self.config, self._target, self._head = config, target, head
        self._source, self._factors, self._source_head = source, factors or {}, source_head
        self._class_weights, self._kind = class_weights, kind
        self._logit_offsets = logit_offsets
        self._layouts = dict.fromkeys(self._factors, CHANNELS_FIRST) if layouts is None else layouts
        self._maps: FeatureMaps | None = None
        self._features: list[Tensor] = []  # the head's inputs in the most recent forward pass
        self._is_hooked = False
        self._moving: list[nn.Parameter] = []
        self._aliases: list[Tensor] = []
        if config.method.penalty is not None and not config.method.uses_behavior:
            self._weight_penalty = WEIGHT_PENALTIES[config.method.penalty]
            head_ids = {id(p) for p in head.parameters()}
            self._moving = [p for p in target.parameters() if id(p) not in head_ids]
            self._start = [p.detach().clone() for p in self._moving]
            # The same memory as leaves of their own: autograd would add the two gradients of each weight one by one
            self._aliases = [p.detach().requires_grad_() for p in self._moving]

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Collect what the loss needs of the target's forward passes while the block runs; blocks may be nested."""
        if self._is_hooked:
            yield
            return
        with ExitStack() as hooks:
            self._is_hooked = True
            if self._source is not None:
                self._maps = hooks.enter_context(feature_maps(self._target, list(self._layouts)))
                hooks.enter_context(self._source.hooked())
            if self.config.effective_contrast or self._source_head is not None:
                hooks.enter_context(self._head.register_forward_pre_hook(self._keep_features))
            try:
                yield
            finally:
                self._maps, self._is_hooked = None, False
                self._features.clear()

    def _keep_features(self, head: nn.Module, args: tuple[Tensor, ...]) -> None:
        self._features[:] = args[:1]

    def before(self, images: Tensor, key: StepKey) -> None:
        """Called before the target's forward pass of `images`, which `key` describes."""
        if self._source is not None and self._maps is not None:
            self._source.before(images, key)

    def __call__(self, logits: Tensor, labels: Tensor, images: Tensor, key: StepKey) -> dict[str, Tensor]:
        """`train_loss` and its unweighted parts, float32 scalars, right after the target's forward of `images`.

        The labels are classes (B,) or, of mixed images and of several labels an image, their shares (B, K).

        After the loss's backward pass call `merge_gradients`.
        """
        config, method = self.config, self.config.method
        logits = logits.float() if self._logit_offsets is None else logits.float() + self._logit_offsets
        cross_entropy = self._kind.training_loss(logits, labels, config.label_smoothing, self._class_weights)
        parts = {"cross_entropy": cross_entropy}
        loss = parts["cross_entropy"]
        if self._source is not None and self._maps is not None:
            maps = named_parts(self._maps, self._layouts)
            parts["behavior"] = behavior(maps, self._source.after(images, key), self._factors)
            loss = loss + config.alpha * parts["behavior"]
        elif method.penalty is not None and not method.uses_behavior:
            parts[method.penalty] = self._weight_penalty(self._aliases, self._start)
            loss = loss + config.alpha * parts[method.penalty]
        if method.penalizes_head:
            parts["head_l2"] = head_l2(self._head)
            loss = loss + config.beta * parts["head_l2"]
        if self._features and self._source_head is not None:
            parts["co_tuning"] = self._source_head.loss(self._features[0], labels)
            loss = loss + config.effective_co_tuning * parts["co_tuning"]
        if self._features and config.effective_contrast:
            parts["contrast"] = supervised_contrast(self._features[0], labels)
            loss = loss + config.effective_contrast * parts["contrast"]
        return {"train_loss": loss, **parts}

    def merge_gradients(self) -> None:
        """Add the gradients of the penalty on the weights to those of the rest of the loss, all at once."""
        gradients, penalty_gradients = [], []
        for p, alias in zip(self._moving, self._aliases, strict=True):
            if p.grad is None:  # what the network did not use
                p.grad = torch.zeros_like(p)
            assert alias.grad is not None, "called after the backward pass"
            gradients.append(p.grad)
            penalty_gradients.append(alias.grad)
            alias.grad = None
        if gradients:
            torch._foreach_add_(gradients, penalty_gradients)
