"""SIGTERM and SIGHUP, sent to processes of their own whose study is replaced by one that waits."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import types

import pytest

from delta_tune.cli import launch

DRIVER = """
import os, signal, sys, time, types
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # ignored in these tests where they run under nohup
signal.signal(signal.SIGINT, signal.default_int_handler)
{first}
stub = types.ModuleType("delta_tune.study.tune")
def tune(**settings):
    {before}
    os.write(1, b"ready\\n")  # print would hold a lock while the signal's handler prints
    for _ in range(200):
        time.sleep(0.1)
stub.tune_since = lambda started, **settings: tune(**settings)
stub.dry_run = tune
sys.modules["delta_tune.study.tune"] = stub
from delta_tune.cli import main
status = main({flags})
print("status", status, flush=True)
sys.exit(status)
"""


def begin(first="", before="pass", flags=(), **options):
    text = DRIVER.format(first=first, before=before, flags=list(flags))
    return subprocess.Popen([sys.executable, "-c", text], text=True, start_new_session=True, **options)


def ended(process, *numbers):
    assert process.stdout.readline() == "ready\n"
    for number in numbers:
        process.send_signal(number)
    return process.communicate(timeout=30)


PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signal_ends_like_ctrl_c(number):
    process = begin(**PIPES)
    out, err = ended(process, number)
    assert (process.returncode, out) == (130, "status 130\n")
    assert err.splitlines()[-1] == "launch.py: interrupted before any trial started"
    assert "Traceback" not in err


def test_signal_before_a_study_is_resumed_leaves_the_command():
    _, err = ended(begin(flags=["--resume"], **PIPES), signal.SIGTERM)
    assert err.splitlines()[-1] == "launch.py: interrupted; the same command continues"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal_is_told_at_once(number):
    _, err = ended(begin(**PIPES), number)
    assert err.splitlines()[0] == f"launch.py: {number.name}: the study ends; --resume continues it"


@pytest.mark.parametrize("seconds", [0.5, 2.5])
def test_signal_that_comes_twice_is_one(seconds):
    slow = f"signal.signal(signal.SIGINT, lambda *_: (os.write(1, b'once\\n'), time.sleep({seconds}), sys.exit(7)))"
    process = begin(before=slow, **PIPES)
    out, _ = ended(process, signal.SIGTERM, signal.SIGHUP)
    assert (process.returncode, out) == (7, "once\n")


def test_signal_goes_to_the_handler_of_the_moment():
    tune = "signal.signal(signal.SIGINT, lambda *_: sys.exit(5))"  # as Ray Tune sets its own
    process = begin(before=tune, **PIPES)
    ended(process, signal.SIGTERM)
    assert process.returncode == 5


def test_signal_ends_a_shell_s_background_job_that_ignores_ctrl_c():
    process = begin(first="signal.signal(signal.SIGINT, signal.SIG_IGN)", **PIPES)
    ended(process, signal.SIGTERM)
    assert process.returncode == 130


def test_nohup_stays():
    process = begin(first="signal.signal(signal.SIGHUP, signal.SIG_IGN)", **PIPES)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_terminal_that_closes_is_written_to_no_more():
    ours, theirs = pty.openpty()
    process = begin(stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while b"ready" not in said:
        said += os.read(ours, 100)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(30) == 130


def test_reader_of_the_output_that_ends_by_the_same_signal_costs_nothing():
    process = begin(**PIPES)
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    process.stderr.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130


def test_terminal_that_is_still_there_is_written_to():
    ours, theirs = pty.openpty()
    process = begin(stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    said = b""
    while b"ready" not in said:
        said += os.read(ours, 100)
    process.send_signal(signal.SIGHUP)
    while b"status 130" not in said:
        said += os.read(ours, 100)
    assert process.wait(30) == 130  # before the terminal goes: the process may still be writing
    os.close(ours)


def test_handlers_are_as_before_afterwards(monkeypatch):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    stub = types.ModuleType("delta_tune.study.tune")
    stub.tune_since, stub.dry_run = None, lambda **settings: ["a plan"]
    monkeypatch.setitem(sys.modules, "delta_tune.study.tune", stub)
    assert launch.main(["--dry-run"]) == 0
    assert {number: signal.getsignal(number) for number in before} == before
