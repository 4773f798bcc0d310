"""What becomes of a trial whose last process ended itself."""

from __future__ import annotations

import pytest

from delta_tune.results.layout import BROKEN_BEFORE_FILE, BROKEN_FILE, ERROR_FILE
from delta_tune.search import process_faults
from delta_tune.search.messages import is_broken_twice
from delta_tune.search.process_faults import Note, judge_note


def judged(folder, kind, *, device="cpu", gpus=0.5):
    if kind is not None:
        Note(kind=kind, text="AcceleratorError: of a test, on GPU 1 of node n", traceback="Traceback\n").write(folder)
    return judge_note(folder, 3, device=device, gpus=gpus)


def test_trial_without_a_note_is_not_judged(tmp_path):
    assert judged(tmp_path, None) is None
    (tmp_path / BROKEN_FILE).write_text("what no process wrote")
    assert judged(tmp_path, None) is None


@pytest.mark.parametrize("kind", ["GPU", "host memory"])
def test_trial_goes_on_once_and_the_user_is_told_where_it_was(tmp_path, kind):
    verdict = judged(tmp_path, kind)
    assert verdict.outcome is None
    assert "Trial 3 goes on in a new process" in verdict.sentence
    assert "GPU 1 of node n" in verdict.sentence
    assert [file.name for file in tmp_path.iterdir()] == [BROKEN_BEFORE_FILE]


def test_second_broken_context_in_an_epoch_is_the_trial_s_own(tmp_path):
    judged(tmp_path, "GPU")
    verdict = judged(tmp_path, "GPU")
    assert verdict.outcome == "failed"
    assert is_broken_twice(verdict.sentence)
    assert "AcceleratorError: of a test, on GPU 1 of node n; traceback in checkpoints/00003" in verdict.sentence
    assert (tmp_path / ERROR_FILE).read_text() == "Traceback\n"
    assert not (tmp_path / BROKEN_FILE).exists()


def test_gpu_that_cannot_add_in_a_new_process_is_lost_and_the_trial_is_not_to_blame(tmp_path, monkeypatch):
    monkeypatch.setattr(process_faults, "device_failure", lambda device: "AcceleratorError: it fell off the bus")
    for _ in range(3):
        verdict = judged(tmp_path, "GPU", device="cuda")
        assert verdict.outcome == "GPU lost"
        assert "it fell off the bus" in verdict.sentence
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("gpus", "outcome"), [(0.5, "out of memory"), (1.0, "failed")])
def test_too_little_memory_is_told_by_the_new_process(tmp_path, gpus, outcome):
    verdict = judged(tmp_path, "GPU memory", gpus=gpus)
    assert verdict.outcome == outcome
    assert "the GPU's memory is too small" in verdict.sentence
    assert not (tmp_path / BROKEN_FILE).exists()


def test_too_little_memory_of_the_node_twice_is_told_with_advice(tmp_path):
    judged(tmp_path, "host memory", gpus=0.0)
    verdict = judged(tmp_path, "host memory", gpus=0.0)
    assert verdict.outcome == "failed"
    assert "the node's memory is too small" in verdict.sentence
    assert "--max-concurrent-trials" in verdict.sentence
