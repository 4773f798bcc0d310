"""Studies that are kept at s3:// or gs:// and worked on in a local folder."""

from __future__ import annotations

import atexit
import shutil
import tempfile
import time
from collections.abc import Callable
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

    Args:
        address: the folder of the studies.
        for_plan: work in a folder that is removed with this process, because nothing is claimed for a plan.

    Raises:
        UserError: the address cannot be opened or written to.
    """

    def __init__(self, address: str, *, for_plan: bool = False) -> None:
        if not address.startswith(SCHEMES):
            raise UserError(f"--out {address} is no address that results can go to; give s3://…, gs://… or a folder.")
        self.address = address.rstrip("/")
        self.here = WORKPLACE.expanduser() / content_key([self.address])
        if for_plan:
            self.here = Path(tempfile.mkdtemp(prefix="delta_tune-"))
            atexit.register(shutil.rmtree, self.here, ignore_errors=True)
        with temporary_marker(self.address):
            pass

    def begin(self, settings: dict[str, Any], claim: Callable[[str], None]) -> dict[str, Any]:
        """Settings for working in the local folder; fetches a study to resume or to start from.

        Args:
            settings: as the user gave them.
            claim: claims the study of that name for this session.

        Raises:
            UserError: the name is taken there.
        """
        name, resume = settings.get("name"), settings.get("resume", False)
        if name and resume:
            self.check_exists(name)
            claim(name)
            self._bring(name, self.here / name)
        elif name:
            self.check_free(name)
            claim(name)
            self.check_free(name)
            self.make_room(name)
        earlier = str(settings.get("start_from") or "")
        if earlier and "/" not in earlier and self.has(earlier):
            settings["start_from"] = str(self._bring(earlier, self.here / f"{earlier}.from-{time.time_ns()}"))
        return {"cache": f"{self.address}/{SHARED_CACHE}", **settings, "out": self.here}

    def mirror(self, name: str) -> Mirror:
        """The mirror of the study `name`."""
        return Mirror(self.here / name, f"{self.address}/{name}", skip=(CHECKPOINTS, RAY))

    def has(self, name: str) -> bool:
        """Whether there is a study of that name."""
        filesystem, path = open_remote_filesystem(f"{self.address}/{name}/{STUDY_FILE}", "--out")
        return bool(filesystem.get_file_info(path).type == fs.FileType.File)

    def check_exists(self, name: str) -> None:
        """Check that there is a study of that name.

        Raises:
            UserError: there is none.
        """
        if not self.has(name):
            raise UserError(f"There is no study in {self.address}/{name}; --name and --out must name one.")

    def check_free(self, name: str) -> None:
        """Check that no study has that name.

        Raises:
            UserError: one has.
        """
        if self.has(name):
            raise UserError(
                f"The name {name!r} is taken: {self.address}/{name} holds a study; give --resume to carry it on, or "
                f"another --name."
            )

    def make_room(self, name: str) -> None:
        """Set an existing local folder aside: the address is authoritative."""
        if (self.here / name).exists():
            (self.here / name).rename(self.here / f"{name}.until-{time.time_ns()}")

    def _bring(self, name: str, folder: Path) -> Path:
        """Fetch a study into `folder`."""
        self.make_room(folder.name)
        try:
            Mirror(folder, f"{self.address}/{name}", skip=(CHECKPOINTS, RAY)).pull()
        except OSError as error:
            raise UserError(f"{self.address}/{name} cannot be fetched to {folder} ({error}).") from error
        return folder
