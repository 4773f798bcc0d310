"""The error for users' mistakes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from delta_tune.config.masking import mask_secrets
from delta_tune.config.text import visible


class UserError(ValueError):
    """A mistake of the user's: one sentence with what was given, what is allowed and what to do.

    Passwords, tokens and keys in it are masked. The names in it may come from anywhere: as text it has no unseen
    characters, and a terminal prints it as it is.
    """

    def __str__(self) -> str:
        return visible(mask_secrets(super().__str__()))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` for a misspelt name, or nothing where none of `known` comes near."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(close)}?)" if close else ""
