"""`python -m delta_tune export`: the model as a file for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from delta_tune.cli.model_flags import FLIP, MODEL_FOLDER
from delta_tune.config import UserError, visible
from delta_tune.export.formats import INPUTS, SUFFIXES


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    command.add_argument("folder", metavar="FOLDER", help=MODEL_FOLDER)
    command.add_argument("--format", choices=tuple(SUFFIXES), required=True, help="Format of the file")
    command.add_argument("--flip", action="store_true", help=f"{FLIP}; not with state_dict")
    command.add_argument(
        "--inputs",
        choices=INPUTS,
        default="pixels",
        help="pixels: the file takes images of any size and gives probabilities; normalized: it is the network alone, "
        "and takes images that are resized and normalised, to logits; not with state_dict (default: pixels)",
    )
    command.add_argument(
        "--embeddings",
        action="store_true",
        help="A second output: what the network's last layer sees of an image; not with state_dict",
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="File to write (model with the ending of the format)"
    )


def run(given: argparse.Namespace) -> None:
    """Run the command."""
    from delta_tune.console.format import format_bytes
    from delta_tune.export.model_file import export_model
    from delta_tune.inference.model import load

    file: Path = given.output or Path(f"model{SUFFIXES[given.format]}")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--output {file} has no folder to lie in; make {file.absolute().parent} first.")
    if file.is_dir():
        raise UserError(f"--output {file} is a folder; give a file, such as {file / f'model{SUFFIXES[given.format]}'}.")
    model = load(given.folder, flip=given.flip)
    try:
        written = export_model(model, given.format, file, inputs=given.inputs, embeddings=given.embeddings)
    except OSError as error:
        raise UserError(f"--output {file} cannot be written ({error.strerror}); give another file.") from error
    for each in written:
        print(visible(f"{each}: {format_bytes(each.stat().st_size)}"))
