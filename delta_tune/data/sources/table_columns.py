"""Which columns of a table are images, labels, splits and groups, by their names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from delta_tune.config import UserError, did_you_mean
from delta_tune.data.splits import format_list

IMAGE = (
    "image", "file_name", "filename", "file", "image_path", "filepath", "file_path", "path", "img", "image_file",
    "image_name", "img_path",
)  # fmt: skip
ONE_LABEL = ("label", "class", "class_name", "label_name", "category", "target")
SEVERAL_LABELS = ("labels", "classes", "tags", "categories", "targets")
SPLIT = ("split", "subset", "partition")
GROUP = ("group", "groups", "group_id")
"""The names of columns in lower case. The first one counts, whatever others there are."""
_LIKELY_GROUPS = ("patient", "patient_id", "patientid", "subject", "subject_id", "scene", "scene_id", "film", "video")
_NO_LABELS = ("", "unnamed: 0", "index", "id", "__index_level_0__")
"""Numbers of rows, as pandas writes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Columns:
    """The columns of a table, by what is in them."""

    image: str
    label: str | None
    """None where there is one column for each label."""
    flags: tuple[str, ...] = ()
    """Those columns: 1 where an image has the label, else 0."""
    split: str | None = None
    group: str | None = None
    likely_group: str | None = None
    """A column that seems to say what belongs together, where none is named so."""

    @property
    def holds_several(self) -> bool:
        """Whether the name of the column of labels is a plural."""
        return self.label is not None and is_plural(self.label)


def find_columns(table: str, names: Sequence[str], *, labels: bool = True) -> Columns:
    """The columns of a table.

    Args:
        table: how messages call it.
        names: of its columns.
        labels: whether it has labels; else it must have groups.

    Raises:
        UserError: there is none of images, or none of labels or groups, or several might be meant.
    """
    image = _one(table, names, IMAGE)
    if image is None:
        raise UserError(_lacks(table, "image", names))
    label = _one(table, names, (*ONE_LABEL, *SEVERAL_LABELS))
    split, group = _one(table, names, SPLIT), _one(table, names, GROUP)
    if not labels:
        if group is None:
            raise UserError(f"{table!r} has no column 'group': its columns are {format_list(names, 20)}; rename one.")
        return Columns(image=image, label=label, split=split, group=group)
    likely = next((name for name in names if _plain(name) in _LIKELY_GROUPS), None) if group is None else None
    flags: tuple[str, ...] = ()
    if label is None:
        taken = {image, split, group, likely}
        flags = tuple(name for name in names if name not in taken and _plain(name) not in _NO_LABELS)
        if len(flags) < 2:
            raise UserError(_lacks(table, "label", names))
        if twice := [name for name in flags if flags.count(name) > 1]:
            raise UserError(_several(table, names, twice[0]))
    return Columns(image=image, label=label, flags=flags, split=split, group=group, likely_group=likely)


def is_plural(column: str) -> bool:
    """Whether a column of this name holds several labels."""
    return _plain(column) in SEVERAL_LABELS


def has_columns(names: Sequence[str]) -> bool:
    """Whether a table with these columns may be a data set."""
    try:
        columns = find_columns("", names)
    except UserError:
        return False
    return columns.label is not None


def no_flags_error(table: str, names: Sequence[str], column: str, value: object) -> UserError:
    """The error of a table that has neither a column of labels nor one for each of them."""
    return UserError(
        f"{_lacks(table, 'label', names).removesuffix('.')}; or give one column of 0 and 1 for each label, but "
        f"{column!r} has {value!r}."
    )


def _one(table: str, names: Sequence[str], spellings: Sequence[str]) -> str | None:
    """The column of that name, or else the only one that is spelled in another usual way.

    Raises:
        UserError: there are several.
    """
    for wanted in (lambda name: name == spellings[0], lambda name: _plain(name) == spellings[0]):
        if found := [name for name in names if wanted(name)]:
            break
    else:
        found = [name for name in names if _plain(name) in spellings]
    if len(found) > 1 and len(set(found)) == 1:
        raise UserError(_several(table, names, found[0]))
    if len(found) > 1:
        raise UserError(
            f"{table!r} has the columns {' and '.join(map(repr, found))}; name the one that is meant {spellings[0]}."
        )
    return found[0] if found else None


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_")


def _lacks(table: str, column: str, names: Sequence[str]) -> str:
    return (
        f"{table!r} has no column {column!r}{did_you_mean(column, names)}: its columns are {format_list(names, 20)}; "
        f"rename them to image (encoded bytes, a struct with bytes, or paths) and label."
    )


def _several(table: str, names: Sequence[str], name: str) -> str:
    return f"{table!r} has {names.count(name)} columns {name!r}; leave one of them."
