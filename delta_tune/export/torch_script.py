"""A TorchScript file, which needs libtorch alone."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from delta_tune.export.check import listed
from delta_tune.export.formats import Inputs
from delta_tune.export.graph import Graph, check_graph, graph_of
from delta_tune.export.pixels import PixelModel
from delta_tune.inference.model import Model
from delta_tune.results.layout import CONFIG_FILE

OF_THE_FOLDER = ("networks", "sha256", "temperature")
"""Keys of `config.json` that do not hold for a file that computes all by itself."""


def told_of(model: Model, graph: Graph) -> str:
    """`config.json` in the file."""
    told = {name: value for name, value in model.config.items() if name not in OF_THE_FOLDER}
    return json.dumps(told | {name: graph.metadata[name] for name in ("input", "output")})


def write_torch_script(model: Model, file: Path, inputs: Inputs, *, embeddings: bool) -> None:
    graph = graph_of(model, inputs, embeddings=embeddings)
    module = graph.module
    with warnings.catch_warnings():
        # PyTorch recommends torch.export, but its files need Python; TorchScript needs only libtorch
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", "`torch.jit", category)
        # Sizes become constants, which is right for the network: its input size is fixed
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        if isinstance(module, PixelModel):
            module.add_module("preparation", torch.jit.script(module.preparation))  # whose sizes stay open
        traced = torch.jit.trace(module, graph.example)  # type: ignore[no-untyped-call]
        extra = {CONFIG_FILE: told_of(model, graph)}
        torch.jit.save(traced, str(file), _extra_files=extra)
        read = torch.jit.load(str(file))  # type: ignore[no-untyped-call]

    def run(images: Tensor) -> Sequence[Tensor]:
        with torch.inference_mode():
            return listed(read(images))

    check_graph(model, graph, run)
