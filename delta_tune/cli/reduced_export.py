"""The flags of `export` for ONNX files in less than float32, and what is printed of them."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from delta_tune.config import UserError, visible
from delta_tune.export.formats import PRECISIONS

if TYPE_CHECKING:
    from delta_tune.inference.model import Model


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags."""
    command.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="float32",
        help="Of weights and arithmetic, with onnx: fp16 is half the size, int8 a third or less and faster on CPUs; "
        "what is lost is measured on the study's validation and test images, and refused above 1 point "
        "(default: float32)",
    )
    command.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="Images to calibrate and score a reduced --precision with, in folders of their classes or without labels, "
        "instead of the study's own",
    )
    command.add_argument("--force", action="store_true", help="Keep a file of reduced --precision that loses more")


def check_flags(given: argparse.Namespace) -> None:
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
    if given.calibration is not None and not os.path.exists(given.calibration):
        raise UserError(f"There is no --calibration {given.calibration}; give a folder of images.")


def run(given: argparse.Namespace, model: Model, file: Path) -> None:
    """Write a file in less than float32, print what it loses, and tell the model's card."""
    from rich.console import Console
    from rich.table import Table

    from delta_tune.export.onnx_file import check_packages

    check_packages()  # the modules below import them
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
