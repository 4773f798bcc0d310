"""An ONNX network in 8-bit integers, calibrated on images."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from delta_tune.export.network_graph import WITH_WEIGHTS

Calibration = Literal["min-max", "percentile", "entropy"]
FLOAT_NORMS = ("LayerNormalization", "RMSNormalization")
"""Where a network has one of these, nothing is quantised but what its layers take and give: 8-bit sums, norms and GELU
change many answers, and make nothing faster. Batch norms are part of the convolutions."""
BATCH = 8
"""Images at once while the ranges of activations are measured."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A way to quantise."""

    calibration: Calibration
    """How the range of an activation is chosen: all values that were seen, all without the 0.001 % at each end, or the
    range whose histogram diverges least."""
    float_layers: int = 0
    """Of the first layers with weights so many stay in float: they are small, and errors in them reach all others."""
    weight_bits: Literal[7, 8] = 7
    """With 8, processors without VNNI saturate in their sums: a file then answers otherwise than where it was made."""

    def __str__(self) -> str:
        """In words, for the card."""
        kept = f", the first {self.float_layers} layers in float" if self.float_layers else ""
        return f"{self.weight_bits}-bit weights, {self.calibration} calibration{kept}"


RECIPES = (Recipe("min-max"), Recipe("percentile"), Recipe("percentile", 4), Recipe("percentile", 8))
"""In the order in which they are tried: the fastest first. docs/experiments.md has the figures."""


class Quantizer:
    """Quantises one network in several ways; what it measures of the images is kept from one to the next.

    Args:
        network: with float32 inputs and outputs.
        inputs: name → calibration images (N, …).
        folder: for files that are not needed afterwards.
    """

    def __init__(self, network: onnx.ModelProto, inputs: Mapping[str, np.ndarray], folder: Path) -> None:
        from onnxruntime.quantization import quant_pre_process

        self._inputs, self._folder = inputs, folder
        self._prepared, given = folder / "prepared.onnx", folder / "network.onnx"
        onnx.save(network, given)
        with _quiet():
            # Without the symbolic shape inference, which is for transformers and needs sympy
            quant_pre_process(str(given), str(self._prepared), skip_symbolic_shape=True)

    def quantised(self, recipe: Recipe) -> onnx.ModelProto:
        """The network as a recipe makes it: QuantizeLinear and DequantizeLinear around layers with int8 weights."""
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

        methods: dict[Calibration, Any] = {
            "min-max": CalibrationMethod.MinMax,
            "percentile": CalibrationMethod.Percentile,  # whose default is 99.999
            "entropy": CalibrationMethod.Entropy,
        }
        kept: dict[str, Any] = {}
        if "calibration_cache_path" in inspect.signature(quantize_static).parameters:  # not in older versions
            kept = {"calibration_cache_path": str(self._folder / f"{recipe.calibration}.json")}
        nodes = onnx.load(self._prepared).graph.node
        layers = [n.name for n in nodes if n.op_type in WITH_WEIGHTS]
        if any(n.op_type in FLOAT_NORMS for n in nodes):
            kept["op_types_to_quantize"] = list(WITH_WEIGHTS)
        with tempfile.TemporaryDirectory(dir=self._folder) as folder, _quiet():
            file = Path(folder) / "quantised.onnx"
            quantize_static(
                str(self._prepared),
                str(file),
                _reader(self._inputs),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=recipe.weight_bits == 7,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=methods[recipe.calibration],
                nodes_to_exclude=layers[: recipe.float_layers],
                extra_options={"CalibStridedMinMax": 1},  # else all activations of all images are in memory at once
                **kept,
            )
            return onnx.load(file)


def _reader(inputs: Mapping[str, np.ndarray]) -> Any:
    """The calibration images, as onnxruntime asks for them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            starts = range(0, len(next(iter(inputs.values()))), BATCH)
            self._batches = [{k: v[start : start + BATCH] for k, v in inputs.items()} for start in starts]
            self.set_range(0, len(self._batches))

        def __len__(self) -> int:
            return len(self._batches)

        def set_range(self, start_index: int, end_index: int) -> None:
            self._coming = iter(self._batches[start_index:end_index])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._coming, None)

    return Reader()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what onnxruntime's tools print and log."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
