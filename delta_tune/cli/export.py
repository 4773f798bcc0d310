"""`python -m delta_tune export`: the model as a file for other programs, or as a folder for another library."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from delta_tune.cli import reduced_export
from delta_tune.cli.model_flags import FLIP, MODEL_FOLDER
from delta_tune.config import UserError, visible
from delta_tune.export.formats import FOLDERS, INPUTS, SUFFIXES


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    command.add_argument("folder", metavar="FOLDER", help=MODEL_FOLDER)
    command.add_argument("--format", choices=(*SUFFIXES, *FOLDERS), required=True, help="Format of the file or folder")
    command.add_argument("--flip", action="store_true", help=f"{FLIP}; not with state_dict, timm, torchvision, hf")
    command.add_argument(
        "--inputs",
        choices=INPUTS,
        default="pixels",
        help="pixels: the file takes images of any size and gives probabilities; normalized: it is the network alone, "
        "and takes images that are resized and normalised, to logits; of files, not with state_dict (default: pixels)",
    )
    command.add_argument(
        "--embeddings",
        action="store_true",
        help="A second output: what the network's last layer sees of an image; of files, not with state_dict",
    )
    reduced_export.add_flags(command)
    command.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="File to write (model with the ending of the format), or folder (model-timm, model-hf …)",
    )


def run(given: argparse.Namespace) -> None:
    """Run the command."""
    reduced_export.check_flags(given)
    if given.format in FOLDERS:
        _export_folder(given)
        return
    from delta_tune.console.format import format_bytes
    from delta_tune.export.model_file import export_model
    from delta_tune.inference.model import load

    file: Path = given.output or Path(f"model{SUFFIXES[given.format]}")
    if not os.path.isdir(file.absolute().parent):
        raise UserError(f"--output {file} has no folder to lie in; make {file.absolute().parent} first.")
    if os.path.isdir(file):
        raise UserError(f"--output {file} is a folder; give a file, such as {file / f'model{SUFFIXES[given.format]}'}.")
    model = load(given.folder, flip=given.flip)
    if given.precision != "float32":
        reduced_export.run(given, model, file)
        return
    try:
        written = export_model(model, given.format, file, inputs=given.inputs, embeddings=given.embeddings)
    except OSError as error:
        raise UserError(f"--output {file} cannot be written ({error.strerror}); give another file.") from error
    for each in written:
        print(visible(f"{each}: {format_bytes(each.stat().st_size)}"))


def _export_folder(given: argparse.Namespace) -> None:
    from delta_tune.console.format import format_bytes
    from delta_tune.export.folder_card import upload_command
    from delta_tune.export.model_as_folder import check_place, export_folder, study_of
    from delta_tune.inference.model import load

    if given.embeddings or given.inputs != "pixels":
        flag = "--embeddings" if given.embeddings else f"--inputs {given.inputs}"
        raise UserError(f"{flag} is of formats that are files; leave it out with --format {given.format}.")
    folder: Path = given.output or Path(FOLDERS[given.format])
    if not os.path.isdir(folder.absolute().parent):
        raise UserError(f"--output {folder} has no folder to lie in; make {folder.absolute().parent} first.")
    try:
        check_place(folder)
        model = load(given.folder, flip=given.flip)
        lines = export_folder(model, given.format, folder, study_of(given.folder))
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error.strerror}); give another folder.") from error
    for each in sorted(folder.iterdir()):
        print(visible(f"{each}: {format_bytes(each.stat().st_size)}"))
    print(f"\n{lines}\n{visible(upload_command(str(folder)))}")
