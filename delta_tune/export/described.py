"""What a file says of itself: classes, preprocessing, what goes in and what comes out, as values of JSON."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from delta_tune.export.formats import Inputs
from delta_tune.inference.ensemble import Flipped
from delta_tune.inference.model import Model


def metadata(model: Model, inputs: Inputs, *, embeddings: bool) -> dict[str, Any]:
    """All of it, by name."""
    return {
        "task": model.kind.name,
        "classes": model.config["classes"],
        "preprocessing": model.config["preprocessing"],
        "temperature": model.temperature,
        "thresholds": model.thresholds,
        "unsure": model.config.get("unsure"),
        "input": input_of(model, inputs),
        "output": output_of(model, inputs, embeddings=embeddings),
        "precision": "float32",
        "delta_tune": version("delta-tune"),
    }


def input_of(model: Model, inputs: Inputs) -> dict[str, Any]:
    """What the file takes."""
    settings = model.preprocessing
    size, channels = settings.image_size, settings.channels
    told = {
        "name": "images",
        "channels": {1: "grey", 3: "RGB"}.get(channels, f"{channels}, in the order of the images"),
    }
    if inputs == "normalized":
        shape = {"type": "float32", "layout": "NCHW", "shape": ["N", channels, size, size]}
        return told | shape | {"values": "(pixel / 255 - preprocessing.mean) / preprocessing.std"}
    shape = {"type": "uint8", "layout": "NHWC", "shape": ["N", "H", "W", channels]}
    return (
        told
        | shape
        | {
            "values": "pixels of any height and width, upright, from 0 to 255",
            "unchanged_size": settings.stored_size if settings.resize == "crop" else size,
        }
    )


def output_of(model: Model, inputs: Inputs, *, embeddings: bool) -> dict[str, Any]:
    """What the file computes."""
    several = model.thresholds is not None
    name, values = "probabilities", "calibrated probabilities, of each class" if several else "calibrated probabilities"
    if inputs == "normalized":
        makes = "the sigmoid of each is its probability" if several else "softmax makes them probabilities"
        divided = "" if model.temperature == 1 else f", already divided by the temperature {model.temperature:.6g}"
        name, values = "logits", f"logits{divided}; {makes}"
    flip = {"flip": "probabilities are the means of those of the image and of its mirror image"}
    return {
        **{"name": name, "type": "float32", "shape": ["N", len(model.classes)], "order": "classes", "values": values},
        **(flip if isinstance(model.network, Flipped) else {}),
        **({"thresholds": model.thresholds} if several else {}),
        **({"embeddings": "the inputs of the network's last layer, in the output embeddings"} if embeddings else {}),
    }
