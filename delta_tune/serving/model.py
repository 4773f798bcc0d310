"""An ONNX file of `export` with onnxruntime: squares of pixels in, probabilities out, and what its metadata says."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
from pydantic import BaseModel, Field

from delta_tune.config import TaskName, UserError
from delta_tune.data.fitting import Interpolation, Pixels, Resize, unbordered
from delta_tune.data.images import Preprocessing
from delta_tune.filesystem.untrusted import Number, Share, Text, parse_json

INPUT, OUTPUT = "images", "probabilities"
MAX_SIDE = 16_384
ERRORS_ONLY = 3
"""Severity of onnxruntime's own log."""


class FilePreprocessing(BaseModel, extra="forbid"):
    """The fields of `Preprocessing`; one that is not known here would change the pixels."""

    image_size: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    stored_size: Annotated[int, Field(ge=1, le=MAX_SIDE)]
    mean: list[Number]
    std: list[Number]
    interpolation: Interpolation
    resize: Resize = "crop"
    channels: Annotated[int, Field(ge=1, le=64)] = 3
    white: Annotated[float, Field(gt=0)] | None = None


class FileUnsure(BaseModel):
    """Below which probability the study found the model to be unsure."""

    below: Share


SCHEMAS: dict[str, Any] = {
    "classes": Annotated[list[Text], Field(min_length=1)],
    "preprocessing": FilePreprocessing,
    "task": TaskName,
    "thresholds": list[Share] | None,
    "temperature": Number | None,
    "unsure": FileUnsure | None,
}
"""Metadata of the file that prediction needs; each value is JSON."""
NEEDED = ("classes", "preprocessing")


@dataclass(frozen=True, slots=True, eq=False)
class ServedModel:
    """A model with its classes and preprocessing."""

    session: onnxruntime.InferenceSession
    name: str
    """Of the file."""
    sha256: str
    size: int
    """Bytes of the file."""
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    thresholds: tuple[float, ...] | None
    """With several labels an image, from which probability on each is there, (K,)."""
    unsure_below: float | None
    metadata: dict[str, Any]
    """All of the file's."""

    @property
    def several_labels(self) -> bool:
        """Whether an image may have several labels."""
        return self.thresholds is not None

    def probabilities(self, squares: Pixels) -> np.ndarray:
        """Probabilities (N, K) of squares (N, stored_size, stored_size, C); may be called in several threads.

        Raises:
            ArithmeticError: they are not finite, or not a row for each square.
        """
        images = unbordered(squares, self.preprocessing.image_size, self.preprocessing.resize)
        found: np.ndarray = self.session.run([OUTPUT], {INPUT: images})[0]
        if found.shape != (wanted := (len(squares), len(self.classes))):
            raise ArithmeticError(f"The model returns numbers of shape {found.shape}, not {wanted}.")
        if not np.isfinite(found).all():
            raise ArithmeticError("The model returns no finite numbers.")
        return found


def open_model(file: Path, threads: int = 1) -> ServedModel:
    """Open an ONNX file that `export` wrote, and let it see a grey image.

    Args:
        file: to open.
        threads: that compute one batch.

    Raises:
        UserError: it is missing, damaged, or not of the form that takes pixels.
    """
    advice = "give a file that `python -m delta_tune export FOLDER --format onnx` wrote"
    try:
        with file.open("rb") as content:
            sha256 = hashlib.file_digest(content, "sha256").hexdigest()
        session = onnxruntime.InferenceSession(str(file), _options(threads), providers=["CPUExecutionProvider"])
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); {advice}.") from error
    except Exception as error:  # onnxruntime's have no common ancestor
        raise UserError(f"{file} is no ONNX file that onnxruntime reads ({_first_line(error)}); {advice}.") from error
    _check_form(session, file)
    metadata = _metadata(session, file)
    given = {name: metadata[name] for name in SCHEMAS if name in metadata}
    stored: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given["preprocessing"].items()}
    thresholds = given.get("thresholds")
    if given.get("task") == "multilabel":
        thresholds = thresholds or [0.5] * len(given["classes"])
    if thresholds is not None and len(thresholds) != len(given["classes"]):
        raise UserError(f"{file} has {len(thresholds)} thresholds for {len(given['classes'])} classes; {advice}.")
    model = ServedModel(
        session,
        file.name,
        sha256,
        file.stat().st_size,
        tuple(given["classes"]),
        Preprocessing(**stored),
        None if thresholds is None else tuple(thresholds),
        None if thresholds is not None or given.get("unsure") is None else float(given["unsure"]["below"]),
        metadata,
    )
    _try(model, file)
    return model


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # what spins takes time from decoding
    options.log_severity_level = ERRORS_ONLY
    return options


def _check_form(session: onnxruntime.InferenceSession, file: Path) -> None:
    inputs = {each.name: each.type for each in session.get_inputs()}
    outputs = [each.name for each in session.get_outputs()]
    if inputs != {INPUT: "tensor(uint8)"} or OUTPUT not in outputs:
        raise UserError(
            f"{file} takes {', '.join(f'{name}: {kind}' for name, kind in inputs.items())[:200]} instead of pixels "
            f"(images: uint8) and gives {', '.join(outputs)[:200]}; export it again with --inputs pixels."
        )


def _metadata(session: onnxruntime.InferenceSession, file: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, text in session.get_modelmeta().custom_metadata_map.items():
        try:
            found[name] = parse_json(text, SCHEMAS.get(name, Any))
        except ValueError as error:
            if name in SCHEMAS:
                raise UserError(f"{file} is damaged (metadata {name}: {error}); export it again.") from None
            found[name] = text
    if missing := [name for name in NEEDED if name not in found]:
        raise UserError(f"{file} does not say {' and '.join(missing)} in its metadata; export it with this package.")
    return found


def _try(model: ServedModel, file: Path) -> None:
    size = model.preprocessing.stored_size
    grey = np.full((2, size, size, model.preprocessing.channels), 128, dtype=np.uint8)
    try:
        model.probabilities(grey)
    except Exception as error:  # see above
        raise UserError(f"{file} cannot predict ({_first_line(error)}); export it again.") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def as_json(value: Any) -> bytes:
    """A value as ASCII: class names may be no UTF-8."""
    return json.dumps(value, allow_nan=False).encode("ascii")
