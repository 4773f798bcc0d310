"""`python -m delta_tune`: commands that use a finished study. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from delta_tune.cli.launch import EXIT_MISTAKE
from delta_tune.config import UserError, visible
from delta_tune.console.streams import tolerant_output
from delta_tune.inference.formats import SUFFIXES

if TYPE_CHECKING:
    from delta_tune.inference.model import Prediction

MODEL_FOLDER = "Folder of a study, or its best/; local or at s3://…"
FLIP = "Average the image and its mirror image, which takes twice as long"


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    p = argparse.ArgumentParser(
        prog="python -m delta_tune",
        description="Use a finished study; `python launch.py` starts one.",
        allow_abbrev=False,
    )
    commands = p.add_subparsers(title="commands", required=True, metavar="COMMAND")
    predict = _command(commands, "predict", _predict, "Classify images")
    predict.add_argument("folder", metavar="FOLDER", help=MODEL_FOLDER)
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="Image files, or folders of them")
    predict.add_argument(
        "--top",
        type=int,
        default=2,
        metavar="K",
        help="Number of classes to show (2); with several labels an image, at least all that are there",
    )
    predict.add_argument("--device", default="cpu", metavar="DEVICE", help="Where to compute, such as cuda (cpu)")
    predict.add_argument("--flip", action="store_true", help=FLIP)
    predict.add_argument(
        "--min-confidence",
        metavar="X|auto",
        help="Mark predictions with a lower probability as unsure; auto is what the study found",
    )
    predict.add_argument("--json", action="store_true", help="Print the probability of every class as JSON")
    export = _command(commands, "export", _export, "Write the model for other programs")
    export.add_argument("folder", metavar="FOLDER", help=MODEL_FOLDER)
    export.add_argument("--format", choices=tuple(SUFFIXES), required=True, help="Format of the file")
    export.add_argument("--flip", action="store_true", help=f"{FLIP}; not with state_dict")
    export.add_argument(
        "--output", type=Path, metavar="FILE", help="File to write (model.onnx, model.pt or model.pth, by format)"
    )
    report = _command(commands, "report", _report, "Write report.html again from the tables")
    report.add_argument("folder", metavar="FOLDER", help="Folder of a study")
    compare = _command(commands, "compare", _compare, "Put studies side by side")
    compare.add_argument("folders", nargs="+", metavar="FOLDER", help="Folders of studies")
    compare.add_argument("--json", action="store_true", help="Print the comparison as JSON")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 2 for a user's mistake."""
    with tolerant_output():
        given = parser().parse_args((sys.argv[1:] if arguments is None else arguments) or ["--help"])
        try:
            given.run(given)
        except UserError as error:
            print(f"delta_tune: {error}", file=sys.stderr)
            return EXIT_MISTAKE
        return 0


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], help: str) -> Any:
    command = commands.add_parser(name, help=help, description=f"{help}.", allow_abbrev=False)
    command.set_defaults(run=run)
    return command


def _predict(given: argparse.Namespace) -> None:
    from delta_tune.data.sources.image_folder import list_images
    from delta_tune.inference.model import load

    if given.top < 1:
        raise UserError(f"--top must be ≥ 1, but got {given.top}.")
    least = _min_confidence(given.min_confidence)
    model = load(given.folder, given.device, flip=given.flip)
    names = [name for image in given.images for name in (list_images(image) if os.path.isdir(image) else [image])]
    images = names[0] if len(names) == 1 else names  # a single one that is unreadable has no rows
    predictions = model.predict(images, min_confidence=least)
    if given.json:
        rows = [{"image": str(n), **dataclasses.asdict(p)} for n, p in zip(names, predictions, strict=True)]
        print(json.dumps(rows, indent=2))
    else:
        show = _print_predictions if model.thresholds is None else _print_labels
        show(names, predictions, given.top)
    errors = [prediction.error for prediction in predictions if prediction.error]
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        raise UserError(
            f"{len(errors)} of {len(names)} images cannot be read, as their rows say; repair them, or leave them out."
        )


def _min_confidence(text: str | None) -> float | Literal["auto"] | None:
    if text is None:
        return None
    if text == "auto":
        return "auto"
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"--min-confidence must be a number from 0 to 1, or auto, but got {text}.")
    return value


