"""What the files that need no constructor have in common: the module that is written, and examples of its input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from delta_tune.export.check import Exported, check_file, check_pixel_file, random_images, random_pixels
from delta_tune.export.described import metadata
from delta_tune.export.formats import Inputs
from delta_tune.export.network import CalibratedNetwork
from delta_tune.export.pixels import PixelModel
from delta_tune.inference.model import Model


@dataclass(frozen=True, slots=True)
class Graph:
    """A module to be written as a file."""

    module: nn.Module
    inputs: Inputs
    outputs: tuple[str, ...]
    """Their names."""
    example: Tensor
    dynamic: dict[int, Any]
    """Axes of the input that any size may have."""
    metadata: dict[str, Any]


def graph_of(model: Model, inputs: Inputs, *, embeddings: bool) -> Graph:
    """What the model computes of pixels, or of images that are normalised already."""
    kind = PixelModel if inputs == "pixels" else CalibratedNetwork
    module = kind(model, embeddings=embeddings).eval().to(memory_format=torch.contiguous_format)
    names = ("N", "H", "W") if inputs == "pixels" else ("N",)
    return Graph(
        module=module,
        inputs=inputs,
        outputs=("probabilities" if inputs == "pixels" else "logits", *(("embeddings",) if embeddings else ())),
        example=random_pixels(model, (2, 40, 50)) if inputs == "pixels" else random_images(model, 2),
        dynamic={axis: torch.export.Dim(name) for axis, name in enumerate(names)},
        metadata=metadata(model, inputs, embeddings=embeddings),
    )


def check_graph(model: Model, graph: Graph, exported: Exported) -> None:
    """Compare a file with the model, by the inputs that it takes.

    Raises:
        ExportMismatch: as `check_file` and `check_pixel_file`.
    """
    if graph.inputs == "pixels":
        check_pixel_file(model, exported)
    else:
        check_file(model, graph.module, exported)
