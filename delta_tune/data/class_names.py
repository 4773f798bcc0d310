"""Names of classes: their order, one Unicode form for all, and notes on those that look alike."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

from delta_tune.config import UserError
from delta_tune.data.splits import format_list


def natural_order(name: str) -> tuple[list[int | str], str]:
    """Sort key that puts img2 before img10, and -1 before 0."""
    parts = re.split(r"(^-?\d+|\d+)", name)
    return [int(part) if position % 2 else part.casefold() for position, part in enumerate(parts)], name


def sorted_classes(labels: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The classes of train in natural order.

    Args:
        labels: split → class names of its examples.

    Raises:
        UserError: there are fewer than two classes, or val or test has one that train lacks.
    """
    classes = tuple(sorted(set(labels["train"]), key=natural_order))
    if not classes:
        raise UserError("The data has no training images; give at least one per class, better ten.")
    if len(classes) == 1:
        raise UserError(f"The data has only the class {classes[0]!r}; give at least two classes to tell apart.")
    for split, found in labels.items():
        if strange := sorted(set(found) - set(classes), key=natural_order):
            similar = [name for name in classes if _visible(name) == _visible(strange[0])]
            rename = f"rename it to {similar[0]!r}, " if similar else ""
            raise UserError(
                f"{split} has the class {format_list(strange, 3)}, which train does not have; {rename}add images of "
                f"it to train, or remove it from {split}."
            )
    return classes


def in_one_form(labels: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str]], list[str]]:
    """Class names in Unicode's composed form (NFC): file systems differ in how they write é.

    Args:
        labels: split → class names of its examples.

    Returns:
        The same with names in that form, and notes on those that were written in several forms.
    """
    names = {name: unicodedata.normalize("NFC", name) for found in labels.values() for name in set(found)}
    forms = defaultdict(list)
    for name, composed in names.items():
        forms[composed].append(name)
    notes = []
    if several := sorted((repr(name) for name, written in forms.items() if len(written) > 1), key=natural_order):
        notes.append(
            f"Classes whose names are written in several Unicode forms (NFC and NFD) were read as one: "
            f"{format_list(several, 3)}."
        )
    return {split: [names[name] for name in found] for split, found in labels.items()}, notes


def alike_notes(classes: Sequence[str]) -> list[str]:
    """A note on classes that differ only in case, blanks or invisible characters."""
    groups = defaultdict(list)
    for name in classes:
        groups[_visible(name)].append(repr(name))
    pairs = [" and ".join(group) for group in groups.values() if len(group) > 1]
    if not pairs:
        return []
    return [
        f"Classes that differ only in upper and lower case or blanks are different classes: {format_list(pairs, 3)}; "
        f"rename them if they are not."
    ]


def _visible(name: str) -> str:
    shown = (letter for letter in name if not letter.isspace() and unicodedata.category(letter) not in ("Cc", "Cf"))
    return unicodedata.normalize("NFC", "".join(shown).casefold())
