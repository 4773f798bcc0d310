"""Where studies share what is measured on a frozen source: names of the files, what they depend on, and their content.

What cannot be read or written is told in a sentence, and the study goes on without.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import safetensors.numpy

from delta_tune.attention.layer_attention import LayerAttention, from_bytes, reliability_messages, to_bytes
from delta_tune.attention.probe_head import FittedHead
from delta_tune.config import AttentionEstimator
from delta_tune.data.dataset import Dataset
from delta_tune.filesystem.cache import Cache, content_key
from delta_tune.filesystem.rows import FILE_BYTES
from delta_tune.models.backbones import Backbone, head_inputs_shape
from delta_tune.training.co_tuning import RELATIONSHIP_RECIPE, read_relationship, relationship_to_bytes
from delta_tune.training.head_file import head_to_bytes, read_head
from delta_tune.training.source_files import key_array, read_source
from delta_tune.training.workplace import Say

SOURCE_RECIPE = "head inputs and mean squares of un-augmented images; 2"
HEAD_RECIPE = "L-BFGS, penalty held out, from the largest down; 1"
PROBE_RECIPE = "head: L-BFGS, penalty held out; images: drawn by surprise in rounds of 56 and half as many again; 5"


@dataclass(frozen=True, kw_only=True)
class MeasurementCache:
    """The files of one source and one dataset."""

    dataset: Dataset
    backbone: Backbone
    seed: int
    """Of the probe head and the probe images."""
    probe_images: int
    """At most so many images measure the attention of a layer."""
    cache: Cache | None
    """Where the files are; None keeps nothing."""

    def source_key(self, split: str) -> str:
        """Hex key of all that the source's features and mean squares of a split depend on: weights, data, recipe."""
        return content_key([self.backbone.fingerprint, self.dataset.fingerprint, split, SOURCE_RECIPE])

    def head_key(self) -> str:
        """Hex key of all that the fitted head depends on: the features of train, recipe, seed."""
        return content_key([self.source_key("train"), HEAD_RECIPE, str(self.seed)])

    def relationship_key(self) -> str:
        """Hex key of all that the relationship depends on: the features of train, the source's head, recipe, seed."""
        head = self.backbone.source_head_digest
        return content_key([self.source_key("train"), head, RELATIONSHIP_RECIPE, str(self.seed)])

    def attention_key(self, estimator: AttentionEstimator, layer: str) -> str:
        """Hex key of all that a layer's losses depend on: weights, data and split, probe recipe, seed."""
        content = [self.backbone.fingerprint, self.dataset.fingerprint, estimator, layer]
        recipe = [PROBE_RECIPE, str(self.probe_images), str(self.seed)]
        return content_key(content + recipe)

    def read_pass(self, split: str, say: Say) -> dict[str, np.ndarray]:
        """Name → array of the pass over a split; {} if there is none, or the file is damaged."""
        return self._read_source(split, _pass_name(self.source_key(split)), len(self.dataset.for_name(split)), say)

    def write_pass(self, split: str, arrays: Mapping[str, np.ndarray], say: Say) -> None:
        """Write the arrays of the pass over a split."""
        self._write_source(split, _pass_name(self.source_key(split)), arrays, say)

    def read_piece(self, split: str, piece: range, say: Say) -> dict[str, np.ndarray]:
        """As `read_pass`, of a piece of the split."""
        return self._read_source(split, _piece_name(self.source_key(split), piece), len(piece), say)

    def write_piece(self, split: str, piece: range, arrays: Mapping[str, np.ndarray], say: Say) -> None:
        """As `write_pass`, of a piece of the split."""
        self._write_source(split, _piece_name(self.source_key(split), piece), arrays, say)

    def forget_pieces(self, split: str, pieces: Iterable[range], say: Say) -> None:
        """Remove the pieces of a split whose pass is there."""
        if self.cache is None:
            return
        for piece in pieces:
            name = _piece_name(self.source_key(split), piece)
            try:
                self.cache.remove(name)
            except OSError as error:
                say(f"Cache: {self.cache.path(name)} is not needed any more and cannot be removed ({error}).")

    def read_head(self, say: Say) -> FittedHead | None:
        """The head that was fitted to the features of train; None if there is none, or the file is damaged."""
        if self.cache is None:
            return None
        key, labels, num_classes = self.head_key(), self.dataset.train.labels, len(self.dataset.classes)
        shape = len(labels), head_inputs_shape(self.backbone)[0], num_classes
        return read_head(self.cache, f"{key}.safetensors", key, shape, say)

    def write_head(self, head: FittedHead, say: Say) -> None:
        """Write the fitted head."""
        key = self.head_key()
        self._write(f"{key}.safetensors", head_to_bytes(head, key), say)

    def read_relationship(self, num_source_classes: int, say: Say) -> np.ndarray | None:
        """The relationship (C_t, C_s) of the classes; None if there is none, or the file is damaged."""
        if self.cache is None:
            return None
        key = self.relationship_key()
        shape = len(self.dataset.classes), num_source_classes
        return read_relationship(self.cache, f"{key}.safetensors", key, shape, say)

    def write_relationship(self, relationship: np.ndarray, say: Say) -> None:
        """Write the relationship of the classes."""
        key = self.relationship_key()
        self._write(f"{key}.safetensors", relationship_to_bytes(relationship, key), say)

    def read_attention(
        self, estimator: AttentionEstimator, layers: Iterable[str], say: Say
    ) -> dict[str, LayerAttention]:
        """Layer → attention, of those of these layers whose files are there."""
        attention: dict[str, LayerAttention] = {}
        if self.cache is None:
            return attention
        for layer in layers:
            key = self.attention_key(estimator, layer)
            name = f"{key}.parquet"
            try:
                content = self.cache.read(name, FILE_BYTES)
                if content is None:
                    continue
                found = from_bytes(content, key)
                if len(found.losses) != self.backbone.channels[layer]:
                    raise ValueError(f"it has {len(found.losses)} channels, not {self.backbone.channels[layer]}")
                attention[layer] = found
            except (OSError, ValueError) as error:
                say(f"Attention: {self.cache.path(name)} is damaged ({error}) and computed again.")
        if attention:
            say(f"Attention: {estimator} losses of {len(attention)} layers found in {self.cache.location}.")
            for sentence in reliability_messages(attention):
                say(sentence)
        return attention

    def write_attention(self, estimator: AttentionEstimator, layer: str, attention: LayerAttention, say: Say) -> None:
        """Write the attention of a layer."""
        key = self.attention_key(estimator, layer)
        self._write(f"{key}.parquet", to_bytes(layer, attention, key), say)

    def _read_source(self, split: str, name: str, count: int, say: Say) -> dict[str, np.ndarray]:
        if self.cache is None:
            return {}
        return read_source(self.cache, name, self.source_key(split), (count, *head_inputs_shape(self.backbone)), say)

    def _write_source(self, split: str, name: str, arrays: Mapping[str, np.ndarray], say: Say) -> None:
        self._write(name, safetensors.numpy.save({**arrays, "key": key_array(self.source_key(split))}), say)

    def _write(self, name: str, content: bytes, say: Say) -> None:
        if self.cache is None:
            return
        try:
            self.cache.write(name, content)
        except OSError as error:  # the study has what it needs; only later ones will compute it again
            say(f"Cache: {self.cache.path(name)} cannot be written ({error}); this study goes on without.")


def _pass_name(key: str) -> str:
    return f"{key}.safetensors"


def _piece_name(key: str, piece: range) -> str:
    return f"{key}-{piece.start}-{piece.stop}.safetensors"
