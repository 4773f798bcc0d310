"""One session at a time works on a study: a lock on its folder, also on a shared file system or at s3://.

Neither `flock` nor exclusive creation works everywhere (NFS, FUSE, object storage), so the lock needs neither. Each
session writes a claim, a file of its own, and looks for the claims of others: Lamport's bakery, which needs only that a
listing shows what was written before it. A session that lives writes its claim again every `BEAT_S`.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import psutil
from pyarrow import fs

from delta_tune.background import run_every
from delta_tune.config import UserError
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.filesystem.uris import is_uri, open_filesystem

BEAT_S = 5.0
"""Seconds between two signs of life of a session."""
SILENCE_S = 60.0
"""A session on another machine that has given no sign of life for so long is taken for dead."""
POLL_S = 0.5
TRIES = 5
CLAIM_BYTES = 4096
"""Larger than any claim; more is not read."""


class StudyInUseError(UserError):
    """Another session works on the study."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a session writes about itself.

    Attributes:
        state: whether it asks for the study or holds it.
        host: name of its machine.
        machine: identifies its machine since the last start, and its process namespace.
        pid: of its process.
        process_start: when that process was started, in seconds since 1970.
        place: the lock's folder or address as it sees it.
        since: when it claimed the study, local time.
        beat: number of signs of life.
    """

    state: Literal["asking", "holding"]
    host: str
    machine: str
    pid: int
    process_start: float
    place: str
    since: str
    beat: int = 0

    @classmethod
    def of_this_process(cls, place: str) -> Claim:
        """A claim that begins now."""
        return cls(
            state="asking",
            host=socket.gethostname(),
            machine=this_machine(),
            pid=os.getpid(),
            process_start=psutil.Process().create_time(),
            place=place,
            since=f"{datetime.now():%Y-%m-%d %H:%M:%S}",
        )

    @classmethod
    def parse(cls, text: bytes) -> Claim | None:
        """The claim in a file that anybody may have written; None if it is none."""
        try:
            content = json.loads(text)
            claim = cls(**content)
        except (ValueError, TypeError, RecursionError):
            return None
        kinds: Mapping[str, type | tuple[type, ...]] = {"pid": int, "beat": int, "process_start": (int, float)}
        fits = all(
            isinstance(value, kinds.get(name, str)) and not isinstance(value, bool)
            for name, value in asdict(claim).items()
        )
        return claim if fits and claim.state in ("asking", "holding") and 0 < claim.pid < 2**31 else None

    def lives(self, place: str) -> bool | None:
        """Whether its process lives; None if that cannot be told from here."""
        if self.machine != this_machine():
            return None
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # A clock that was set, another process of that number, or a copy of the lock: its beats will tell
            same = abs(process.create_time() - self.process_start) < 1 and self.place == place
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return None
        return True if same else None

    def __str__(self) -> str:
        host, since = (text[:64] if text.isprintable() else ascii(text[:64]) for text in (self.host, self.since))
        return f"process {self.pid} on {host} since {since}"


def this_machine() -> str:
    """This machine since its last start, and this process's namespace: within it, a process id names one process."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"{socket.gethostname()} {uuid.getnode()}"


