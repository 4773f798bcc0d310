"""An ONNX file."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from delta_tune.config import UserError
from delta_tune.console.format import format_bytes
from delta_tune.export.formats import Inputs
from delta_tune.export.graph import check_graph, graph_of
from delta_tune.export.onnx_session import open_session
from delta_tune.inference.model import Model

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 20
"""Read by onnxruntime ≥ 1.17 and OpenVINO ≥ 2024."""
MOST_BYTES = 2**31 - 2**24
"""Of all weights: a file has at most 2 GiB, with the nodes."""


def check_packages() -> None:
    """Raise UserError if a package that ONNX needs is missing."""
    if any(importlib.util.find_spec(name) is None for name in ONNX_PACKAGES):
        raise UserError(
            f"--format onnx needs the packages {', '.join(ONNX_PACKAGES)}; install them with "
            f'pip install "delta-tune[onnx]".'
        )


def write_onnx(model: Model, file: Path, inputs: Inputs, *, embeddings: bool) -> None:
    import onnx

    weights = sum(each.nbytes for each in model.network.state_dict().values())
    if weights > MOST_BYTES:
        raise UserError(
            f"An ONNX file holds at most 2 GiB, and the model's weights are {format_bytes(weights)}; give --format "
            "torchscript or torch_export."
        )
    graph = graph_of(model, inputs, embeddings=embeddings)
    with warnings.catch_warnings(), _PoolingAsMean():
        warnings.simplefilter("ignore")  # deprecations inside the exporter and onnxscript
        program = torch.onnx.export(
            graph.module,
            (graph.example,),
            dynamo=True,
            input_names=["images"],
            output_names=graph.outputs,
            dynamic_shapes=(graph.dynamic,),
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in graph.metadata.items()})
    onnx.save(proto, str(file))
    session = open_session(file)

    def run(images: Tensor) -> list[Tensor]:
        return [torch.from_numpy(each) for each in session.run(graph.outputs, {"images": images.numpy()})]

    check_graph(model, graph, run)


class _PoolingAsMean(TorchFunctionMode):
    """Computes pooling to a single position as the mean that it is.

    The exporter makes a table of memory addresses of it where maps are channels last, as ConvNeXt's are.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: list[Any] = [*args, *(kwargs or {}).values()]
        if func is functional.adaptive_avg_pool2d and given[1] in (1, (1, 1), [1, 1]):
            return given[0].mean((-2, -1), keepdim=True)
        return func(*args, **(kwargs or {}))
