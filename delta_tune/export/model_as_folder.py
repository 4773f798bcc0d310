"""Export a model as a folder that another library loads by itself."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from delta_tune.config import UserError
from delta_tune.export.check import ExportMismatch, check_file
from delta_tune.export.folder_card import folder_card
from delta_tune.export.formats import FolderFormat
from delta_tune.export.hf_folder import check_transformers, hf_folder
from delta_tune.export.library_folder import LibraryFolder
from delta_tune.export.network import CalibratedNetwork
from delta_tune.export.timm_folder import timm_folder
from delta_tune.export.torchvision_folder import torchvision_folder
from delta_tune.filesystem.atomic import PARTIAL, write_json
from delta_tune.filesystem.untrusted import read_json
from delta_tune.inference.model import Model
from delta_tune.inference.study_of_model import study_of_model
from delta_tune.models.hooked_layers import first_line
from delta_tune.results.layout import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from delta_tune.results.study_record import StudyRecord

ORIGIN_FILE = "delta_tune.json"
"""What other libraries have no place for; by it an exported folder is known, so that it may be replaced."""
_OURS = {CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, ORIGIN_FILE}
_FORMS: dict[FolderFormat, Callable[[Model], LibraryFolder]] = {
    "timm": timm_folder,
    "torchvision": torchvision_folder,
    "hf": hf_folder,
}
_REFUSALS = (RuntimeError, ValueError, TypeError, AssertionError, KeyError, AttributeError, OSError)
"""What libraries raise of weights or a configuration that they do not take."""


def check_place(folder: Path) -> None:
    """Check that a folder may be written.

    Raises:
        UserError: it is there already and no earlier export, or has no name of its own, as `..` has not.
    """
    if folder.name in ("", ".."):
        raise UserError(f"--output {folder} has no name; give one for the new folder, such as {folder / 'model'}.")
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"--output {folder} is there already and no folder; give a new one.")
    if not folder.is_dir() or not (there := {each.name for each in folder.iterdir()}):
        return
    try:
        known = there <= _OURS and "format" in read_json(folder / ORIGIN_FILE, dict[str, Any])
    except (OSError, ValueError):
        known = False
    if not known:
        foreign = min(there - _OURS, default=CONFIG_FILE)
        raise UserError(f"--output {folder} holds {foreign!a}, which is of no earlier export; give a new folder.")


def study_of(folder: str | Path) -> StudyRecord | None:
    """The record of the study whose model is exported; None if there is none, or it cannot be read: the model can."""
    try:
        return study_of_model(folder, "training")[1]
    except UserError:
        return None


def export_folder(model: Model, kind: FolderFormat, folder: Path, record: StudyRecord | None = None) -> str:
    """Export a model to `folder`, which appears whole or not at all.

    The library that it is meant for loads it, and its logits for random images are compared with the model's.

    Args:
        model: on CPU, in eval mode, of one network.
        kind: which library's.
        folder: to write; an earlier export is replaced.
        record: of the study that trained it, for the model card.

    Returns:
        The lines of Python that load it.

    Raises:
        UserError: `folder` is there and no earlier export, transformers is missing, the library cannot hold the model,
            or does not take what was written.
        ExportMismatch: the library computes something else.
    """
    if kind == "hf":
        check_transformers()
    check_place(folder)
    made = _FORMS[kind](model)
    partial = folder.with_name(f".{folder.name[:40]}.{secrets.token_hex(8)}{PARTIAL}")
    partial.mkdir()
    try:
        _write(model, kind, made, partial)
        (partial / CARD_FILE).write_text(folder_card(model, made, folder.name, record), encoding="utf-8")
        _check(model, kind, made, partial)
        _put(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made.load(str(folder))


def _write(model: Model, kind: FolderFormat, made: LibraryFolder, folder: Path) -> None:
    save_file(dict(made.state), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    for name, content in made.files.items():
        write_json(folder / name, content)
    write_json(
        folder / ORIGIN_FILE,
        {
            "format": kind,
            "delta_tune": metadata.version("delta-tune"),
            "backbone": model.config["backbone"]["model"],
            "task": model.kind.name,
            "classes": list(model.classes),
            **({"thresholds": model.thresholds} if model.thresholds is not None else {}),
            "temperature": {"value": model.temperature, "in_weights": True},
            "preprocessing": model.config["preprocessing"],
        },
    )


def _check(model: Model, kind: FolderFormat, made: LibraryFolder, folder: Path) -> None:
    advice = "give another --format, such as onnx or state_dict"
    try:
        read = made.read(folder)
    except _REFUSALS as error:
        raise UserError(
            f"{model.config['backbone']['model']} cannot be exported to {kind}: {made.library} does not load it "
            f"({type(error).__name__}: {first_line(error)[:200]}); {advice}."
        ) from error
    try:
        check_file(model, CalibratedNetwork(model).eval(), lambda images: (read(images),))
    except ExportMismatch as error:
        raise ExportMismatch(
            f"{model.config['backbone']['model']} cannot be exported to {kind}: {made.library}'s network computes "
            f"something else; {advice}."
        ) from error


def _put(partial: Path, folder: Path) -> None:
    """Give a finished folder its name; an earlier export there goes only then."""
    old = partial.with_suffix(".old")
    if folder.exists():
        folder.rename(old)
    try:
        partial.rename(folder)
    except OSError:
        if old.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)
