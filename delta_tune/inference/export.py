"""Export a model to ONNX, TorchScript or a plain state dict, and check the file against the model."""

from __future__ import annotations

import importlib.util
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn
from torchvision.models import get_model

from delta_tune.config import UserError
from delta_tune.filesystem.atomic import atomic_write, write_json
from delta_tune.inference.ensemble import Flipped, members_of
from delta_tune.inference.formats import SUFFIXES, Format
from delta_tune.inference.model import Model
from delta_tune.models.architectures import (
    build_unfilled,
    constructor_options,
    input_convolution,
    with_input_channels,
)
from delta_tune.models.hooked_layers import first_line
from delta_tune.results.layout import CONFIG_FILE

TOLERANCE = 1e-4
"""Largest allowed difference of logits between the model and the exported file, in parts of the largest above 1."""
CHECKED_BATCHES = (1, 3)
OF_THE_FOLDER = ("networks", "sha256", "temperature")
"""Keys of `config.json` that do not hold for a file that computes all by itself."""
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class ExportMismatch(UserError):
    """The exported file does not compute what the model computes."""


class _Calibrated(nn.Module):
    """A network's logits (N, K), divided by the temperature."""

    def __init__(self, network: nn.Module, temperature: float) -> None:
        super().__init__()
        self.network, self.temperature = network, temperature

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits / self.temperature


def export_model(model: Model, kind: Format, file: Path) -> tuple[Path, ...]:
    """Export a model to `file`, atomically.

    ONNX and TorchScript map float32 images (N, C, S, S), normalised as `best/config.json` says, to logits (N, K) for
    any N, divided by the model's temperature; their softmax, or with several labels an image the sigmoid of each, are
    the probabilities. Classes and preprocessing are in the file too (ONNX: JSON in
    `metadata_props`, with the layout of `input` and `output`; TorchScript: the extra file `config.json`, with
    `output`). The state dict loads into torchvision's or timm's own constructor; a JSON file beside it, `FILE.json`,
    has the constructor's arguments, classes, preprocessing and temperature. Each file is read again by the library
    that it is meant for, and its logits are compared.

    Args:
        model: on CPU, in eval mode.
        kind: format of the file.
        file: path to write.

    Returns:
        The files written.

    Raises:
        UserError: ONNX's packages are missing, the network cannot be exported to this format, or a state dict is wanted
            of several networks or of one that sees mirror images.
        ExportMismatch: logits for random images differ from the model's by more than `TOLERANCE`.
    """
    if kind == "onnx" and any(importlib.util.find_spec(name) is None for name in ONNX_PACKAGES):
        raise UserError(
            f"--format onnx needs the packages {', '.join(ONNX_PACKAGES)}; install them with "
            f'pip install "delta-tune[onnx]".'
        )
    if kind == "state_dict":
        _check_one_network(model)
    try:
        with atomic_write(file) as partial:
            {"onnx": _onnx, "torchscript": _torchscript, "state_dict": _state_dict}[kind](model, partial)
    except RuntimeError as error:  # the exporters', and load_state_dict's
        raise UserError(
            f"{model.config['backbone']['model']} cannot be exported to {kind} ({first_line(error)[:200]}); "
            f"give another --format, of {', '.join(SUFFIXES)}."
        ) from error
    if kind != "state_dict":
        return (file,)
    beside = file.with_name(f"{file.name}.json")
    write_json(beside, model.config | {"constructor": _constructor(model)})
    return file, beside


def _check_one_network(model: Model) -> None:
    flip, networks = isinstance(model.network, Flipped), len(members_of(model.network))
    if flip or networks > 1:
        what = f"{networks} networks" if networks > 1 else "a network that sees the image and its mirror image"
        raise UserError(f"A state dict cannot hold {what}; give --format onnx or torchscript.")


