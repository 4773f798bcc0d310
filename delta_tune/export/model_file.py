"""Export a model to a file of one of the formats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from delta_tune.config import UserError
from delta_tune.export.formats import SUFFIXES, Format, Inputs
from delta_tune.export.onnx_file import check_packages, write_onnx
from delta_tune.export.state_dict import check_one_network, constructor_of, write_state_dict
from delta_tune.export.torch_archive import write_torch_archive
from delta_tune.export.torch_script import write_torch_script
from delta_tune.filesystem.atomic import atomic_write, write_json
from delta_tune.inference.model import Model
from delta_tune.models.hooked_layers import first_line

_WRITERS: dict[Format, Callable[..., None]] = {
    "onnx": write_onnx,
    "torchscript": write_torch_script,
    "torch_export": write_torch_archive,
}


def export_model(
    model: Model, kind: Format, file: Path, *, inputs: Inputs = "pixels", embeddings: bool = False
) -> tuple[Path, ...]:
    """Export a model to `file`, atomically.

    ONNX, TorchScript and the archive of `torch.export` map pixels to what `Model.predict` answers: uint8 images
    (N, H, W, C), of any height and width that a batch has in common, to calibrated probabilities, float32 (N, K). With
    `inputs` "normalized" they hold the network alone: float32 images (N, C, S, S), normalised as `best/config.json`
    says, to logits (N, K), divided by the model's temperature; their softmax, or with several labels an image the
    sigmoid of each, are the probabilities. N is any number. Classes, preprocessing, `input` and `output` are in the
    file too (ONNX: JSON in `metadata_props`, with task, thresholds, temperature and the confidence below which the
    model is unsure; the others: the extra file `config.json`).

    The state dict loads into torchvision's or timm's own constructor; a JSON file beside it, `FILE.json`, has the
    constructor's arguments, classes, preprocessing and temperature. Each file is read again by the library that it is
    meant for, and what it answers is compared.

    Args:
        model: on CPU, in eval mode.
        kind: format of the file.
        file: path to write.
        inputs: what the file takes.
        embeddings: whether there is a second output, `embeddings` (N, D): what the network's last layer sees, of
            several networks one after the other.

    Returns:
        The files written.

    Raises:
        UserError: ONNX's packages are missing, the network cannot be exported to this format, or a state dict is wanted
            of several networks or of one that sees mirror images, or with other inputs or outputs.
        ExportMismatch: for random images its answers and the model's differ by more than `SHARES` or `TOLERANCE`.
    """
    if kind == "onnx":
        check_packages()
    if kind == "state_dict":
        check_one_network(model)
        if embeddings or inputs != "pixels":
            flag = "--embeddings" if embeddings else "--inputs"
            raise UserError(f"A state dict has no inputs or outputs to choose; give {flag} with {', '.join(_WRITERS)}.")
    try:
        with atomic_write(file) as partial:
            if kind == "state_dict":
                write_state_dict(model, partial)
            else:
                _WRITERS[kind](model, partial, inputs, embeddings=embeddings)
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
