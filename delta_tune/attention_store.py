"""Attention as it is kept: losses, weights, and how far they can be trusted, a row per layer in a Parquet file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from delta_tune.attention import attention_weights, perplexity, split_half_reliability
from delta_tune.config import TrialConfig
from delta_tune.files import written_whole

NOISE = 0.5
"""Below this reliability more of a layer's weights is noise than signal."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerAttention:
    """What was measured of one layer."""

    losses: np.ndarray
    """d, float32 (C,): mean loss with a channel off minus the intact loss."""
    reliability: float
    """Split-half reliability of W at the default temperature, Spearman–Brown corrected to all images, ≤ 1; NaN where
    there is nothing to correlate."""


def measure_attention(per_image: Tensor, seed: int) -> LayerAttention:
    """Losses and reliability of a layer from its losses per image, (N, C)."""
    reliability = math.nan
    if len(per_image) >= 4:  # each half needs two images for its weights to mean anything
        reliability = split_half_reliability(per_image, torch.Generator().manual_seed(seed))
    return LayerAttention(losses=per_image.double().mean(0).float().numpy(), reliability=reliability)


def describe_reliability(measured: Mapping[str, LayerAttention]) -> str:
    """How far the weights can be trusted, in a sentence."""
    figures = ", ".join(f"{layer} {each.reliability:.2f}" for layer, each in measured.items())
    noisy = [layer for layer, each in measured.items() if not each.reliability >= NOISE]
    verdict = ""
    if len(noisy) == len(measured):
        verdict = (
            "; below 0.5 throughout: these weights are mostly noise, expect no more of delta than of delta_uniform"
        )
    elif noisy:
        verdict = f"; mostly noise in {', '.join(noisy)}"
    return f"          split-half reliability of W: {figures}{verdict}."


def write_attention(file: Path, measured: Mapping[str, LayerAttention]) -> None:
    """A row per layer: `layer`, `d`, `W` at the default temperature, `reliability`, `perplexity` of W as a share of
    C, `negative_share` of d; the file appears whole or not at all."""
    temperature = TrialConfig().attention_temperature
    weights = [attention_weights(torch.from_numpy(each.losses), temperature) for each in measured.values()]
    losses = [each.losses for each in measured.values()]
    vectors = pa.list_(pa.float32())
    table = pa.table(
        {
            "layer": list(measured),
            "d": pa.array(losses, type=vectors),
            "W": pa.array([w.numpy() for w in weights], type=vectors),
            "reliability": pa.array([each.reliability for each in measured.values()], type=pa.float64()),
            "perplexity": [perplexity(w) for w in weights],
            "negative_share": [float((d < 0).mean()) for d in losses],
        }
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as partial:
        pq.write_table(table, partial)


def read_attention(file: Path) -> dict[str, LayerAttention]:
    """Layer → what `write_attention` was given.

    Raises:
        OSError, pyarrow.ArrowInvalid, KeyError: the file is damaged.
    """
    columns = pq.read_table(file, columns=["layer", "d", "reliability"]).to_pydict()
    return {
        layer: LayerAttention(losses=np.array(losses, dtype=np.float32), reliability=reliability)
        for layer, losses, reliability in zip(columns["layer"], columns["d"], columns["reliability"], strict=True)
    }
