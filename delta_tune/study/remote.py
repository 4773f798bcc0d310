"""Studies that are kept at s3:// or gs:// and worked on in a local folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.filesystem.cache import content_key
from delta_tune.filesystem.uris import open_remote_filesystem
from delta_tune.results.layout import CHECKPOINTS, RAY, SHARED_CACHE, STUDY_FILE
from delta_tune.results.mirror import Mirror, temporary_marker

WORKPLACE = Path("~/.cache/delta_tune/studies")
SCHEMES = ("s3://", "gs://", "gcs://")


class RemoteStudies:
    """Studies at an address, and the local folder in which they are worked on.

    Raises:
        UserError: the address cannot be opened or written to.
    """

    def __init__(self, address: str) -> None:
        if not address.startswith(SCHEMES):
            raise UserError(f"--out {address} is no address that results can go to; give s3://…, gs://… or a folder.")
        self.address = address.rstrip("/")
        self.here = WORKPLACE.expanduser() / content_key([self.address])
        with temporary_marker(self.address):
            pass

    def begin(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Settings for working in the local folder; fetches a study to resume or to start from.

        Raises:
            UserError: the name is taken there.
        """
        name, resume = settings.get("name"), settings.get("resume", False)
        if name and resume:
            self._bring(name)
        elif name and self._has(name):
            raise UserError(
                f"The name {name!r} is taken: {self.address}/{name} holds a study; give --resume to carry it on, or "
                f"another --name."
            )
        elif name and (self.here / name).exists():
            self._set_aside(name)
        earlier = str(settings.get("start_from") or "")
        if earlier and "/" not in earlier and self._has(earlier):
            self._bring(earlier)
        return {"cache": f"{self.address}/{SHARED_CACHE}", **settings, "out": self.here}

    def mirror(self, name: str) -> Mirror:
        """The mirror of the study `name`."""
        return Mirror(self.here / name, f"{self.address}/{name}", skip=(CHECKPOINTS, RAY))

    def _has(self, name: str) -> bool:
        filesystem, path = open_remote_filesystem(f"{self.address}/{name}/{STUDY_FILE}", "--out")
        return bool(filesystem.get_file_info(path).type == fs.FileType.File)

    def _bring(self, name: str) -> None:
        """Fetch a study; the address is authoritative, so an existing local folder is set aside."""
        if not self._has(name):
            raise UserError(f"There is no study in {self.address}/{name}; --name and --out must name one.")
        if (self.here / name).exists():
            self._set_aside(name)
        self.mirror(name).pull()

    def _set_aside(self, name: str) -> None:
        (self.here / name).rename(self.here / f"{name}.until-{time.time_ns()}")
