"""List the examples of data and cut its splits by index, before an image is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from delta_tune.config import StudyConfig, TaskName, TrialConfig, UserError, fields_of
from delta_tune.data.class_labels import number_labels
from delta_tune.data.groups import group_notes, number_groups
from delta_tune.data.label_map import apply_label_map, read_label_map
from delta_tune.data.reading_notes import too_few_notes
from delta_tune.data.sources.base import Examples, Source
from delta_tune.data.sources.find import find_source
from delta_tune.data.splits import Indices, cut_splits, size_notes, training_subset
from delta_tune.labels.kinds import Labels

_DEMO_PER_CLASS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class CutData:
    """The examples of a data set, and which of them each split has."""

    source: Source
    classes: tuple[str, ...]
    labels: Mapping[str, Labels]
    """Of all examples of the splits that the source has."""
    groups: Mapping[str, Indices]
    """Of all examples of the splits that the source has; empty if it has no groups."""
    chosen: Mapping[str, Indices]
    """Split → positions of its examples, among those of the split that `origin` names."""
    notes: tuple[str, ...]
    """Sentences on the source and its classes."""
    cut_notes: tuple[str, ...]
    """Sentences on the splits that were cut."""

    def origin(self, split: str) -> str:
        """The source's split that a split is cut from: itself, or train."""
        return split if split in self.source.splits else "train"

    def examples(self, split: str) -> Examples:
        """Those that `chosen` counts by position."""
        return self.source.splits[self.origin(split)]

    def labels_of(self, split: str) -> Labels:
        """Of the split's own examples, in the order of `chosen`."""
        return self.labels[self.origin(split)][self.chosen[split]]

    def groups_of(self, split: str) -> Indices | None:
        """Of the split's own examples, in the order of `chosen`; None if the source has no groups."""
        return self.groups[self.origin(split)][self.chosen[split]] if self.groups else None


def list_examples(data: str | Path, seed: int, mapping: Mapping[str, str] | None) -> Source:
    """The examples of `data`, whose classes may be renamed or left out; workers call it, too.

    Raises:
        UserError: as `find_source` and `apply_label_map`.
    """
    source = find_source(data, seed=seed)
    return source if mapping is None else apply_label_map(source, mapping)


def cut_data(
    data: str | Path,
    *,
    task: Literal["auto"] | TaskName,
    val_fraction: float,
    test_fraction: float,
    mapping: Mapping[str, str] | None,
    seed: int,
) -> CutData:
    """List the examples and cut the splits that the source lacks from train, stratified and seeded.

    Args:
        data: as of a study.
        task: whether images have one class or several labels; `auto` is what the data has.
        val_fraction: part of train that becomes val where there is none, in (0, 1).
        test_fraction: part of train that becomes test where there is none, in [0, 1); 0 cuts none.
        mapping: of classes, as a label map has it.
        seed: of the splits, ≥ 0.

    Raises:
        UserError: the data is unusable.
    """
    source = list_examples(data, seed, mapping)
    classes, labels, notes = number_labels(
        {split: examples.labels for split, examples in source.splits.items()},
        {split: examples.names for split, examples in source.splits.items()},
        task,
    )
    groups = number_groups(source.splits)
    chosen = cut_splits(
        labels, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed, groups=groups.get("train")
    )
    cut_notes = []
    if test_fraction and "test" in labels:
        cut_notes.append(f"The data has its own test split, so test_fraction {test_fraction!r} is not used.")
    fractions = {"val": val_fraction, "test": test_fraction}
    fractions = {split: fractions[split] for split in fractions if split in chosen and split not in labels}
    cut_notes += (
        group_notes(groups, labels["train"], classes, chosen, fractions) if groups else size_notes(chosen, fractions)
    )
    return CutData(
        source=source,
        classes=classes,
        labels=labels,
        groups=groups,
        chosen=chosen,
        notes=(*source.notes, *notes),
        cut_notes=tuple(cut_notes),
    )


def with_less_train(cut: CutData, fraction: float | None, per_class: int | None, seed: int) -> CutData:
    """The same with a part of train; one of the two sizes is given, or neither, which leaves all of it.

    Args:
        cut: whose train is made smaller.
        fraction: of train, in (0, 1].
        per_class: images of each class, ≥ 1.
        seed: of the choice, ≥ 0.
    """
    if fraction is None and per_class is None:
        return cut
    labels = cut.labels_of("train")
    part = training_subset(labels, fraction=fraction, per_class=per_class, seed=seed)
    notes = too_few_notes(labels, cut.classes, per_class)
    train = cut.chosen["train"][part]
    return replace(cut, chosen={**cut.chosen, "train": train}, cut_notes=(*cut.cut_notes, *notes))


def cut_for_study(
    data: str | Path,
    *,
    task: Literal["auto"] | TaskName = "auto",
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    train_fraction: float | None = None,
    train_per_class: int | None = None,
    label_map: str | Path | None = None,
    seed: int = 0,
) -> CutData:
    """List the examples and cut the splits, as `cut_data`, and take the part of train that a study uses.

    With the same seed, a smaller `train_fraction` or `train_per_class` takes a subset of what a larger one takes.

    Args:
        data: as of `loading.load_dataset`.
        task: as of `cut_data`, as are `val_fraction` and `test_fraction`.
        train_fraction: part of what is then left of train that is used, in (0, 1].
        train_per_class: images of each class that are used instead, ≥ 1; the demo takes 10 if neither is given.
        label_map: file that renames, merges or leaves out classes; see `delta_tune.data.label_map`.
        seed: of the splits, ≥ 0.

    Raises:
        UserError: the data or an argument is unusable.
    """
    _check_arguments(val_fraction, test_fraction, train_fraction, train_per_class, seed)
    if data == "demo" and train_fraction is None and train_per_class is None:
        train_per_class = _DEMO_PER_CLASS
    mapping = None if label_map is None else read_label_map(label_map)
    cut = cut_data(data, task=task, val_fraction=val_fraction, test_fraction=test_fraction, mapping=mapping, seed=seed)
    return with_less_train(cut, train_fraction, train_per_class, seed)


def _check_arguments(
    val_fraction: float, test_fraction: float, train_fraction: float | None, train_per_class: int | None, seed: int
) -> None:
    allowed = fields_of(StudyConfig)
    allowed["val_fraction"].check_range(val_fraction)
    allowed["test_fraction"].check_range(test_fraction)
    allowed["train_fraction"].check_range(train_fraction)
    allowed["train_per_class"].check_range(train_per_class)
    fields_of(TrialConfig)["seed"].check_range(seed)
    if train_fraction is not None and train_per_class is not None:
        raise UserError(
            f"Only one of train_fraction and train_per_class may be given, but got {train_fraction!r} and "
            f"{train_per_class!r}; leave one out."
        )