def _print_predictions(names: Sequence[str | Path], predictions: Sequence[Prediction], top: int) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "label", "probability", *(["then"] if top > 1 else []))
    for name, prediction in zip(names, predictions, strict=True):
        if prediction.label is None or prediction.probability is None:
            table.add_row(visible(str(name)), visible(prediction.error or ""))
            continue
        label = f"unsure ({prediction.label}?)" if prediction.unsure else prediction.label
        cells = [str(name), label, f"{100 * prediction.probability:.1f} %"]
        if top > 1:
            others = sorted(prediction.probabilities.items(), key=lambda item: -item[1])[1:top]
            cells.append(", ".join(f"{label} {100 * probability:.1f} %" for label, probability in others))
        table.add_row(*map(visible, cells))
    Console(highlight=False, markup=False, emoji=False).print(table)


def _print_labels(names: Sequence[str | Path], predictions: Sequence[Prediction], top: int) -> None:
    """The labels that are there, and the next ones, as far as `top` labels are not there yet."""
    from rich.console import Console
    from rich.table import Table

    table = Table("image", "labels", "then")
    for name, prediction in zip(names, predictions, strict=True):
        if prediction.error is not None:
            table.add_row(visible(str(name)), visible(prediction.error))
            continue
        share, there = prediction.probabilities, prediction.labels
        others = sorted(share.keys() - set(there), key=lambda label: -share[label])[: max(0, top - len(there))]
        cells = [", ".join(f"{label} {100 * share[label]:.1f} %" for label in labels) for labels in (there, others)]
        said = cells[0] or "none"
        table.add_row(*map(visible, (str(name), f"unsure ({said})" if prediction.unsure else said, cells[1])))
    Console(highlight=False, markup=False, emoji=False).print(table)


def _export(given: argparse.Namespace) -> None:
    from delta_tune.console.format import format_bytes
    from delta_tune.inference.export import export_model
    from delta_tune.inference.model import load

    file: Path = given.output or Path(f"model{SUFFIXES[given.format]}")
    if not file.absolute().parent.is_dir():
        raise UserError(f"--output {file} has no folder to lie in; make {file.absolute().parent} first.")
    if file.is_dir():
        raise UserError(f"--output {file} is a folder; give a file, such as {file / f'model{SUFFIXES[given.format]}'}.")
    model = load(given.folder, flip=given.flip)
    try:
        written = export_model(model, given.format, file)
    except OSError as error:
        raise UserError(f"--output {file} cannot be written ({error.strerror}); give another file.") from error
    for each in written:
        print(visible(f"{each}: {format_bytes(each.stat().st_size)}"))


def _local_folder(command: str, folder: str) -> str:
    from delta_tune.filesystem.uris import is_uri

    if is_uri(folder):
        raise UserError(f"{command} takes a folder on this machine, but got {folder}; copy it here first.")
    return folder


def _report(given: argparse.Namespace) -> None:
    from delta_tune.report.page import write_report

    print(visible(str(write_report(_local_folder("report", given.folder)))))


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A study's column of the table: name → cell."""
    from delta_tune.console.format import format_duration, format_score

    accuracy, interval = row["accuracy"], row["interval"]
    exact = " exact matches" if row["task"] == "multilabel" else ""
    return {
        "study": row["study"] + ("" if row["finished"] else " (unfinished)"),
        "data": Path(row["data"]).name,
        "images": ", ".join(f"{count} {split}" for split, count in row["images"].items()) or "–",
        "model": row["model"],
        "method": row["method"] or "–",
        "best": "–" if row["best"] is None else f"{row['metric']} {format_score(row['metric'], row['best'])}",
        "accuracy": "–" if accuracy is None else f"{row['accuracy_of']} {100 * accuracy:.1f} %{exact}",
        "95 % interval": "–" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %",
        "trials": ", ".join(f"{count} {state}" for state, count in row["trials"].items()),
        "epochs": str(row["epochs"]),
        "time": "–" if row["seconds"] is None else format_duration(row["seconds"]),
    }


def _compare(given: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from delta_tune.results.comparison import comparability_notes, compare_studies

    rows = compare_studies([_local_folder("compare", folder) for folder in given.folders])
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    columns = [_cells(row) for row in rows]
    first, *lines = ([name, *(visible(column[name]) for column in columns)] for name in columns[0])
    table = Table(
        *(Column(cell, overflow="fold") for cell in first)
    )  # one column per study: 80 characters hold two or three
    for line in lines:
        table.add_row(*line)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    for sentence in comparability_notes(rows):
        console.print(sentence)
