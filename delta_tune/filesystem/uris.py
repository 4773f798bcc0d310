"""Open addresses such as s3://bucket/folder and gs://bucket/folder with pyarrow."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from delta_tune.config import UserError, refuse_secret

GCS_PATIENCE_S = 30
"""By default, Google's client retries for 15 minutes if nothing answers or credentials are missing."""


def is_uri(place: object) -> bool:
    """Whether `place` is an address rather than a path."""
    return "://" in str(place)


def to_pyarrow_uri(address: str) -> str:
    """The address in the form that pyarrow expects."""
    base, question, options = address.partition("?")
    if base.startswith(("gs://", "gcs://")) and "retry_limit_seconds" not in options:
        question, options = "?", f"retry_limit_seconds={GCS_PATIENCE_S}{'&' if options else ''}{options}"
    return quote(base, safe="/:@") + question + options


def open_filesystem(place: str | Path, flag: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or an address, and the path within it.

    Raises:
        UserError: like `open_remote_filesystem`.
    """
    if is_uri(place):
        return open_remote_filesystem(str(place), flag)
    return fs.LocalFileSystem(), str(Path(place).absolute())


def open_remote_filesystem(address: str, flag: str) -> tuple[fs.FileSystem, str]:
    """The file system of an address, and the path within it; endpoint and credentials come from the environment.

    Args:
        address: may contain spaces and other characters that URLs must escape.
        flag: the flag it was given with, for messages.

    Raises:
        UserError: the address holds a password or cannot be opened, or its server does not answer correctly.
    """
    base = address.partition("?")[0]
    refuse_secret(flag.removeprefix("--"), address)
    try:
        filesystem, path = fs.FileSystem.from_uri(to_pyarrow_uri(address))
        filesystem.get_file_info(path)  # a missing server or wrong credentials show up here
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(
            f"{flag} {base} cannot be opened ({error}); give a folder or an address like s3://bucket/folder, with "
            f"credentials where AWS or Google look for them."
        ) from error
    return filesystem, path


def read_regular(filesystem: fs.FileSystem, path: str, limit: int) -> bytes | None:
    """The content of a regular file; None if there is nothing at this path.

    Raises:
        OSError: it cannot be read, is no regular file, or has more than `limit` bytes.
    """
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        return None
    if not info.is_file:
        raise OSError(f"{path} is no regular file")
    if info.size > limit:
        raise OSError(f"{path} has {info.size} bytes, more than {limit}")
    with filesystem.open_input_file(path) as file:
        content: bytes = file.read()
    return content
