"""The lock of a study, on a folder and on a real S3 server, held by real processes that are killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import asdict, replace

import pytest

from delta_tune.config import UserError
from delta_tune.results import lock
from delta_tune.results.lock import Claim, StudyInUseError, StudyLock

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["delta_tune.results.lock"])
LIMIT_S = 120.0


@pytest.fixture(params=["folder", "address"])
def place(request, tmp_path):
    """Where the claims of a study lie."""
    if request.param == "folder":
        return str(tmp_path / "study" / ".lock")
    return f"s3://{request.getfixturevalue('bucket')}/results/.locks/study"


@pytest.fixture
def quick(monkeypatch):
    """Waits of a second instead of a minute."""
    monkeypatch.setattr(lock, "SILENCE_S", 1.0)
    monkeypatch.setattr(lock, "BEAT_S", 0.2)
    monkeypatch.setattr(lock, "POLL_S", 0.1)


def silent(text):
    raise AssertionError(f"nothing is to be waited for, but was told: {text}")


def taken(place, say=silent):
    mine = StudyLock(place, "results/study")
    mine.acquire(say)
    return mine


def _try(place, environment, answers, barrier, over):
    """A session that claims the study as soon as the others do, and ends when all have an answer."""
    os.environ |= environment  # the fork server was started before the S3 server
    barrier.wait(LIMIT_S)
    try:
        mine = taken(place)
    except StudyInUseError as error:
        answers.put(str(error))
        return
    answers.put("taken")
    over.wait(LIMIT_S)
    mine.release()


def _hold(place, environment, held):
    os.environ |= environment
    with taken(place).kept(lambda: None):
        held.set()
        time.sleep(LIMIT_S)


def holder_of(place):
    """A process that holds the lock."""
    held = FORKS.Event()
    process = FORKS.Process(target=_hold, args=(place, dict(os.environ), held), daemon=True)
    process.start()
    assert held.wait(LIMIT_S)
    return process


def write_claim(place, claim):
    """A claim that another machine wrote."""
    os.makedirs(place, exist_ok=True)
    with open(f"{place}/0{'f' * 31}.json", "w") as file:
        json.dump(asdict(claim), file)


def of_another_machine(place, **changed):
    return replace(Claim.of_this_process(place), machine="another", host="elsewhere", state="holding", **changed)


def test_one_of_many_that_start_at_once_gets_the_study(place):
    for _ in range(2):
        answers, barrier, over = FORKS.Queue(), FORKS.Barrier(4), FORKS.Event()
        processes = [
            FORKS.Process(target=_try, args=(place, dict(os.environ), answers, barrier, over)) for _ in range(4)
        ]
        for process in processes:
            process.start()
        said = [answers.get(timeout=LIMIT_S) for _ in processes]
        over.set()
        for process in processes:
            process.join(LIMIT_S)
        assert said.count("taken") == 1, said
        assert all("is in use by process" in text for text in said if text != "taken")


def test_holder_is_named_and_the_lock_free_again_after_its_release(place):
    mine = taken(place)
    with pytest.raises(
        StudyInUseError, match=rf"results/study is in use by process {os.getpid()} on \S+ since \d{{4}}"
    ):
        taken(place)
    mine.release()
    taken(place).release()


def test_lock_of_a_killed_process_is_taken_over_at_once(place):
    holder = holder_of(place)
    with pytest.raises(StudyInUseError, match=f"process {holder.pid} "):
        taken(place)
    holder.kill()
    holder.join(LIMIT_S)
    taken(place).release()


def test_lock_of_a_process_that_stands_still_is_not_taken_over(tmp_path, quick):
    holder = holder_of(str(tmp_path / "lock"))
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        time.sleep(1.5)
        with pytest.raises(StudyInUseError):
            taken(str(tmp_path / "lock"))
    finally:
        holder.kill()
        holder.join(LIMIT_S)


def test_lock_of_another_machine_is_taken_over_after_a_silence(tmp_path, quick):
    write_claim(tmp_path, of_another_machine("there"))
    said = []
    began = time.monotonic()
    taken(str(tmp_path), said.append).release()
    assert time.monotonic() - began >= 1.0
    (told,) = said
    assert told.startswith("results/study was in use by process ")
    assert "on elsewhere since" in told


def test_lock_of_another_machine_is_held_while_it_gives_signs_of_life(tmp_path, quick):
    claim = of_another_machine("there")
    write_claim(tmp_path, claim)

    def beat(said):
        write_claim(tmp_path, replace(claim, beat=7))

    with pytest.raises(StudyInUseError, match="on elsewhere since"):
        taken(str(tmp_path), beat)


def test_copy_of_a_lock_that_is_held_is_taken_over_after_a_silence(tmp_path, quick):
    mine = taken(str(tmp_path / "one"))
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    taken(str(tmp_path / "two"), lambda said: None).release()
    mine.release()


def test_session_that_was_taken_for_dead_is_told(place, quick):
    mine, lost = taken(place), []
    with mine.kept(lambda: lost.append(True)):
        mine._delete(mine._name)
        deadline = time.monotonic() + 20
        while not lost and time.monotonic() < deadline:
            time.sleep(0.05)
    assert lost


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"pid": 1}', "[" * 4000, '{"state": []}'])
def test_damaged_claim_is_waited_for_and_removed(tmp_path, quick, text):
    (tmp_path / "x.json").write_text(text)
    taken(str(tmp_path), lambda said: None).release()
    assert not tmp_path.exists() or list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"pid": -1}, {"pid": True}, {"pid": 2**70}, {"state": "x"}, {"host": 3}, {"process_start": "x"}]
)
def test_claim_of_another_form_is_none(change):
    claim = asdict(Claim.of_this_process("x"))
    assert Claim.parse(json.dumps(claim).encode()) == Claim(**claim)
    assert Claim.parse(json.dumps(claim | change).encode()) is None


def test_host_cannot_steer_the_terminal():
    assert "\x1b" not in str(replace(Claim.of_this_process("x"), host="\x1b[2J", since="\x1b[31m"))


def test_release_leaves_no_folder_that_was_made_for_the_lock(tmp_path):
    taken(str(tmp_path / "results" / "study" / ".lock")).release()
    assert list(tmp_path.iterdir()) == []


def test_link_in_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / ".lock").symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="is a link, which is not followed"):
        taken(str(tmp_path / ".lock"))


def test_folder_that_cannot_be_written_to_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="results/study cannot be written to"):
        taken(str(tmp_path / "file" / ".lock"))
