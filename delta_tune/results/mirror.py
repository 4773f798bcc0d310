"""Local folders mirrored to an address: `--out s3://bucket/folder`.

The driver works in a local folder and pushes it to the address every `INTERVAL_S`. A worker works in a folder of its
node and pushes it after each epoch, before it reports the epoch. So the address always has what a resume needs, at most
`INTERVAL_S` old.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import fs

from delta_tune.background import run_every
from delta_tune.config import UserError
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.uris import is_uri, open_remote_filesystem
from delta_tune.results.layout import CHECKPOINTS, EPOCHS_FILE, JOURNAL_FILE, RAY, RESUME_FILE, STUDY_FILE, TRIALS_FILE

INTERVAL_S = 15.0
LAST = (RESUME_FILE, EPOCHS_FILE, TRIALS_FILE, JOURNAL_FILE, STUDY_FILE)
"""Files that refer to others are pushed after them, in this order, and read in the reverse order."""


class Mirror:
    """A local folder and its copy at an address.

    Args:
        folder: the local folder.
        address: the copy's address.
        skip: names of subfolders, at any depth, that others push.
    """

    def __init__(self, folder: Path, address: str, *, skip: Collection[str] = ()) -> None:
        self.folder, self.address, self._skip = folder, address.rstrip("/"), frozenset(skip)
        self._filesystem, path = open_remote_filesystem(self.address, "--out")
        self._root = PurePosixPath(path)
        self._pushed: dict[PurePosixPath, tuple[int, int, int]] = {}
        self._discards: dict[PurePosixPath, frozenset[str]] = {}
        self._pushing, self._noting = threading.Lock(), threading.Lock()

    def pull(self) -> None:
        """Fetch everything except `skip`; of Ray's runs only the names, so that the next run gets a new one.

        Raises:
            UserError: an object's key leads out of the folder.
            OSError: an object cannot be read, or its key is no name of a file here.
        """
        found = self._files(self._root)
        for path in found:
            self._check_inside(path)
        for path in found:
            if RAY in path.parts and RAY in self._skip:
                (self.folder / Path(*path.parts[: path.parts.index(RAY) + 2])).mkdir(parents=True, exist_ok=True)
            elif not self._skip & set(path.parts):
                self.fetch(path)

    def fetch(self, path: PurePosixPath | Path) -> Path:
        """Fetch one file.

        Raises:
            UserError: the path leads out of the folder.
        """
        self._check_inside(PurePosixPath(path))
        here = self.folder / path
        here.parent.mkdir(parents=True, exist_ok=True)
        with (
            self._filesystem.open_input_stream(str(self._root / path)) as source,
            atomic_write(here) as partial,
            partial.open("wb") as file,
        ):
            shutil.copyfileobj(source, file, 2**23)
        self._pushed[PurePosixPath(path)] = _stamp(here)
        return here

    def fetch_folder(self, folder: Path) -> None:
        """Fetch all files of a folder."""
        for path in self._files(self._root / folder.relative_to(self.folder)):
            self.fetch(path)

    def push(self, *, skip: Collection[str] | None = None) -> None:
        """Push changed files and delete files that are gone.

        Raises:
            OSError: the address cannot be read or written.
        """
        with self._pushing:
            with self._noting:
                discards, self._discards = self._discards, {}
            try:
                self._push(self._skip if skip is None else frozenset(skip))
                for folder, kept in discards.items():  # the tables that say why have been pushed
                    self._remove(folder, kept)
            except OSError:
                with self._noting:
                    self._discards = discards | self._discards
                raise

    def discard(self, folder: Path, kept: Collection[str] = ()) -> None:
        """With the next push, delete a folder that workers wrote, except the files `kept`."""
        with self._noting:
            self._discards[PurePosixPath(folder.relative_to(self.folder))] = frozenset(kept)

    def clear(self) -> None:
        """Delete everything, here and at the address."""
        self._remove(PurePosixPath(), frozenset())
        for path in list(self._pushed):
            (self.folder / path).unlink(missing_ok=True)
        self._pushed.clear()

    def _push(self, skip: frozenset[str]) -> None:
        here: dict[PurePosixPath, tuple[int, int, int]] = {}
        for file in self.folder.rglob("*"):
            path = PurePosixPath(file.relative_to(self.folder))
            with suppress(FileNotFoundError):
                if not skip & set(path.parts) and not file.name.startswith(".") and file.is_file():
                    here[path] = _stamp(file)
        changed = [path for path, stamp in here.items() if self._pushed.get(path) != stamp]
        last = sorted((path for path in changed if path.name in LAST), key=lambda path: LAST.index(path.name))
        contents = {}
        for path in reversed(last):
            with suppress(FileNotFoundError):  # the journal disappears once the tables include it
                contents[path] = (self.folder / path).read_bytes()
        for path in [*(path for path in changed if path not in last), *last]:
            with suppress(FileNotFoundError):  # deleted meanwhile
                self._write(path, contents.get(path))
                self._pushed[path] = here[path]
        for path in [path for path in self._pushed if path not in here and not skip & set(path.parts)]:
            self._filesystem.delete_file(str(self._root / path))
            del self._pushed[path]

    def _write(self, path: PurePosixPath, content: bytes | None) -> None:
        """Write one object. It appears when its stream closes, even after an exception: read the file first."""
        if content is None and (self.folder / path).stat().st_size:
            with pa.memory_map(str(self.folder / path)) as file:
                data = file.read_buffer()
        else:
            data = content or b""
        with self._filesystem.open_output_stream(str(self._root / path)) as stream:
            stream.write(data)

    def _remove(self, folder: PurePosixPath, kept: frozenset[str]) -> None:
        for path in self._files(self._root / folder):
            if path.name not in kept and ".." not in path.parts:
                with suppress(FileNotFoundError):
                    self._filesystem.delete_file(str(self._root / path))

    def _check_inside(self, path: PurePosixPath) -> None:
        """Keys of a bucket are no paths: `..` and a first slash are allowed in them."""
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise UserError(
                f"{self.address} holds an object whose key leads out of the study's folder, {str(path)!a}; nothing of "
                f"it was written. Remove the object, or leave the study alone if it is not yours."
            )

    def _files(self, folder: PurePosixPath) -> list[PurePosixPath]:
        """Paths of the files at the address, relative to the root."""
        infos = self._filesystem.get_file_info(fs.FileSelector(str(folder), recursive=True, allow_not_found=True))
        return [PurePosixPath(info.path).relative_to(self._root) for info in infos if info.type == fs.FileType.File]


def _stamp(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size


@contextmanager
def local_copy(path: str | Path) -> Iterator[tuple[Path, Mirror | None]]:
    """Yield a local folder for `path`, and its mirror if `path` is an address."""
    if not is_uri(path):
        yield Path(path), None
        return
    with tempfile.TemporaryDirectory(prefix="delta_tune-") as scratch:
        mirror = Mirror(Path(scratch), str(path))
        mirror.pull()
        yield mirror.folder, mirror


@contextmanager
def temporary_marker(address: str) -> Iterator[str]:
    """Write a marker object while the block runs; yield its address.

    Raises:
        UserError: the address cannot be written to.
    """
    name = f".marker-{uuid.uuid4().hex}"
    filesystem, root = open_remote_filesystem(address, "--out")
    path = f"{root.rstrip('/')}/{name}"
    try:
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"seen")
    except OSError as error:
        raise UserError(
            f"--out {address} cannot be written to ({error}); give a bucket that you can write to."
        ) from error
    try:
        yield f"{address}/{name}"
    finally:
        with suppress(OSError):
            filesystem.delete_file(path)


@contextmanager
def push_in_background(mirror: Mirror | None, say: Callable[[str], None]) -> Iterator[None]:
    """Push the mirror every `INTERVAL_S` from a thread while the block runs."""
    if mirror is None:
        yield
        return
    silent = False

    def push() -> None:
        nonlocal silent
        try:
            mirror.push()
            silent = False
        except OSError as error:
            if not silent:
                say(f"{mirror.address} does not answer ({error}); retrying every {INTERVAL_S:.0f} s.")
            silent = True

    try:
        with run_every(INTERVAL_S, push):
            yield
    finally:
        with suppress(OSError):  # already reported; pushed again at the end
            mirror.push()


def push_or_raise(mirror: Mirror, *, whole: bool = False) -> None:
    """Push everything now; with `whole` (at the end) Ray's folder too.

    Raises:
        UserError: the push failed.
    """
    try:
        mirror.push(skip=(CHECKPOINTS,) if whole else None)
    except OSError as error:
        raise UserError(
            f"--out {mirror.address} cannot be written to ({error}); the results so far are in {mirror.folder}."
        ) from error
