"""`python -m delta_tune export`: the model as a file for other programs, or as a folder for another library."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from delta_tune.cli import reduced_export
from delta_tune.cli.model_flags import FLIP, MODEL_FOLDER
from delta_tune.config import UserError, visible
from delta_tune.export.formats import FOLDERS, INPUTS, PRECISIONS, SUFFIXES

if TYPE_CHECKING:
    from delta_tune.inference.model import Model


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
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="Of weights and arithmetic: fp16 is half the size, int8 a quarter and faster on CPUs; what is lost is "
        "measured on the study's validation and test images, and refused above 1 point; with onnx (default: float32)",
    )
    command.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="Images to calibrate and score a reduced --precision with, in folders of their classes or without labels, "
        "instead of the study's own",
    )
    command.add_argument("--force", action="store_true", help="Keep a file of reduced --precision that loses more")
    reduced_export.add_flags(command)
    command.add_argument(
        "--output",
        type=Path,
        metavar="PATH",
        help="File to write (model with the ending of the format), or folder (model-timm, model-hf …)",
    )


def _check_precision(given: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is read.

    Raises:
        UserError: names the flag.
    """
    if given.precision == "float32":
        for flag, value in (("--calibration", given.calibration), ("--force", given.force)):
            if value:
                raise UserError(f"{flag} goes with --precision fp16 or int8; give one of them, or leave it out.")
    elif given.format != "onnx":
        raise UserError(f"--precision {given.precision} is for --format onnx, but got {given.format}; give onnx.")
    if given.calibration is not None and not given.calibration.exists():
        raise UserError(f"There is no --calibration {given.calibration}; give a folder of images.")


def run(given: argparse.Namespace) -> None:
    """Run the command."""
    _check_precision(given)
    if given.format in FOLDERS:
        _export_folder(given)
        return
    from delta_tune.console.format import format_bytes
    from delta_tune.export.model_file import export_model
    from delta_tune.inference.model import load

    file: Path = given.output or Path(f"model{SUFFIXES[given.format]}")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--output {file} has no folder to lie in; make {file.absolute().parent} first.")
    if file.is_dir():
        raise UserError(f"--output {file} is a folder; give a file, such as {file / f'model{SUFFIXES[given.format]}'}.")
    model = load(given.folder, flip=given.flip)
    if given.precision != "float32":
        return _export_reduced(given, model, file)
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
    if not folder.absolute().parent.is_dir():
        raise UserError(f"--output {folder} has no folder to lie in; make {folder.absolute().parent} first.")
    check_place(folder)
    model = load(given.folder, flip=given.flip)
    try:
        lines = export_folder(model, given.format, folder, study_of(given.folder))
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error.strerror}); give another folder.") from error
    for each in sorted(folder.iterdir()):
        print(visible(f"{each}: {format_bytes(each.stat().st_size)}"))
    print(f"\n{lines}\n{visible(upload_command(str(folder)))}")


def _export_reduced(given: argparse.Namespace, model: Model, file: Path) -> None:
    """Write a file in less than float32, print what it loses, and tell the model's card."""
    from rich.console import Console
    from rich.table import Table

    from delta_tune.console.format import format_bytes
    from delta_tune.export.calibration_folder import read_calibration
    from delta_tune.export.evidence import card_section, sentences, table
    from delta_tune.export.reduced_file import export_reduced
    from delta_tune.export.study_images import metric_of, read_study_images

    given_folder = given.calibration is not None
    images = read_calibration(model, given.calibration) if given_folder else read_study_images(model, given.folder)
    try:
        found = export_reduced(
            model,
            given.precision,
            file,
            images,
            metric=metric_of(given.folder),
            force=given.force,
            say=print,
            inputs=given.inputs,
            embeddings=given.embeddings,
        )
    except OSError as error:
        raise UserError(f"--output {file} cannot be written ({error.strerror}); give another file.") from error
    shown = Table("", "float32", given.precision)
    for row in table(found):
        shown.add_row(*row)
    Console(highlight=False, markup=False, emoji=False).print(shown)
    for sentence in sentences(found):
        print(sentence)
    print(visible(f"{file}: {format_bytes(file.stat().st_size)}"))
    if note := _tell_card(given.folder, *card_section(found)):
        print(visible(note))


def _tell_card(folder: str, title: str, text: str) -> str | None:
    """Write a section of the card of the model in a folder; return why that is not possible."""
    from delta_tune.filesystem.uris import is_uri
    from delta_tune.inference.model_card import write_card_section
    from delta_tune.results.layout import BEST, CARD_FILE

    if is_uri(folder):
        return f"The model card at {folder} is left as it is: only one on this machine is written to."
    best = Path(folder) / BEST if (Path(folder) / BEST).is_dir() else Path(folder)
    try:
        if write_card_section(best, title, text):
            return None
        return f"There is no {best / CARD_FILE} to write this to: the study has not ended."
    except (OSError, UnicodeDecodeError) as error:
        return f"{best / CARD_FILE} cannot be written ({error}); the file has the figures too."
