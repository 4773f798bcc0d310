"""The validation and test images of the study that a model comes from, read again long after its end."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import numpy as np

from delta_tune.config import Metric, UserError, visible
from delta_tune.data.cutting import CutData, cut_data
from delta_tune.data.images import Preprocessing
from delta_tune.data.label_map import read_label_map
from delta_tune.data.reader import read_examples
from delta_tune.data.sources.base import Examples
from delta_tune.data.splits import training_subset
from delta_tune.export.evidence import ScoredImages, SplitOfImages
from delta_tune.inference.model import Model
from delta_tune.inference.study_of_model import study_of_model
from delta_tune.labels.kinds import Labels
from delta_tune.results.remembered_studies import say_places, strange_places
from delta_tune.results.study_record import StudyRecord

MOST_IMAGES = 1000
"""At most about so many images of a split."""
INSTEAD = "give --calibration FOLDER, a folder of images such as those that the model will see"


def metric_of(folder: str | Path) -> Metric:
    """What the study of a model ranked its trials by; accuracy if there is no study."""
    try:
        return study_of_model(folder, "validation")[1].metric
    except UserError:
        return "val_accuracy"


def read_study_images(model: Model, folder: str | Path) -> list[ScoredImages]:
    """A stratified part of the study's own validation images, and of its test images, if it had some.

    Train is not read. What only the study's folder names is not opened: a stranger may have written it.

    Args:
        model: of the study.
        folder: the study's, or its `best/`, as for `load`.

    Raises:
        UserError: there is no study, or its data cannot be read, is not what it was, or was named by somebody else.
    """
    try:
        place, record = study_of_model(folder, "validation")
        return _read_all(model, place, record)
    except UserError as error:
        raise UserError(f"{str(error).rstrip('.')}. For --precision {INSTEAD}.") from error


def _read_all(model: Model, place: str, record: StudyRecord) -> list[ScoredImages]:
    settings = record.settings
    if strange := strange_places(settings, record.study_id, ("data", "label_map")):
        which = say_places(settings, strange)
        raise UserError(
            visible(f"{place} was not begun by you on this machine, so the {which} that it names is not read unasked.")
        )
    cut = cut_data(
        settings["data"],
        task=settings["task"],
        val_fraction=settings["val_fraction"],
        test_fraction=settings["test_fraction"],
        mapping=None if settings["label_map"] is None else read_label_map(settings["label_map"]),
        seed=settings["seed"],
    )
    _check_same(record, cut, model.classes)
    found = [_read(cut, "val", model, record.has_seen_val)]
    return [*found, *([_read(cut, "test", model, False)] if "test" in cut.chosen else [])]


def _check_same(record: StudyRecord, cut: CutData, classes: tuple[str, ...]) -> None:
    """Compare what can be compared before an image is read."""
    now = {name: len(cut.chosen[name]) for name in ("val", "test") if name in cut.chosen}
    was = {name: count for name, count in record.images.items() if name in ("val", "test")}
    damaged = bool(record.settings["skip_damaged"])  # they were counted no longer
    changed = was.keys() != now.keys() or any(
        now[name] < was[name] or (now[name] != was[name] and not damaged) for name in was
    )
    if (was and changed) or cut.classes != classes:
        told, found = (", ".join(f"{count} {name}" for name, count in counts.items()) for counts in (was, now))
        raise UserError(
            f"{record.settings['data']} is no longer the data of the study (images: {told} then, {found} now; "
            f"{len(classes)} classes then, {len(cut.classes)} now)."
        )


def _read(cut: CutData, name: Literal["val", "test"], model: Model, trained_on: bool) -> ScoredImages:
    part = read_part(name, cut.examples(name), cut.chosen[name], cut.labels_of(name), model.preprocessing)
    return dataclasses.replace(part, trained_on=trained_on)


def read_part(
    name: SplitOfImages, examples: Examples, numbers: np.ndarray, labels: Labels, preprocessing: Preprocessing
) -> ScoredImages:
    """A stratified part of images with labels; those that cannot be read are left out.

    Args:
        name: of the split.
        examples: hold the images.
        numbers: which of them, (N,).
        labels: of these, in the same order.
        preprocessing: of the network.

    Raises:
        UserError: none can be read.
    """
    part = np.arange(len(numbers))
    if len(numbers) > MOST_IMAGES:
        part = training_subset(labels, fraction=MOST_IMAGES / len(numbers), per_class=None, seed=0)
    read = read_examples(examples, numbers[part], preprocessing, keeper=None, leave_out=None, advance=lambda: None)
    if not len(read.kept):
        raise UserError(f"No image of {name} can be read ({str(read.damaged[0]).rstrip('.')}).")
    return ScoredImages(name, read.images.batch(np.arange(len(read.kept))), labels[part][read.kept])
