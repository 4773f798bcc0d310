"""A TorchScript file, which needs libtorch alone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import torch

from delta_tune.export.check import check_file, random_images
from delta_tune.export.network import calibrated, output_of
from delta_tune.inference.model import Model
from delta_tune.results.layout import CONFIG_FILE

OF_THE_FOLDER = ("networks", "sha256", "temperature")
"""Keys of `config.json` that do not hold for a file that computes all by itself."""


def write_torch_script(model: Model, file: Path) -> None:
    network = calibrated(model).to(memory_format=torch.contiguous_format)
    told = {name: value for name, value in model.config.items() if name not in OF_THE_FOLDER}
    told["output"] = output_of(model)
    with warnings.catch_warnings():
        # PyTorch recommends torch.export, but its files need Python; TorchScript needs only libtorch
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", "`torch.jit", category)
        # Sizes become constants, which is right: the input size is fixed
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        traced = torch.jit.trace(network, random_images(model, 2))  # type: ignore[no-untyped-call]
        torch.jit.save(traced, str(file), _extra_files={CONFIG_FILE: json.dumps(told)})
        read = torch.jit.load(str(file))  # type: ignore[no-untyped-call]
    check_file(model, network, read)
