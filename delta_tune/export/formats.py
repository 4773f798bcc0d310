"""The formats that a model can be exported to. Without torch: the command line lists them in its help."""

from __future__ import annotations

from typing import Literal, get_args

Format = Literal["onnx", "torchscript", "torch_export", "state_dict"]
SUFFIXES: dict[Format, str] = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2", "state_dict": ".pth"}
"""Of the file in each format."""
FolderFormat = Literal["timm", "torchvision", "hf"]
FOLDERS: dict[FolderFormat, str] = {"timm": "model-timm", "torchvision": "model-torchvision", "hf": "model-hf"}
"""Name of the folder in each format that is a library's own."""
Reduced = Literal["fp16", "int8"]
PRECISIONS: tuple[Literal["float32"] | Reduced, ...] = ("float32", "fp16", "int8")
"""Of weights and arithmetic; the others than float32 for ONNX alone."""
Inputs = Literal["pixels", "normalized"]
INPUTS: tuple[Inputs, ...] = get_args(Inputs)