class StudyLock:
    """The lock of a study.

    Args:
        place: the folder or address of the claims.
        study: the study as messages name it.
    """

    def __init__(self, place: str, study: str) -> None:
        self._filesystem, self._root = open_filesystem(place, "--out")
        self._local = None if is_uri(place) else Path(self._root)
        if self._local is not None and self._local.is_symlink():
            raise UserError(f"{self._local} is a link, which is not followed; remove it.")
        self._study, self._name = study, f"{uuid.uuid4().hex}.json"
        self._claim = Claim.of_this_process(str(self._local.resolve()) if self._local else place)
        self._own_folders: list[Path] = []
        self._seen: dict[str, tuple[bytes, float]] = {}

    def acquire(self, say: Callable[[str], None]) -> None:
        """Take the lock, also from a session that died.

        Args:
            say: is told if it takes time to find out whether another session lives.

        Raises:
            StudyInUseError: another session has it.
            UserError: the place cannot be written to.
        """
        try:
            self._ask()
            self._wait_for_turn(say)
            self._claim = replace(self._claim, state="holding")
            self._stay()
        except OSError as error:
            self.release()
            raise UserError(f"{self._study} cannot be written to ({error}); give another --out.") from error
        except BaseException:
            self.release()
            raise

    def _ask(self) -> None:
        """Write the claim."""
        for _ in range(TRIES):
            self._make_folder()
            try:
                return self._put()
            except FileNotFoundError:  # a session that ended has just removed the folder
                continue
        raise FileNotFoundError(f"{self._root} is removed again and again")

    def _wait_for_turn(self, say: Callable[[str], None]) -> None:
        """Return once no other claim is left.

        Raises:
            StudyInUseError: another session holds the study, or asks for it too and comes first.
        """
        looks, told = 0, False
        while others := self._others():
            looks += 1
            for name, claim, lives in others:
                if lives and claim is not None and (claim.state == "holding" or name < self._name):
                    raise StudyInUseError(
                        f"{self._study} is in use by {claim}; wait for its end, stop it, or give another --name."
                    )
            silent = [str(claim or "another session") for _, claim, lives in others if lives is None]
            if silent and looks > 1 and not told:  # what S3 gives while it is written may be cut off at the first look
                told = True
                say(
                    f"{self._study} was in use by {silent[0]}; waiting up to {SILENCE_S:.0f} s for a sign of life "
                    f"from it."
                )
            time.sleep(POLL_S)
            self._stay()

    def _stay(self) -> None:
        """Give a sign of life.

        Raises:
            StudyInUseError: this process stood still for so long that another session took it for dead.
        """
        if not self.beat():
            raise StudyInUseError(f"{self._study} was claimed by another session meanwhile; try again once it ended.")

    def _others(self) -> list[tuple[str, Claim | None, bool | None]]:
        """Claims of others that are not known to be dead: name, content and whether it lives; those of the dead go."""
        found: list[tuple[str, Claim | None, bool | None]] = []
        for name, text in self._read_all().items():
            claim = Claim.parse(text)
            lives = claim.lives(self._claim.place) if claim is not None else None
            first, since = self._seen.setdefault(name, (text, time.monotonic()))
            if lives is None and text != first:
                lives = True
            elif lives is None and time.monotonic() - since > SILENCE_S:
                lives = False
            if lives is False:
                self._delete(name)
            else:
                found.append((name, claim, lives))
        return found

    def beat(self) -> bool:
        """Give a sign of life; return whether the claim was still there.

        Raises:
            OSError: the place cannot be read or written.
        """
        if self._filesystem.get_file_info(f"{self._root}/{self._name}").type == fs.FileType.NotFound:
            return False
        self._claim = replace(self._claim, beat=self._claim.beat + 1)
        self._put()
        return True

    def release(self) -> None:
        """Give the lock back; folders that were made for it are removed if nothing else is in them."""
        with suppress(OSError):  # the place is gone or read-only: the end of this process releases the lock as well
            self._delete(self._name)
            for folder in self._own_folders:
                folder.rmdir()

    @contextmanager
    def kept(self, on_loss: Callable[[], None]) -> Iterator[None]:
        """Keep the lock while the block runs, then release it.

        Args:
            on_loss: called if another session has taken the lock, because this one stood still for too long.
        """

        def beat() -> None:
            with suppress(OSError):  # a full disk, a server that does not answer: the next beat may come through
                if not self.beat():
                    on_loss()

        try:
            with run_every(BEAT_S, beat):
                yield
        finally:
            self.release()

    # Files

    def _make_folder(self) -> None:
        if self._local is not None:
            self._own_folders = [self._local, *(folder for folder in self._local.parents if not folder.exists())]
            self._local.mkdir(parents=True, exist_ok=True)

    def _put(self) -> None:
        content = json.dumps(asdict(self._claim))
        if self._local is not None:
            with atomic_write(self._local / self._name) as partial:
                partial.write_text(content)
        else:
            with self._filesystem.open_output_stream(f"{self._root}/{self._name}") as stream:
                stream.write(content.encode())

    def _read_all(self) -> dict[str, bytes]:
        """The claims of others by name."""
        found: dict[str, bytes] = {}
        for info in self._filesystem.get_file_info(fs.FileSelector(self._root, allow_not_found=True)):
            if info.is_file and info.base_name.endswith(".json") and info.base_name != self._name:
                with suppress(FileNotFoundError):  # released meanwhile
                    found[info.base_name] = self._read(info.path)
        return found

    def _read(self, path: str) -> bytes:
        for left in reversed(range(TRIES)):
            try:
                with self._filesystem.open_input_stream(path) as file:
                    return bytes(file.read(CLAIM_BYTES))
            except FileNotFoundError:
                raise
            except OSError:  # S3: the object was written between the request for its size and that for its content
                if not left:
                    raise
                time.sleep(POLL_S / 5)
        raise AssertionError("the last try returns or raises")

    def _delete(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._filesystem.delete_file(f"{self._root}/{name}")
