"""Which studies this user began here, and with which places: kept outside of their folders, under the studies' ids."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from delta_tune.filesystem.atomic import write_json

SAFE: Mapping[str, tuple[Any, ...]] = {
    "data": ("demo",),
    "label_map": (None,),
    "weights": ("demo", "default", None),
    "space": (None,),
    "address": ("local", None),
    "start_from": (None,),
    "cache": (None,),
    "scratch": (None,),
    "storage": (None,),
    "mlflow": (None,),
    "wandb": (None,),
}
"""Settings that name a place, and the values that anybody may have written: they lead nowhere."""


def is_safe(name: str, value: Any) -> bool:
    """Whether a setting among the keys of `SAFE` leads nowhere; weights may be several, separated by commas."""
    parts = value.split(",") if name == "weights" and isinstance(value, str) else [value]
    return all(any(part == safe for safe in SAFE[name]) for part in parts)


def new_id() -> str:
    """An id that no other study has."""
    return secrets.token_hex(16)


def state_folder() -> Path:
    """Where a user's studies are remembered.

    Raises:
        RuntimeError: the user has no home.
    """
    given = os.environ.get("XDG_STATE_HOME")
    state = Path(given) if given and Path(given).is_absolute() else Path("~/.local/state").expanduser()
    return state / "delta-tune" / "studies"


def remember_study(study_id: str, folder: str, settings: Mapping[str, Any], space_text: str) -> str | None:
    """Remember a study and its places.

    Args:
        study_id: its id.
        folder: its folder or address.
        settings: as in `study.json`.
        space_text: the text of its search space.

    Returns:
        Why that is not possible, in words; None if it is remembered.
    """
    content = {
        "folder": folder,
        "space_text": text_digest(space_text),
        "places": {name: settings.get(name) for name in SAFE},
    }
    try:
        file = _file(study_id)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(file, content)
        file.chmod(0o600)
    except (OSError, RuntimeError) as error:  # a home that is read-only or that there is not
        return str(error)
    return None


def known_study(study_id: str | None) -> dict[str, Any] | None:
    """What is remembered of the study of that id; None if this user did not begin it here."""
    if study_id is None:
        return None
    try:
        file = _file(study_id)
        status = file.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            return None  # others may have written it
        known: dict[str, Any] = json.loads(file.read_text())
    except (OSError, RuntimeError, ValueError):
        return None
    return known if isinstance(known, dict) else None


def strange_places(settings: Mapping[str, Any], study_id: str | None, names: Sequence[str]) -> list[str]:
    """Those of the settings `names` whose value a stranger may have written: it is not to be read unasked.

    Args:
        settings: in `study.json`.
        study_id: there too.
        names: among the keys of `SAFE`.
    """
    places = (known_study(study_id) or {}).get("places", {})
    return [
        name
        for name in names
        if not is_safe(name, settings[name]) and not (name in places and settings[name] == places[name])
    ]


def say_places(settings: Mapping[str, Any], names: Sequence[str]) -> str:
    """Settings that name places, and their values, in words."""
    return ", ".join(f"{name.replace('_', ' ')} {settings[name]!s:.200}" for name in names)


def _file(study_id: str) -> Path:
    """The id comes from the study's folder, so it is hashed: it cannot lead to another file."""
    return state_folder() / f"{text_digest(study_id)}.json"


def text_digest(text: str) -> str:
    """Hex digest of a text, surrogates included."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
