"""Images that a user names to calibrate and score a reduced file: a folder of images, or of folders of classes."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np

from delta_tune.config import UserError
from delta_tune.data.cutting import list_examples
from delta_tune.data.images import DamagedImage, Preprocessing, read_square
from delta_tune.data.sources.base import Examples
from delta_tune.data.sources.image_folder import list_images
from delta_tune.data.splits import format_list
from delta_tune.export.evidence import ScoredImages, SplitOfImages
from delta_tune.export.study_images import MOST_IMAGES, read_part
from delta_tune.inference.model import Model
from delta_tune.labels.kinds import Labels


def read_calibration(model: Model, folder: Path) -> list[ScoredImages]:
    """The images of a folder, with labels if it has folders of classes or a table.

    Of a data set with splits they are those of validation, or of train if there is none, and those of test.

    Args:
        model: to be reduced.
        folder: of images, or a file or folder that `--data` of a study may be.

    Raises:
        UserError: there are no images, none can be read, or they have classes that the model does not know.
    """
    try:
        source = list_examples(folder, 0, None)
    except UserError as error:
        try:
            return [_without_labels(folder, model.preprocessing)]
        except UserError:
            raise error from None
    calibrating = [name for name in ("val", "train") if name in source.splits][:1]
    names = [*calibrating, *(["test"] if "test" in source.splits else [])]
    found = []
    for name in names:
        examples = source.splits[name]
        labels = _numbered(examples, model.classes, model.thresholds is not None, folder)
        told: SplitOfImages = "test" if name == "test" else "calibration"
        try:
            found.append(read_part(told, examples, np.arange(len(labels)), labels, model.preprocessing))
        except UserError as error:
            raise _none_readable(folder) from error
    return found


def _without_labels(folder: Path, preprocessing: Preprocessing) -> ScoredImages:
    files = list_images(folder)
    chosen = np.sort(np.random.default_rng(0).permutation(len(files))[:MOST_IMAGES])
    squares = []
    for number in chosen.tolist():
        try:
            squares.append(read_square(files[number], preprocessing))
        except DamagedImage:  # others are enough
            continue
    if not squares:
        raise _none_readable(folder)
    return ScoredImages("calibration", np.stack(squares), None)


def _none_readable(folder: Path) -> UserError:
    return UserError(f"No image in --calibration {folder} can be read; give others.")


def _numbered(examples: Examples, classes: tuple[str, ...], several: bool, folder: Path) -> Labels:
    number = {name: position for position, name in enumerate(classes)}
    told = [each if isinstance(each, tuple) else (each,) for each in examples.labels]
    rows = [[unicodedata.normalize("NFC", name) for name in each] for each in told]
    if strange := sorted({name for row in rows for name in row} - number.keys()):
        raise UserError(
            f"--calibration {folder} has the class {format_list([repr(name) for name in strange], 3)}, which the model "
            f"does not know; give images of its classes, or a folder of images without classes."
        )
    if several:
        labels = np.zeros((len(rows), len(classes)), dtype=np.float32)
        for position, row in enumerate(rows):
            labels[position, [number[name] for name in row]] = 1
        return labels
    if any(len(set(row)) != 1 for row in rows):
        raise UserError(
            f"--calibration {folder} has images with several labels or none, and the model answers with one; give "
            f"images with one label, or a folder of images without classes."
        )
    return np.array([number[row[0]] for row in rows], dtype=np.int64)
