"""Which of the shipped spaces is searched where the user names none."""

from __future__ import annotations

from typing import Protocol

CONVOLUTIONAL = "search_spaces/delta.py"
TRANSFORMER = "search_spaces/transformer.py"


class _Network(Protocol):
    @property
    def prefers_adamw(self) -> bool: ...


def default_space(backbone: _Network) -> str:
    """The shipped space for a network: for those with layer norms and no batch norms its recipes have AdamW."""
    return TRANSFORMER if backbone.prefers_adamw else CONVOLUTIONAL


def default_space_note(backbone: _Network) -> str:
    """Why this is the space, in a sentence for the plan; empty if it is the usual one."""
    if not backbone.prefers_adamw:
        return ""
    return (
        f"{TRANSFORMER} is the default space for networks with layer norms and no batch norms: AdamW, layer decay and "
        "warm-up; give another with --space."
    )
