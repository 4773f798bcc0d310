"""Training images as a model sees them, kept in the study's folder: a file that a stranger may have changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from delta_tune.config import as_utf8
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.untrusted import Picture, check, read_file
from delta_tune.labels.kinds import Labels

FILE_BYTES = 2**30
"""At most, of the file."""
NAME_BYTES = 4096
"""At most, of a name."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EmbeddedImages:
    """N images that a model was trained on, as it sees them."""

    embeddings: npt.NDArray[np.float16]
    """(N, D), of unit length; 0 for an image whose embedding is 0."""
    labels: Labels
    """Int64 (N,), positions among the model's classes; or, with several labels an image, float32 (N, K) of 0 and 1."""
    names: tuple[str, ...]
    thumbnails: tuple[bytes, ...]
    """JPEG."""
    num_all: int
    """Of so many images these are all, or a sample."""
    usual: npt.NDArray[np.float32]
    """What `usual_similarities` returns of them, (M,) in ascending order."""

    def __len__(self) -> int:
        return len(self.names)


def write_embedded(images: EmbeddedImages, key: str, file: Path) -> None:
    """Write a file that `read_embedded` reads with the same key.

    Raises:
        OSError: it cannot be written.
    """
    tensors: dict[str, np.ndarray] = {
        "key": np.frombuffer(key.encode(), dtype=np.uint8),
        "embeddings": images.embeddings,
        "labels": np.asarray(images.labels),
        "num_all": np.array([images.num_all], dtype=np.int64),
        "usual": images.usual,
        **_joined("names", [as_utf8(name).encode() for name in images.names]),
        **_joined("thumbnails", images.thumbnails),
    }
    with atomic_write(file) as partial:
        partial.write_bytes(safetensors.numpy.save(tensors))


def read_embedded(file: Path, key: str, width: int, num_classes: int) -> EmbeddedImages | None:
    """What `write_embedded` wrote; None if there is no file, or one of another key.

    Args:
        file: to read.
        key: of the weights and the data.
        width: of an embedding.
        num_classes: of the model.

    Raises:
        OSError, ValueError: it cannot be read, or is not what was written.
    """
    try:
        tensors = safetensors.numpy.load(read_file(file, FILE_BYTES))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (SafetensorError, KeyError) as error:  # KeyError: numbers of a type that NumPy lacks
        raise ValueError(str(error)) from None
    if "key" not in tensors or tensors["key"].tobytes() != key.encode():
        return None
    embeddings = _tensor(tensors, "embeddings", np.float16, (None, width))
    many = len(embeddings)
    if not np.isfinite(embeddings).all():
        raise ValueError("embeddings: a number is not finite")
    labels = _labels(tensors, many, num_classes)
    num_all = int(_tensor(tensors, "num_all", np.int64, (1,))[0])
    if not 1 <= many <= num_all:
        raise ValueError(f"num_all: {num_all} for {many} images")
    usual = _tensor(tensors, "usual", np.float32, (None,))
    if not ((usual[:-1] <= usual[1:]).all() and (np.abs(usual) <= 1).all() and len(usual) <= many):
        raise ValueError("usual: it is not in order, or outside of its range")
    names = [name.decode() for name in _split(tensors, "names", many, NAME_BYTES)]
    thumbnails = _split(tensors, "thumbnails", many, None)
    check(list[Picture], thumbnails)
    return EmbeddedImages(
        embeddings=embeddings,
        labels=labels,
        names=tuple(names),
        thumbnails=tuple(thumbnails),
        num_all=num_all,
        usual=usual,
    )


def _labels(tensors: dict[str, np.ndarray], many: int, num_classes: int) -> Labels:
    several = tensors.get("labels", np.empty(0)).ndim == 2
    if several:
        found = _tensor(tensors, "labels", np.float32, (many, num_classes))
        allowed = (found == 0) | (found == 1)
    else:
        found = _tensor(tensors, "labels", np.int64, (many,))
        allowed = (found >= 0) & (found < num_classes)
    if not allowed.all():
        raise ValueError("labels: a value is no label of the model")
    return found


def _tensor(tensors: dict[str, np.ndarray], name: str, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray:
    """A tensor of this type and shape, None for any length."""
    found = tensors.get(name)
    if found is None or found.dtype != dtype or found.ndim != len(shape):
        raise ValueError(f"{name}: it is missing, or of another type")
    if any(wanted not in (None, given) for wanted, given in zip(shape, found.shape, strict=True)):
        raise ValueError(f"{name}: its shape is {found.shape} instead of {shape}")
    return found


def _joined(name: str, parts: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Byte strings as two tensors: all bytes, and where each one ends."""
    ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return {name: np.frombuffer(b"".join(parts), dtype=np.uint8), f"{name}_end": ends}


def _split(tensors: dict[str, np.ndarray], name: str, many: int, longest: int | None) -> list[bytes]:
    content = _tensor(tensors, name, np.uint8, (None,)).tobytes()
    ends = _tensor(tensors, f"{name}_end", np.int64, (many,))
    sizes = np.diff(ends, prepend=0)
    if (sizes < 0).any() or ends[-1] != len(content) or (longest is not None and (sizes > longest).any()):
        raise ValueError(f"{name}_end: it does not cut {name} into {many} parts")
    starts = ends - sizes
    return [content[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
