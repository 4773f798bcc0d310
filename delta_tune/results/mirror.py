"""Folders that are worked on here and kept at an address: `--out s3://bucket/folder`.

A study works on a folder of the driver's machine, which is brought to the address every `INTERVAL_S`; a worker works on
a folder of its node and brings it to the address after each epoch, before the study hears of it. So what is at the
address is never ahead of what a resume needs, and at most `INTERVAL_S` behind.
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
"""What names other files goes after them, in this order; it was read in the opposite one, so it is the older."""


class Mirror:
    """A folder here and its copy at an address.

    Args:
        folder: here.
        address: of the copy.
        skip: names of folders, anywhere below, that others bring there.
    """

    def __init__(self, folder: Path, address: str, *, skip: Collection[str] = ()) -> None:
        self.folder, self.address, self._skip = folder, address.rstrip("/"), frozenset(skip)
        self._filesystem, path = open_remote_filesystem(self.address, "--out")
        self._root = PurePosixPath(path)
        self._pushed: dict[PurePosixPath, tuple[int, int, int]] = {}
        self._discards: dict[PurePosixPath, frozenset[str]] = {}
        self._pushing, self._noting = threading.Lock(), threading.Lock()

    def pull(self) -> None:
        """Bring everything here but what is skipped; of Ray's runs only the names, so that the next has a new one."""
        for path in self._files(self._root):
            if RAY in path.parts and RAY in self._skip:
                (self.folder / Path(*path.parts[: path.parts.index(RAY) + 2])).mkdir(parents=True, exist_ok=True)
            elif not self._skip & set(path.parts):
                self.fetch(path)

    def fetch(self, path: PurePosixPath | Path) -> Path:
        """Bring one file here."""
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
        """Bring everything of a folder here."""
        for path in self._files(self._root / folder.relative_to(self.folder)):
            self.fetch(path)

    def push(self, *, skip: Collection[str] | None = None) -> None:
        """Bring there what has changed here, and take away what is gone.

        Raises:
            OSError: the address does not answer as it should.
        """
        with self._pushing:
            with self._noting:
                discards, self._discards = self._discards, {}
            try:
                self._push(self._skip if skip is None else frozenset(skip))
                for folder, kept in discards.items():  # the tables that say why are there by now
                    self._remove(folder, kept)
            except OSError:
                with self._noting:
                    self._discards = discards | self._discards
                raise

    def discard(self, folder: Path, kept: Collection[str] = ()) -> None:
        """With the next push take away a folder that workers wrote, but for the files `kept`."""
        with self._noting:
            self._discards[PurePosixPath(folder.relative_to(self.folder))] = frozenset(kept)

    def clear(self) -> None:
        """Take away everything, here and there."""
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
            with suppress(FileNotFoundError):  # the journal, once tables have what it says
                contents[path] = (self.folder / path).read_bytes()
        for path in [*(path for path in changed if path not in last), *last]:
            with suppress(FileNotFoundError):  # gone in the meantime
                self._write(path, contents.get(path))
                self._pushed[path] = here[path]
        for path in [path for path in self._pushed if path not in here and not skip & set(path.parts)]:
            self._filesystem.delete_file(str(self._root / path))
            del self._pushed[path]

    def _write(self, path: PurePosixPath, content: bytes | None) -> None:
        """An object appears whole once its stream is closed, after an exception too: none may come from our side."""
        if content is None and (self.folder / path).stat().st_size:
            with pa.memory_map(str(self.folder / path)) as file:
                data = file.read_buffer()
        else:
            data = content or b""
        with self._filesystem.open_output_stream(str(self._root / path)) as stream:
            stream.write(data)

    def _remove(self, folder: PurePosixPath, kept: frozenset[str]) -> None:
        for path in self._files(self._root / folder):
            if path.name not in kept:
                with suppress(FileNotFoundError):
                    self._filesystem.delete_file(str(self._root / path))

    def _files(self, folder: PurePosixPath) -> list[PurePosixPath]:
        """The files there, as they lie below the root."""
        found = self._filesystem.get_file_info(fs.FileSelector(str(folder), recursive=True, allow_not_found=True))
        return [PurePosixPath(info.path).relative_to(self._root) for info in found if info.type == fs.FileType.File]


def _stamp(file: Path) -> tuple[int, int, int]:
    found = file.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


@contextmanager
def local_copy(place: str | Path) -> Iterator[tuple[Path, Mirror | None]]:
    """A folder to work in for what is kept at `place`, and its mirror if that is an address."""
    if not is_uri(place):
        yield Path(place), None
        return
    with tempfile.TemporaryDirectory(prefix="delta_tune-") as scratch:
        mirror = Mirror(Path(scratch), str(place))
        mirror.pull()
        yield mirror.folder, mirror


@contextmanager
def temporary_marker(address: str) -> Iterator[str]:
    """An object at the address for a while; what is yielded is its own address.

    Raises:
        UserError: it cannot be written.
    """
    name = f".marker-{uuid.uuid4().hex}"
    filesystem, root = open_remote_filesystem(address, "--out")
    path = f"{root.rstrip('/')}/{name}"
    try:
        with filesystem.open_output_stream(path) as stream:
            stream.write(b"seen")
    except OSError as error:
        raise UserError(f"--out {address} cannot be written to ({error}); give a bucket that can.") from error
    try:
        yield f"{address}/{name}"
    finally:
        with suppress(OSError):
            filesystem.delete_file(path)


@contextmanager
def push_in_background(mirror: Mirror | None, say: Callable[[str], None]) -> Iterator[None]:
    """Within it the mirror is brought to its address every `INTERVAL_S`, by a thread."""
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
                say(f"{mirror.address} does not answer ({error}); it is tried again every {INTERVAL_S:.0f} s.")
            silent = True

    try:
        with run_every(INTERVAL_S, push):
            yield
    finally:
        with suppress(OSError):  # said by then, and tried again at the end
            mirror.push()


def push_or_raise(mirror: Mirror, *, whole: bool = False) -> None:
    """Bring everything there now; at the end (`whole`) Ray's folder too.

    Raises:
        UserError: it does not come there.
    """
    try:
        mirror.push(skip=(CHECKPOINTS,) if whole else None)
    except OSError as error:
        raise UserError(
            f"--out {mirror.address} cannot be written to ({error}); what there is lies in {mirror.folder}."
        ) from error
