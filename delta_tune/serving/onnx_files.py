"""Find the ONNX file of a folder, or let `export` write it, in a process of its own: that needs PyTorch."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from delta_tune.config import UserError
from delta_tune.results.layout import BEST, CONFIG_FILE, SERVED
from delta_tune.serving.installed_version import installed_version

SUFFIX = ".onnx"
KEY_DIGITS = 16


def onnx_file(place: str, *, flip: bool, new_folder: Callable[[], str]) -> Path:
    """The ONNX file of what a user named.

    Args:
        place: an ONNX file; the folder of a study or its `best/`, here or at an address such as s3://bucket/photos.
        flip: whether probabilities are the mean of those of an image and its mirror image.
        new_folder: makes a folder for a file that cannot be kept.

    Raises:
        UserError: there is no such file or model, or it cannot be exported.
    """
    path = Path(place)
    if path.is_file() or path.suffix == SUFFIX:
        if flip:
            raise UserError(f"--flip is decided when a file is exported; leave it out for {place}.")
        return path
    if "://" in place:
        return _export(place, Path(new_folder()) / f"model{SUFFIX}", flip)
    folder = path / BEST if (path / BEST / CONFIG_FILE).is_file() else path
    if not (folder / CONFIG_FILE).is_file():
        raise UserError(
            f"There is no model in {place}; give the folder of a study, its best/, or a file FILE.onnx of "
            f"`python -m delta_tune export`."
        )
    name = f"{_key(folder, flip)}{SUFFIX}"
    places = [folder / SERVED, *_user_cache()]
    for kept in places:
        if (kept / name).is_file():
            return kept / name
    for kept in places:
        try:
            kept.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(kept, os.W_OK):
            for old in kept.glob(f"*{SUFFIX}") if kept.parent == folder else ():
                old.unlink(missing_ok=True)
            return _export(str(folder), kept / name, flip)
    return _export(str(folder), Path(new_folder()) / name, flip)


def _export(folder: str, file: Path, flip: bool) -> Path:
    print(f"Exporting {folder} to {file}, once", flush=True)
    command = [sys.executable, "-m", "delta_tune", "export", folder, "--format", "onnx", "--output", str(file)]
    done = subprocess.run(
        [*command, *(["--flip"] if flip else [])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
    )
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1].removeprefix("delta_tune: ")
        raise UserError(f"{folder} could not be exported: {said}")
    return file


def _key(folder: Path, flip: bool) -> str:
    """Of everything that the file depends on."""
    total = hashlib.sha256(f"{installed_version()} {flip}".encode())
    for file in sorted([folder / CONFIG_FILE, *folder.glob("model*.safetensors")]):
        with file.open("rb") as content:
            total.update(file.name.encode() + hashlib.file_digest(content, "sha256").digest())
    return total.hexdigest()[:KEY_DIGITS]


def _user_cache() -> list[Path]:
    """A folder of the user's; none for one without a home, as in many containers."""
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        return []
    return [Path(base) / "delta-tune" / SERVED]
