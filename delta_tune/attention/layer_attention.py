"""Attention on disk: losses, weights and reliability, one row per layer in a Parquet file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import Field

from delta_tune.attention.weights import attention_weights, perplexity
from delta_tune.config import AttentionEstimator, TrialConfig
from delta_tune.filesystem.rows import read_rows, read_table_file
from delta_tune.filesystem.untrusted import Number, Share, Text, check_rows, refusing

NOISE = 0.5
"""Below this reliability a layer's weights are more noise than signal."""
FLAT = 0.98
"""From this perplexity on, as a share of C, no channel stands out: it is exp(−1/(2·5²)), that of normally distributed
losses at the default temperature. A typical channel then has 0.8 to 1.2 times the alpha of uniform weights, a step of
2.5 % of the range in which alpha is searched."""
KEY = b"delta_tune.key"
"""Metadata key of a file of the cache: the key of what it was measured for."""
BACKBONE = "backbone"
"""The column of files of studies of several networks: its label."""
COLUMNS: dict[str, Any] = {
    "layer": Text,
    BACKBONE: Text | None,
    "estimator": AttentionEstimator,
    "images": Annotated[int, Field(ge=1)],
    "d": Annotated[list[Number], Field(min_length=1)],
    "W": Annotated[list[Share], Field(min_length=1)],
    "reliability": float,
    "perplexity": Number,
    "negative_share": Share,
    "first_order_agreement": float,
}
"""Columns of `attention_table` and their values."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerAttention:
    """The measured attention of one layer."""

    losses: np.ndarray
    """d, float32 (C,): mean loss with a channel off minus the intact loss."""
    reliability: float
    """Split-half reliability of W at the default temperature, Spearman–Brown corrected to all images, ≤ 1; NaN if
    there is nothing to correlate."""
    images: int
    """Number of probe images."""
    estimator: AttentionEstimator = "exact"
    first_order_agreement: float = math.nan
    """Spearman's correlation of the first-order estimate with the exact losses of the same images; NaN if it was
    not computed."""

    @property
    def perplexity(self) -> float:
        """Perplexity of W at the default temperature, as a share of C."""
        return perplexity(torch.from_numpy(self.weights))

    @property
    def weights(self) -> np.ndarray:
        """W at the default temperature, float32 (C,)."""
        return attention_weights(torch.from_numpy(self.losses), TrialConfig().attention_temperature).numpy()

    @property
    def negative_share(self) -> float:
        """Share of channels whose absence lowers the loss."""
        return float((self.losses < 0).mean())


def noise_warning(measured: Mapping[str, float]) -> str | None:
    """Given layer → reliability, a sentence naming layers whose weights are no better than noise; None if none."""
    noisy = [layer for layer, reliability in measured.items() if not reliability >= NOISE]
    if not noisy:
        return None
    if len(noisy) == len(measured):
        return (
            f"Attention is no better than noise (reliability below {NOISE} in every layer): "
            f"expect no more of delta than of delta_uniform."
        )
    return f"Attention is no better than noise in {', '.join(noisy)} (reliability below {NOISE})."


def flatness_warning(measured: Mapping[str, LayerAttention]) -> str | None:
    """A sentence naming layers whose weights are reliable, but prefer no channel; None if none."""
    flat = [layer for layer, each in measured.items() if each.reliability >= NOISE and each.perplexity >= FLAT]
    if not flat:
        return None
    where = "every layer" if len(flat) == len(measured) else ", ".join(flat)
    return (
        f"Attention prefers no channel in {where} (perplexity of W at least {FLAT:.0%} of the channels): "
        f"use delta_uniform, which does the same there without attention."
    )


def verdict(measured: Mapping[str, LayerAttention]) -> str:
    """What the study says about weights that are noise or flat, in one or two sentences; empty if all is well."""
    noise = noise_warning({layer: each.reliability for layer, each in measured.items()})
    return " ".join(sentence for sentence in (noise, flatness_warning(measured)) if sentence)


def reliability_messages(measured: Mapping[str, LayerAttention]) -> list[str]:
    """Sentences on how reliable the weights are."""
    figures = ", ".join(
        f"{layer} {each.reliability:.2f} ({each.images} images)".replace("nan", "unknown")
        for layer, each in measured.items()
    )
    judged = verdict(measured)
    said = [f"Split-half reliability of W: {figures}.", *([judged] if judged else [])]
    return [f"          {sentence}" for sentence in said]


def read_attention(file: Path) -> list[dict[str, Any]]:
    """The checked rows of a file of `attention_table`; [] if there is no file.

    Raises:
        UserError: the file is damaged.
    """
    if not file.exists():
        return []
    with refusing(file, "remove it: a report leaves out what it lacks"):
        rows, _ = read_table_file(file)
        _check(rows)
        return rows


def read_layers(file: Path, backbone: str | None = None) -> dict[AttentionEstimator, dict[str, LayerAttention]]:
    """Estimator → layer → the attention of a network that the rows of `read_attention` hold.

    Args:
        file: as of `read_attention`.
        backbone: label of the network; None in a study of one.

    Raises:
        UserError: the file is damaged.
    """
    found: dict[AttentionEstimator, dict[str, LayerAttention]] = {}
    for row in _of_backbone(read_attention(file), backbone):
        found.setdefault(row["estimator"], {})[row["layer"]] = _from_row(row)
    return found


def read_attention_weights(file: Path, backbone: str | None = None) -> dict[str, np.ndarray]:
    """Layer → W (C,) of the rows of `read_attention`, preferring exact losses; arguments as of `read_layers`."""
    rows = _of_backbone(read_attention(file), backbone)
    estimator = min((row["estimator"] for row in rows), key=lambda name: name != "exact", default=None)
    return {row["layer"]: np.array(row["W"], dtype=np.float32) for row in rows if row["estimator"] == estimator}


def attention_table(measured: Iterable[tuple[str, LayerAttention]], backbones: Sequence[str] = ()) -> pa.Table:
    """One row per layer and estimator: `d`, `W` at the default temperature, and their statistics.

    Args:
        measured: layers, by name, and their attention.
        backbones: label of each one's network; empty in a study of one, which has no such column.
    """
    rows = list(measured)
    vectors = pa.list_(pa.float32())
    figures = ("reliability", "perplexity", "negative_share", "first_order_agreement")
    return pa.table(
        {
            **({BACKBONE: list(backbones)} if backbones else {}),
            "layer": [layer for layer, _ in rows],
            "estimator": [each.estimator for _, each in rows],
            "images": pa.array([each.images for _, each in rows], type=pa.int64()),
            "d": pa.array([each.losses for _, each in rows], type=vectors),
            "W": pa.array([each.weights for _, each in rows], type=vectors),
            **{name: pa.array([getattr(each, name) for _, each in rows], type=pa.float64()) for name in figures},
        }
    )


def to_bytes(layer: str, measured: LayerAttention, key: str = "") -> bytes:
    """A Parquet file of one row of `attention_table`, which carries the key that the row was measured for."""
    sink = pa.BufferOutputStream()
    pq.write_table(attention_table([(layer, measured)]).replace_schema_metadata({KEY: key}), sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def from_bytes(content: bytes, key: str = "") -> LayerAttention:
    """The inverse of `to_bytes`.

    Raises:
        ValueError: the content is damaged, or was measured for another key.
    """
    rows, metadata = read_rows(content, "the file")
    _check(rows)
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows instead of one")
    if metadata.get(KEY, b"") != key.encode():
        raise ValueError("it was measured for something else")
    return _from_row(rows[0])


def _of_backbone(rows: Iterable[Mapping[str, Any]], backbone: str | None) -> list[Mapping[str, Any]]:
    return [row for row in rows if row.get(BACKBONE) == backbone]


def _from_row(row: Mapping[str, Any]) -> LayerAttention:
    fields = {f.name: row["d" if f.name == "losses" else f.name] for f in dataclasses.fields(LayerAttention)}
    return LayerAttention(**fields | {"losses": np.array(row["d"], dtype=np.float32)})


def _check(rows: Sequence[Mapping[str, Any]]) -> None:
    """Check the rows of `attention_table`.

    Raises:
        ValueError: names column and row.
    """
    check_rows(rows, COLUMNS)
    for row in rows:
        if len(row["d"]) != len(row["W"]):
            raise ValueError(f"d has {len(row['d'])} channels and W {len(row['W'])}")
