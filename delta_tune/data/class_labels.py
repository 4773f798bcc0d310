"""From the names that a source has to numbers: classes, and the labels of each split."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, cast

import numpy as np

from delta_tune.config import TaskName, UserError
from delta_tune.data.class_names import alike_notes, in_one_form, sorted_classes
from delta_tune.data.splits import format_list
from delta_tune.labels.kinds import Labels

Names = Sequence[str] | Sequence[tuple[str, ...]]
"""Of each example its class, or the names of its labels."""


def number_labels(
    names: Mapping[str, Names], examples: Mapping[str, Sequence[str]], task: Literal["auto"] | TaskName
) -> tuple[tuple[str, ...], dict[str, Labels], list[str]]:
    """The classes, which are those of train; the labels of each split; and notes on the names.

    Args:
        names: split → those of each example.
        examples: split → name of each example, for messages.
        task: what the user wants; `auto` takes what the data has.

    Raises:
        UserError: the data has several labels an image, or none, where one class is wanted; there are fewer than two
            classes; or val or test has one that train lacks.
    """
    several = {split: any(isinstance(each, tuple) for each in found) for split, found in names.items()}
    if task == "multilabel" or (task == "auto" and any(several.values())):
        return _number_several({split: _as_tuples(found) for split, found in names.items()})
    one = {split: _only_names(found, examples[split], split) for split, found in names.items()}
    class_names, notes = in_one_form(one)
    classes = sorted_classes(class_names)
    number = {name: label for label, name in enumerate(classes)}
    labels: dict[str, Labels] = {
        split: np.array([number[name] for name in found], dtype=np.int64) for split, found in class_names.items()
    }
    return classes, labels, notes + alike_notes(classes)


def _number_several(
    names: Mapping[str, Sequence[tuple[str, ...]]],
) -> tuple[tuple[str, ...], dict[str, Labels], list[str]]:
    flat, notes = in_one_form({split: [name for each in found for name in each] for split, found in names.items()})
    if names["train"] and not flat["train"]:
        raise UserError("No training image has a label; give images with at least two different labels.")
    classes = sorted_classes(flat)
    number = {name: label for label, name in enumerate(classes)}
    labels: dict[str, Labels] = {}
    for split, found in names.items():
        rows = np.repeat(np.arange(len(found)), [len(each) for each in found])
        labels[split] = np.zeros((len(found), len(classes)), dtype=np.float32)
        labels[split][rows, [number[name] for name in flat[split]]] = 1
    return classes, labels, notes + alike_notes(classes)


def _as_tuples(found: Names) -> list[tuple[str, ...]]:
    return [each if isinstance(each, tuple) else (each,) for each in found]


def _only_names(found: Names, examples: Sequence[str], split: str) -> Sequence[str]:
    """The one name of each example.

    Raises:
        UserError: an example has several, or none.
    """
    if not any(isinstance(each, tuple) for each in found):
        return cast(Sequence[str], found)
    tuples = _as_tuples(found)
    others = [f"{name} ({len(set(each))})" for name, each in zip(examples, tuples, strict=True) if len(set(each)) != 1]
    if others:
        raise UserError(
            f"--task classification needs one label for each image, but {len(others)} of {split} have none or several: "
            f"{format_list(others, 3)}; give --task multilabel, or mend their labels."
        )
    return [each[0] for each in tuples]