def _state_dict(model: Model, file: Path) -> None:
    network = model.network.to(memory_format=torch.contiguous_format)
    torch.save(network.state_dict(), file)  # no plain dict: it has the versions of modules, which MNASNet asks for
    told = _constructor(model)
    build = timm.create_model if told["call"] == "timm.create_model" else get_model
    rebuilt: nn.Module = build(*told["arguments"], **told["keywords"])
    if "input_convolution" in told:
        with_input_channels(rebuilt, told["input_convolution"]["module"], told["input_convolution"]["in_channels"])
    rebuilt.load_state_dict(torch.load(file, weights_only=True))
    _check(model, network, rebuilt.eval())


def _constructor(model: Model) -> dict[str, Any]:
    """The call that builds the network that the state dict belongs to.

    Of torchvision's networks for other channels than RGB, the convolution `input_convolution` has then to be replaced.
    """
    name, channels = model.config["backbone"]["model"], model.preprocessing.channels
    replaced = {}
    if channels != 3 and not name.startswith("timm:"):
        module = input_convolution(build_unfilled(name))
        replaced = {"input_convolution": {"module": module, "in_channels": channels}}
    return {
        "call": "timm.create_model" if name.startswith("timm:") else "torchvision.models.get_model",
        "arguments": [name.removeprefix("timm:")],
        "keywords": {"num_classes": len(model.classes), **constructor_options(name, channels)},
        **replaced,
    }


def _calibrated(model: Model) -> nn.Module:
    """What computes logits whose probabilities are those that the model predicts."""
    return model.network if model.temperature == 1 else _Calibrated(model.network, model.temperature).eval()


def _torchscript(model: Model, file: Path) -> None:
    network = _calibrated(model).to(memory_format=torch.contiguous_format)
    told = {name: value for name, value in model.config.items() if name not in OF_THE_FOLDER}
    told["output"] = _output(model)
    with warnings.catch_warnings():
        # PyTorch recommends torch.export, but its files need Python; TorchScript needs only libtorch
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", "`torch.jit", category)
        # Sizes become constants, which is right: the input size is fixed
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(network, _random_images(model, 2))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(file), _extra_files={CONFIG_FILE: json.dumps(told)})
        read = torch.jit.load(str(file))  # type: ignore[no-untyped-call]
    _check(model, network, read)


def _onnx(model: Model, file: Path) -> None:
    import onnx
    import onnxruntime

    network = _calibrated(model).to(memory_format=torch.contiguous_format)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside the exporter and onnxscript
        program = torch.onnx.export(
            network,
            (_random_images(model, 2),),
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
        "output": {"name": "logits", **_output(model)},
    }
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.save(proto, str(file))
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    _check(model, network, lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0]))


def _output(model: Model) -> dict[str, Any]:
    """What a file says of what it computes."""
    several = model.thresholds is not None
    makes = "the sigmoid of each is its probability" if several else "softmax makes them probabilities"
    values = f"logits; {makes}"
    if model.temperature != 1:
        values = f"logits, already divided by the temperature {model.temperature:.6g}; {makes}"
    flip = {"flip": "probabilities are the means of those of the image and of its mirror image"}
    return {
        **{"type": "float32", "shape": ["N", len(model.classes)], "order": "classes", "values": values},
        **(flip if isinstance(model.network, Flipped) else {}),
        **({"thresholds": model.thresholds} if several else {}),
    }


def _check(model: Model, network: nn.Module, exported: Callable[[Tensor], Tensor]) -> None:
    for many in CHECKED_BATCHES:
        images = _random_images(model, many)
        with torch.inference_mode():
            expected, found = network(images), exported(images)
        apart, largest = float((expected - found).abs().max()), max(1.0, float(expected.abs().max()))
        if not apart <= TOLERANCE * largest:
            raise ExportMismatch(
                f"The exported file is not kept: for {many} random images its logits and the model's differ by "
                f"{apart:.2g}, more than {TOLERANCE * largest:.2g}; give another --format."
            )


def _random_images(model: Model, many: int) -> Tensor:
    size, channels = model.preprocessing.image_size, model.preprocessing.channels
    return torch.from_numpy(np.random.default_rng(many).normal(size=(many, channels, size, size)).astype(np.float32))
