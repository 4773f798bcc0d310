"""The words by which names of files and folders say train, val or test."""

from __future__ import annotations

import re

from delta_tune.config import UserError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "dev": "val",
    "devel": "val",
    "development": "val",
    "eval": "val",
    "evaluation": "val",
    "test": "test",
    "testing": "test",
}
"""Word in lower case → the split that it means."""

_WORD = re.compile(r"[^\W\d_]+")
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_ENDINGS = ("sets", "set", "data", "split")


def splits_in(name: str) -> tuple[str, ...]:
    """The splits that a name says in whole words, sorted: `train` of `pets_train-00000-of-00002.parquet`.

    Words are separated by all but letters and by the capitals of `petsTest`; a capital elsewhere does not matter.
    `trainset` and `test_data` are such words too, `latest` and `trainer` are not.
    """
    words = (word.lower() for word in _WORD.findall(_CAPITAL.sub(" ", name)))
    return tuple(sorted({split for word in words if (split := _split_of(word))}))


def split_in(part: str) -> str | None:
    """The split that a name says, as `splits_in`; None if it says none.

    Raises:
        UserError: it says two.
    """
    found = splits_in(part)
    if len(found) > 1:
        raise UserError(f"{part!r} names {' and '.join(found)}, but can be only one split; rename it.")
    return found[0] if found else None


def _split_of(word: str) -> str | None:
    for ending in _ENDINGS:
        word = word.removesuffix(ending) or word
    return SPLIT_NAMES.get(word)
