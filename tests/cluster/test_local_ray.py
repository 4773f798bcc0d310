"""What a Ray of our own needs of the machine, without starting one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from delta_tune.cluster import local_ray
from delta_tune.cluster.local_ray import (
    keep_signal_handler,
    make_private_folder,
    provide_token,
    separate_processes,
)
from delta_tune.config import UserError


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Folders of this test's own in the place of the system's, with short paths."""
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv("TMPDIR", raising=False)
    root = Path(f"/tmp/t{os.getpid()}")
    (root / "a").mkdir(parents=True)
    (root / "b").mkdir()
    monkeypatch.setattr(local_ray, "FOLDERS", (str(root / "a"), str(root / "b")))
    yield root
    subprocess.run(["rm", "-r", str(root)], check=True)


def test_folder_is_for_this_user_only_and_holds_a_socket_of_ray_s(places):
    folder = make_private_folder()
    assert folder.parent == places / "a"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list(folder.iterdir()) == []
    deepest = folder / local_ray.LONGEST_SOCKET
    deepest.parent.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(deepest))


@pytest.mark.parametrize("name", ["TMPDIR", "RAY_TMPDIR"])
def test_folder_lies_where_the_environment_says(places, monkeypatch, name):
    monkeypatch.setenv(name, str(places / "b"))
    assert make_private_folder().parent == places / "b"


@pytest.mark.parametrize("place", ["x" * 90, "missing", "file"])
def test_tmpdir_that_ray_cannot_use_is_passed_over(places, monkeypatch, place):
    (places / "file").touch()
    if len(place) > 50:
        (places / place).mkdir()
    monkeypatch.setenv("TMPDIR", str(places / place))
    assert make_private_folder().parent == places / "a"
    assert not (places / place).is_dir() or list((places / place).iterdir()) == []


def test_ray_tmpdir_that_cannot_be_used_is_refused(places, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/proc")
    with pytest.raises(UserError, match=r"^Ray cannot keep its files in /proc \(/proc: .*\); set RAY_TMPDIR to"):
        make_private_folder()


def test_machine_without_a_place_is_told_all_reasons(places, monkeypatch):
    monkeypatch.setattr(local_ray, "FOLDERS", ("/proc", str(places / "missing")))
    with pytest.raises(UserError, match=r"/proc or .*missing \(/proc: .*; .*missing: No such file or directory\)"):
        make_private_folder()


@pytest.fixture
def home(monkeypatch, tmp_path):
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def mode(file):
    return file.stat().st_mode & 0o777


def test_token_is_made_for_this_user_only(home):
    provide_token()
    file = home / ".ray" / "auth_token"
    assert (mode(file), mode(file.parent)) == (0o600, 0o700)
    assert len(file.read_text()) == 64
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_token_that_all_can_read_stays_and_is_closed(home):
    file = home / ".ray" / "auth_token"
    file.parent.mkdir()
    file.write_text("0123")
    file.chmod(0o644)
    provide_token()
    assert (mode(file), file.read_text()) == (0o600, "0123")


@pytest.mark.parametrize("where", ["/proc", "/dev/null"])
def test_home_that_cannot_be_written_to_needs_no_file(home, monkeypatch, where):
    monkeypatch.setenv("HOME", where)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that it is restored
    provide_token()
    assert len(os.environ["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize("name", ["RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"])
def test_what_the_user_has_set_for_tokens_stays(home, monkeypatch, name):
    monkeypatch.setenv(name, "disabled")
    provide_token()
    assert list(home.iterdir()) == []


@pytest.fixture
def handler():
    """A handler of SIGTERM."""

    def own(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, own)
    yield own
    signal.signal(signal.SIGTERM, before)


def test_handler_of_ray_s_goes(handler):
    with keep_signal_handler():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
    assert signal.getsignal(signal.SIGTERM) is handler


def test_sigterm_while_ray_starts_is_an_interrupt(handler):
    with pytest.raises(KeyboardInterrupt):
        interrupted_ray()
    assert signal.getsignal(signal.SIGTERM) is handler


def test_other_ends_while_ray_starts_stay(handler):
    with pytest.raises(SystemExit), keep_signal_handler():
        sys.exit(3)


def interrupted_start():
    with separate_processes():
        sleeper().returncode = 0  # nobody waits for it
        raise KeyboardInterrupt


def interrupted_ray():
    with keep_signal_handler():
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        signal.raise_signal(signal.SIGTERM)


def sleeper():
    # Ray's processes have such a function too
    return subprocess.Popen(["sleep", "60"], preexec_fn=lambda: None)


def test_processes_are_in_groups_of_their_own_while_ray_starts():
    with separate_processes():
        inside = sleeper()
    outside = sleeper()
    try:
        assert os.getpgid(inside.pid) == inside.pid
        assert os.getpgid(outside.pid) == os.getpgrp()
    finally:
        for process in (inside, outside):
            process.kill()
            process.wait()


def test_interrupt_while_ray_starts_leaves_no_process():
    before = sleeper()
    children = psutil.Process().children()
    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_start()
        assert psutil.Process().children() == children
    finally:
        before.kill()
        before.wait()
