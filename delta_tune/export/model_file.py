"""Export a model to a file of one of the formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from delta_tune.config import UserError
from delta_tune.export.formats import SUFFIXES, Format
from delta_tune.export.onnx_file import check_packages, write_onnx
from delta_tune.export.state_dict import check_one_network, constructor_of, write_state_dict
from delta_tune.export.torch_script import write_torch_script
from delta_tune.filesystem.atomic import atomic_write, write_json
from delta_tune.inference.model import Model
from delta_tune.models.hooked_layers import first_line

_WRITERS: dict[Format, Callable[[Model, Path], None]] = {
    "onnx": write_onnx,
    "torchscript": write_torch_script,
    "state_dict": write_state_dict,
}


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
    if kind == "onnx":
        check_packages()
    if kind == "state_dict":
        check_one_network(model)
    try:
        with atomic_write(file) as partial:
            _WRITERS[kind](model, partial)
    except RuntimeError as error:  # the exporters', and load_state_dict's
        raise UserError(
            f"{model.config['backbone']['model']} cannot be exported to {kind} ({first_line(error)[:200]}); "
            f"give another --format, of {', '.join(SUFFIXES)}."
        ) from error
    if kind != "state_dict":
        return (file,)
    beside = file.with_name(f"{file.name}.json")
    write_json(beside, model.config | {"constructor": constructor_of(model)})
    return file, beside
