"""`python -m delta_tune predict`: what images show."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from delta_tune.cli.model_flags import FLIP, MODEL_FOLDER, parse_min_confidence
from delta_tune.cli.progress_bar import bar_on_stderr
from delta_tune.config import UserError, visible

if TYPE_CHECKING:
    from delta_tune.explanation.examined_images import ExaminedImages
    from delta_tune.explanation.nearest import NearestImages
    from delta_tune.inference.model import Model, Prediction


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    command.add_argument("folder", metavar="FOLDER", help=MODEL_FOLDER)
    command.add_argument("images", nargs="+", metavar="IMAGE", help="Image files, or folders of them")
    command.add_argument(
        "--top",
        type=int,
        default=2,
        metavar="K",
        help="Number of classes to show (2); with several labels an image, at least all that are there",
    )
    command.add_argument("--device", default="cpu", metavar="DEVICE", help="Where to compute, such as cuda (cpu)")
    command.add_argument("--flip", action="store_true", help=FLIP)
    command.add_argument(
        "--min-confidence",
        metavar="X|auto",
        help="Mark predictions with a lower probability as unsure; auto is what the study found",
    )
    command.add_argument(
        "--explain",
        type=Path,
        metavar="FILE.html",
        help="Write a page that shows where the model looks in each image, and how sure it is",
    )
    command.add_argument(
        "--min-typicality",
        type=float,
        metavar="X",
        help="Mark images as unsure whose typicality is below X, such as 0.05: the share of training images that are "
        "no closer to their nearest training image than the image is to its own. Reads the study's data once",
    )
    command.add_argument(
        "--data",
        metavar="DATA",
        help="The study's data, for --explain and --min-typicality, if it has moved or somebody else began the study",
    )
    command.add_argument("--json", action="store_true", help="Print the probability of every class as JSON")


def run(given: argparse.Namespace) -> None:
    """Run the command."""
    from delta_tune.data.sources.image_folder import list_images
    from delta_tune.inference.model import load

    if given.top < 1:
        raise UserError(f"--top must be ≥ 1, but got {given.top}.")
    least = None if given.min_confidence is None else parse_min_confidence(given.min_confidence)
    _check_typicality(given)
    if given.explain is not None:
        _check_page(given.explain)
    model = load(given.folder, given.device, flip=given.flip)
    names = [name for image in given.images for name in (list_images(image) if os.path.isdir(image) else [image])]
    images = names[0] if len(names) == 1 else names  # a single one that is unreadable has no rows
    examined = _examine(model, images, len(names), least, given)
    predictions = examined.predictions
    nearest = _nearest(model, examined, given)
    typicality: Sequence[float | None] = ()
    if given.min_typicality is not None:
        assert nearest is not None, "asked for"
        typicality = nearest.typicality
        predictions = _with_doubts(predictions, typicality, given.min_typicality)
    if given.json:
        rows = [{"image": str(n), **dataclasses.asdict(p)} for n, p in zip(names, predictions, strict=True)]
        for row, share in zip(rows, typicality, strict=False):
            row["typicality"] = share
        print(json.dumps(rows, indent=2))
    else:
        show = _print_predictions if model.thresholds is None else _print_labels
        show(names, predictions, given.top)
    if given.explain is not None:
        assert nearest is not None, "it is on the page"
        _explain(model, names, dataclasses.replace(examined, predictions=predictions), nearest, given)
    errors = [prediction.error for prediction in predictions if prediction.error]
    if len(errors) == 1:
        raise UserError(errors[0])
    if errors:
        raise UserError(
            f"{len(errors)} of {len(names)} images cannot be read, as their rows say; repair them, or leave them out."
        )


def _check_page(file: Path) -> None:
    """Raise UserError if no page of explanations can be written there."""
    from delta_tune.explanation.heat_maps import check_package

    check_package()
    if file.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--explain must be the name of an HTML file such as why.html, but got {file}.")
    if not file.parent.is_dir():
        raise UserError(f"--explain {file} lies in a folder that does not exist; make it, or give another.")
    if file.is_dir() or not os.access(file.parent, os.W_OK):
        raise UserError(f"--explain {file} cannot be written; give another file.")


def _check_typicality(given: argparse.Namespace) -> None:
    if given.min_typicality is not None and not 0 <= given.min_typicality <= 1:
        raise UserError(f"--min-typicality must be a number from 0 to 1, but got {given.min_typicality}.")
    if given.data is not None and given.explain is None and given.min_typicality is None:
        raise UserError("--data goes with --explain or --min-typicality, which look at training images; give one.")


def _examine(
    model: Model,
    images: str | Path | Sequence[str | Path],
    count: int,
    least: float | Literal["auto"] | None,
    given: argparse.Namespace,
) -> ExaminedImages:
    """The predictions of `count` images, and what is to be looked at further."""
    from delta_tune.explanation.examined_images import examine

    num_shown = 0
    if given.explain is not None:
        from delta_tune.report.explanation import MOST_IMAGES

        num_shown = MOST_IMAGES
    num_embedded = num_shown if given.min_typicality is None else count
    return examine(model, images, min_confidence=least, num_embedded=num_embedded, num_shown=num_shown)


def _nearest(model: Model, examined: ExaminedImages, given: argparse.Namespace) -> NearestImages | None:
    """The training images nearest to those that were embedded; None if nobody asks.

    Raises:
        UserError: there are none, and predictions depend on them.
    """
    if given.explain is None and given.min_typicality is None:
        return None
    from delta_tune.explanation.nearest import nearest_to_embeddings

    found = nearest_to_embeddings(model, given.folder, examined.embeddings, data=given.data, progress=bar_on_stderr())
    if given.min_typicality is not None and not found.are_known:
        raise UserError(f"--min-typicality needs the training images. {found.note}")
    return found


def _with_doubts(
    predictions: Sequence[Prediction], typicality: Sequence[float | None], least: float
) -> list[Prediction]:
    """The predictions, unsure too where the image is unlike the training images."""
    return [
        dataclasses.replace(each, unsure=each.unsure or (share is not None and share < least))
        for each, share in zip(predictions, typicality, strict=True)
    ]


def _explain(
    model: Model,
    names: Sequence[str | Path],
    examined: ExaminedImages,
    nearest: NearestImages,
    given: argparse.Namespace,
) -> None:
    from delta_tune.explanation.attended_channels import attention_beside
    from delta_tune.report.explanation import FIRST_CLASSES, MOST_IMAGES, write_explanations

    write_explanations(
        given.explain,
        model,
        names,
        examined,
        attention=attention_beside(given.folder, model.backbone_label),
        nearest=nearest,
        classes=max(FIRST_CLASSES, given.top),
    )
    if not given.json:
        left_out = f" of the first {MOST_IMAGES} images" if len(names) > MOST_IMAGES else ""
        print(visible(f"Explanations{left_out}: {given.explain}"))


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
