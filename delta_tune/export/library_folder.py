"""What a folder in the form of another library holds: the modules `timm_folder`, `torchvision_folder`, `hf_folder`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

Logits = Callable[[Tensor], Tensor]
"""Images (N, C, S, S), normalised, to logits (N, K)."""


@dataclass(frozen=True, kw_only=True)
class LibraryFolder:
    """A model in the form of another library.

    Attributes:
        library: its name on the Hugging Face Hub.
        packages: what `pip install` needs, for people.
        state: the weights, for `model.safetensors`.
        files: name of each JSON file → its content.
        load: from where the folder lies to the lines of Python that load it.
        predict: Python that predicts with what these lines have loaded.
        read: loads the folder by the library's own code.
        tags: of the Hub.
        notes: sentences on what the library does otherwise, in Markdown.
    """

    library: str
    packages: str
    state: Mapping[str, Tensor]
    files: Mapping[str, Mapping[str, Any]]
    load: Callable[[str], str]
    predict: str
    read: Callable[[Path], Logits]
    tags: tuple[str, ...]
    notes: tuple[str, ...]


def python_string(text: str) -> str:
    """`text` as a string of Python's, in ASCII and on one line."""
    return f'"{text}"' if text.isascii() and text.isprintable() and not set(text) & {'"', "\\"} else ascii(text)
