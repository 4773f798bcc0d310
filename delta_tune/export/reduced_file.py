"""An ONNX file in half precision or 8-bit integers, with evidence of what that loses; refused if it is too much."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from delta_tune.config import Metric, UserError
from delta_tune.data.splits import training_subset
from delta_tune.export.check import ExportMismatch
from delta_tune.export.evidence import (
    MAX_LOSS,
    Evidence,
    ScoredImages,
    SplitEvidence,
    compare_probabilities,
    time_files,
)
from delta_tune.export.formats import Inputs, Reduced
from delta_tune.export.half import largest_values, to_half
from delta_tune.export.model_file import export_model
from delta_tune.export.network_graph import NetworkPart, cut_out, find_network, put_in
from delta_tune.export.quantization import RECIPES, Quantizer, Recipe
from delta_tune.export.run_file import OnnxRunner
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.inference.model import Model

CALIBRATION_IMAGES = 200
"""At most so many images tell the range of each activation."""
CHOSEN_BY = 500
"""At most so many images choose between the ways to quantise."""
TOOL_ERRORS = (NotImplementedError, RuntimeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError)
"""What onnxruntime's and onnx's tools raise for a network that they cannot take."""


def export_reduced(
    model: Model,
    precision: Reduced,
    file: Path,
    images: Sequence[ScoredImages],
    *,
    inputs: Inputs = "pixels",
    embeddings: bool = False,
    metric: Metric = "val_accuracy",
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Evidence:
    """Export a model to an ONNX file in less than float32, atomically, and measure what that loses.

    Args:
        model: on CPU, in eval mode.
        precision: as in `write_reduced`.
        file: path to write.
        images: as in `write_reduced`.
        inputs: as in `export_model`.
        embeddings: as in `export_model`.
        metric: of the study.
        force: whether a file that loses more than `MAX_LOSS` is kept.
        say: takes a sentence on each way that is tried.

    Raises:
        UserError: as `export_model` and `write_reduced`.
        ExportMismatch: as these.
    """
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / "float32.onnx"
        export_model(model, "onnx", full, inputs=inputs, embeddings=embeddings)
        return write_reduced(model, full, precision, file, images, metric=metric, force=force, say=say)


def write_reduced(
    model: Model,
    full: Path,
    precision: Reduced,
    file: Path,
    images: Sequence[ScoredImages],
    *,
    metric: Metric = "val_accuracy",
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Evidence:
    """Write a reduced file of a float32 one, atomically, and measure it.

    Args:
        model: whose files they are.
        full: the ONNX file in float32.
        precision: of the network's weights and arithmetic; what prepares the images and makes probabilities stays
            float32, as do inputs and outputs.
        file: to write.
        images: to score on. The first ones calibrate and choose the way to quantise, too.
        metric: of the study.
        force: whether a file that loses more than `MAX_LOSS` is kept.
        say: takes a sentence on each way that is tried.

    Raises:
        UserError: the network cannot be reduced.
        ExportMismatch: the file loses more than `MAX_LOSS`, or its answers are no finite numbers.
    """
    graph = onnx.load(full)
    try:
        reduced = (
            _half(model, graph, images[0]) if precision == "fp16" else _quantised(model, graph, images[0], metric, say)
        )
    except TOOL_ERRORS as error:
        cause = f"{str(error) or type(error).__name__:.200}".splitlines()[0]
        raise UserError(
            f"{model.config['backbone']['model']} cannot be reduced to {precision} by onnxruntime's tools ({cause}); "
            f"export it without --precision."
        ) from error
    with atomic_write(file) as partial:
        _save(reduced.graph, {"precision": precision}, partial)
        runners = OnnxRunner(model, full), OnnxRunner(model, partial)
        splits = tuple(_compared(model, *runners, each, metric, precision) for each in images)
        alone = [OnnxRunner(model, each, threads=1) for each in (full, partial)]
        taken = time_files(alone, images[0].pixels)
        found = Evidence(
            precision, reduced.made, splits, (taken[0], taken[1]), (full.stat().st_size, partial.stat().st_size)
        )
        if found.loss > MAX_LOSS and not force:
            raise ExportMismatch(_refusal(found))
        _save(reduced.graph, {"precision": precision, "evidence": found.record()}, partial)
    return found


@dataclass(frozen=True, slots=True)
class _ReducedGraph:
    graph: onnx.ModelProto
    made: str


def _half(model: Model, graph: onnx.ModelProto, images: ScoredImages) -> _ReducedGraph:
    part = find_network(graph)
    known = boundary(model, graph, part, images.pixels[_some(images, CALIBRATION_IMAGES)])
    network = cut_out(graph, part, known)
    largest = largest_values(network, {name: known[name] for name in part.inputs})
    half, kept = to_half(network, largest)
    made = "weights and arithmetic of the network in half precision"
    made += (
        f", but for {kept} of its {len(network.graph.node)} operators, whose values are too large for it"
        if kept
        else ""
    )
    return _ReducedGraph(put_in(graph, part, half), made)


def _quantised(
    model: Model, graph: onnx.ModelProto, images: ScoredImages, metric: Metric, say: Callable[[str], None]
) -> _ReducedGraph:
    """The way to quantise whose probabilities are nearest to the float32 ones, of those that lose little accuracy."""
    part = find_network(graph)
    pixels = images.pixels[_some(images, CALIBRATION_IMAGES)]
    known = boundary(model, graph, part, pixels)
    chosen = _some(images, CHOSEN_BY)
    judged_by = ScoredImages(
        images.split, images.pixels[chosen], None if images.labels is None else images.labels[chosen]
    )
    before = OnnxRunner(model, graph).probabilities(judged_by.pixels)
    found: list[tuple[bool, float, onnx.ModelProto, Recipe]] = []
    with tempfile.TemporaryDirectory() as folder:
        quantizer = Quantizer(cut_out(graph, part, known), {name: known[name] for name in part.inputs}, Path(folder))
        for recipe in RECIPES:
            candidate = put_in(graph, part, quantizer.quantised(recipe))
            after = OnnxRunner(model, candidate).probabilities(judged_by.pixels)
            told = compare_probabilities(model, before, after, judged_by, metric)
            say(_tried(recipe, told))
            found.append((told.loss > MAX_LOSS, told.divergence, candidate, recipe))
    _, _, best, recipe = min(found, key=lambda each: each[:2])
    return _ReducedGraph(best, f"8-bit activations, {recipe}, on {len(pixels)} images")


def _tried(recipe: Recipe, told: SplitEvidence) -> str:
    scores = ", ".join(f"{name.replace('_', ' ')} {100 * value:.1f} %" for name, value in told.after.items())
    return (
        f"{recipe}: {scores + ', ' if scores else ''}{100 * told.agreement:.1f} % same answers, divergence "
        f"{told.divergence:.4f}"
    )


def _some(images: ScoredImages, most: int) -> np.ndarray:
    """Positions of at most so many images, of all classes where there are labels, the same in every run."""
    count = len(images.pixels)
    if count <= most:
        return np.arange(count)
    if images.labels is not None:
        found = training_subset(images.labels, fraction=most / count, per_class=None, seed=0)
        if len(found) <= most:
            return found
    return np.sort(np.random.default_rng(0).permutation(count)[:most])


def boundary(model: Model, graph: onnx.ModelProto, part: NetworkPart, pixels: np.ndarray) -> dict[str, np.ndarray]:
    """What flows into the network and out of it for these images: tensor → values (N, …)."""
    named = onnx.ModelProto()
    named.CopyFrom(graph)
    names = (*part.inputs, *part.outputs)
    there = {each.name for each in (*graph.graph.output, *graph.graph.input)}
    named.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    return OnnxRunner(model, named).tensors(names, pixels)


def _save(graph: onnx.ModelProto, told: Mapping[str, Any], file: Path) -> None:
    """Write a graph with more metadata than it had."""
    metadata = {each.key: each.value for each in graph.metadata_props}
    metadata |= {key: json.dumps(value) for key, value in told.items()}
    onnx.helper.set_model_props(graph, metadata)
    onnx.save(graph, str(file))


def _compared(
    model: Model, full: OnnxRunner, reduced: OnnxRunner, images: ScoredImages, metric: Metric, precision: Reduced
) -> SplitEvidence:
    """Compare the two files on the same images.

    Raises:
        ExportMismatch: answers of the reduced one are no finite numbers.
    """
    after = reduced.probabilities(images.pixels)
    if wrong := int((~np.isfinite(after)).any(1).sum()):
        raise ExportMismatch(
            f"The {precision} file is not kept: for {wrong} of {len(images.pixels)} images of {images.split} its "
            f"answers are no finite numbers; export it without --precision."
        )
    return compare_probabilities(model, full.probabilities(images.pixels), after, images, metric)


def _refusal(found: Evidence) -> str:
    worst = max(found.splits, key=lambda split: split.loss)
    if not worst.before:
        return (
            f"The {found.precision} file is not kept: {100 * worst.loss:.1f} % of the answers on the {worst.images} "
            f"images of {worst.split} differ from those of float32, and without labels nobody knows how many of them "
            f"were right; at most {100 * MAX_LOSS:g} % are allowed; give images with labels as --calibration, or "
            f"--force."
        )
    name = max(worst.before, key=lambda name: worst.before[name] - worst.after[name])
    return (
        f"The {found.precision} file is not kept: its {name.replace('_', ' ')} on the {worst.images} images of "
        f"{worst.split} is {100 * worst.after[name]:.1f} % instead of {100 * worst.before[name]:.1f} %, a loss of "
        f"{100 * worst.loss:.1f} points, of which {100 * MAX_LOSS:g} is allowed; give another --precision, or --force."
    )
