"""An archive of `torch.export`, which PyTorch reads without this package."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from delta_tune.export.check import listed
from delta_tune.export.formats import Inputs
from delta_tune.export.graph import check_graph, graph_of
from delta_tune.export.torch_script import told_of
from delta_tune.inference.model import Model
from delta_tune.results.layout import CONFIG_FILE


def write_torch_archive(model: Model, file: Path, inputs: Inputs, *, embeddings: bool) -> None:
    graph = graph_of(model, inputs, embeddings=embeddings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own parts
        program = torch.export.export(graph.module, (graph.example,), dynamic_shapes=(graph.dynamic,), strict=False)
        extra = {CONFIG_FILE: told_of(model, graph)}
        with file.open("wb") as opened:  # a path must end with .pt2, which that of an unfinished file does not
            torch.export.save(program, opened, extra_files=extra)
        with file.open("rb") as written:
            read = torch.export.load(written).module()

    def run(images: Tensor) -> Sequence[Tensor]:
        with torch.inference_mode():
            return listed(read(images))

    check_graph(model, graph, run)
