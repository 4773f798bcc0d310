"""Files at addresses such as s3://bucket/folder and gs://bucket/folder, through pyarrow."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from delta_tune.config import UserError

GCS_PATIENCE_S = 30
"""Google's client tries again for 15 minutes by default where nothing answers, or without credentials."""


def is_uri(place: object) -> bool:
    """Whether `place` is an address and no path."""
    return "://" in str(place)


def to_pyarrow_uri(address: str) -> str:
    """The address as pyarrow takes it."""
    base, question, options = address.partition("?")
    if base.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in options:
        question, options = "?", f"retry_limit_seconds={GCS_PATIENCE_S}{'&' if options else ''}{options}"
    return quote(base, safe="/:@") + question + options


def open_filesystem(place: str | Path, flag: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or an address, and the path there.

    Raises:
        UserError: as `open_remote_filesystem`.
    """
    if is_uri(place):
        return open_remote_filesystem(str(place), flag)
    return fs.LocalFileSystem(), str(Path(place).absolute())


def open_remote_filesystem(address: str, flag: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and the path there; the usual variables have endpoint and credentials.

    Args:
        address: may hold spaces and other signs that URLs write otherwise.
        flag: that it was given with.

    Raises:
        UserError: nothing here opens it, or its server does not answer as it should.
    """
    base = address.partition("?")[0]
    if re.match(r"\w+://[^/]*:[^/]*@", base):
        raise UserError(
            f"{flag} has a password in its address, which would be written down with the study; leave it out and set "
            f"AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what your storage has instead."
        )
    try:
        filesystem, path = fs.FileSystem.from_uri(to_pyarrow_uri(address))
        filesystem.get_file_info(path)  # a server that is gone, or wrong credentials, show here
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{flag} {base} cannot be opened ({error}); give a folder or an address like s3://bucket/folder, with "
            f"credentials where AWS or Google look for them."
        ) from error
    return filesystem, path
