"""A Ray of our own on this machine: its folder, which no other user can enter, its token, and where it listens."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from delta_tune.config import UserError

FOLDERS = ("/tmp", "/var/tmp", "/dev/shm") if os.name == "posix" else (tempfile.gettempdir(),)
"""Where Ray's files may lie if TMPDIR is not set or cannot be used."""
LONGEST_SOCKET = "ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store.00"
"""Where Ray makes a socket in the folder; systems limit such paths to about 100 characters."""
PROBE_BYTES = 2**16
END_S = 5.0
"""For processes that were killed to end."""


def make_private_folder() -> Path:
    """Make a folder for Ray's files that only this user can enter: below RAY_TMPDIR if it is set, else where it can be.

    Ray makes its own folders writable for all, and who can write to the one of its sockets can act as its processes.

    Raises:
        UserError: there is no place that Ray could use.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    places = [chosen] if chosen else [place for place in (os.environ.get("TMPDIR"), *FOLDERS) if place]
    reasons = []
    for place in places:
        try:
            return _usable_folder(os.path.abspath(place))
        except OSError as error:
            reasons.append(f"{place}: {error.strerror or error}")
    raise UserError(
        f"Ray cannot keep its files in {' or '.join(places)} ({'; '.join(reasons)}); set RAY_TMPDIR to a folder of "
        f"this machine that you can write to and that has a short path."
    )


def _usable_folder(place: str) -> Path:
    """A new folder in `place`, where a socket can be made with a path as long as Ray's, and files be written."""
    folder = Path(tempfile.mkdtemp(prefix="delta-", dir=place))
    probes = folder / LONGEST_SOCKET.replace("/", "-"), folder / "probe"
    try:
        if hasattr(socket, "AF_UNIX"):
            with socket.socket(socket.AF_UNIX) as probe:
                probe.bind(str(probes[0]))
        probes[1].write_bytes(bytes(PROBE_BYTES))
        for file in probes:
            file.unlink(missing_ok=True)
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def provide_token() -> None:
    """Make the token of Ray's that is missing, and keep other users from reading it.

    Ray would make `~/.ray/auth_token` itself, readable for all, and fail where there is no home that can be written to;
    there, the token is in the environment of this process and of those that it starts.
    """
    if any(os.environ.get(name) for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return
    try:
        file = Path.home() / ".ray" / "auth_token"
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(handle, "w") as opened:
                opened.write(secrets.token_hex(32))
        if file.stat().st_mode & 0o077:
            file.chmod(0o600)
        file.read_text()
    except (OSError, RuntimeError):  # RuntimeError: neither HOME nor the user database has a home
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def keep_signal_handler() -> Iterator[None]:
    """Keep this process's handler of SIGTERM while the block starts or joins Ray, which sets its own.

    Raises:
        KeyboardInterrupt: SIGTERM came, after Ray had set its handler.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as end:
        if end.code != signal.SIGTERM:
            raise
        raise KeyboardInterrupt from None
    finally:
        if callable(handler):  # else Ray's own stays, which ends its processes too
            signal.signal(signal.SIGTERM, handler)


_separate = False


def _leave_group() -> None:
    if _separate:
        os.setpgid(0, 0)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_group)


@contextlib.contextmanager
def separate_processes() -> Iterator[None]:
    """Put processes that the block starts into process groups of their own; if it is interrupted, end them.

    `timeout`, a shell's `kill %1` and a closed terminal send their signal to the whole group of this process, which
    ends a study in order only while its Ray lives.
    """
    global _separate
    _separate, before = True, set(psutil.Process().children())
    try:
        yield
    except KeyboardInterrupt:  # Ray does not know all its processes yet
        new = set(psutil.Process().children()) - before
        started = [process for child in new for process in (*_descendants(child), child)]
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(started, timeout=END_S)
        raise
    finally:
        _separate = False


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        return list(process.children(recursive=True))
    return []


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Make a Ray started in the block listen on the loopback interface only.

    This is the default on macOS and Windows; on Linux it takes this private switch, read at import (ray#18730). A Ray
    without the switch uses its default.
    """
    try:
        from ray._private import ray_constants

        before, variable = ray_constants.ENABLE_RAY_CLUSTER, ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    except (ImportError, AttributeError):
        yield
        return
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with environment({variable: "0"}):
            yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables while the block runs, also for processes started in it."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
