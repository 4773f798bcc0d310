from __future__ import annotations

import threading
import time

import pytest

from delta_tune import background
from delta_tune.background import TimeShare, run_every


def test_work_is_done_again_and_again_until_the_end():
    done, third = [], threading.Event()

    def work():
        done.append(threading.current_thread())
        if len(done) == 3:
            third.set()

    with run_every(0.001, work):
        assert third.wait(60)
    many = len(done)
    time.sleep(0.05)
    assert len(done) == many >= 3
    assert threading.current_thread() not in done
    assert not done[0].is_alive()


def test_end_waits_for_work_that_was_begun():
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def work():
        begun.set()
        may_end.wait(60)
        ended.append(True)

    with run_every(0.001, work):
        assert begun.wait(60)
        threading.Timer(0.05, may_end.set).start()
    assert ended


def test_thread_ends_with_an_exception_too():
    before = threading.active_count()
    with pytest.raises(KeyError), run_every(0.001, lambda: None):
        raise KeyError
    assert threading.active_count() == before


def test_a_share_of_the_time_is_kept_to(monkeypatch):
    """A piece of 3 s that may take a quarter is followed by 9 s without, also where it raised."""
    now = [100.0]
    monkeypatch.setattr(background.time, "monotonic", lambda: now[0])
    share = TimeShare(0.25)
    assert share.free

    def fail():
        with share.taken():
            now[0] += 3
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        fail()
    now[0] = 111.9
    assert not share.free
    now[0] = 112.1
    assert share.free
