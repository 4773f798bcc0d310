"""An ONNX file."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path

import torch

from delta_tune.config import UserError
from delta_tune.export.check import check_file, random_images
from delta_tune.export.network import calibrated, output_of
from delta_tune.inference.model import Model

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def check_packages() -> None:
    """Raise UserError if a package that ONNX needs is missing."""
    if any(importlib.util.find_spec(name) is None for name in ONNX_PACKAGES):
        raise UserError(
            f"--format onnx needs the packages {', '.join(ONNX_PACKAGES)}; install them with "
            f'pip install "delta-tune[onnx]".'
        )


def write_onnx(model: Model, file: Path) -> None:
    import onnx
    import onnxruntime

    network = calibrated(model).to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter and onnxscript
        program = torch.onnx.export(
            network,
            (random_images(model, 2),),
            dynamo=True,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("N")},),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    size, channels = model.preprocessing.image_size, model.preprocessing.channels
    metadata = {
        **({"task": model.kind.name} if model.thresholds is not None else {}),
        "classes": model.config["classes"],
        "preprocessing": model.config["preprocessing"],
        "input": {
            **{"name": "images", "type": "float32", "layout": "NCHW", "shape": ["N", channels, size, size]},
            "channels": {1: "grey", 3: "RGB"}.get(channels, f"{channels}, in the order of the images"),
            "values": "(pixel / 255 - preprocessing.mean) / preprocessing.std",
        },
        "output": {"name": "logits", **output_of(model)},
    }
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.save(proto, str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    check_file(model, network, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]))
