"""Tracebacks in the study's log."""

import pytest

from delta_tune.config import UserError
from delta_tune.results.layout import LOG_FILE, STUDY_FILE
from delta_tune.results.log import crash_logged, error_in_short, log_traceback, may_fail


def test_step_that_fails_is_said_in_a_sentence_with_the_place_of_its_traceback(tmp_path):
    said = []
    with may_fail("The card", tmp_path, said.append):
        raise KeyError("caf\udce9")
    assert said[0].startswith("The card cannot be written (KeyError: ")
    assert said[0].endswith(f"Its traceback is in {tmp_path / LOG_FILE}.")
    assert "Traceback" in (tmp_path / LOG_FILE).read_text()


def test_step_does_not_take_an_interrupt(tmp_path):
    with pytest.raises(KeyboardInterrupt), may_fail("The card", tmp_path, print):
        raise KeyboardInterrupt


def test_log_that_cannot_be_written_is_said(tmp_path):
    said = log_traceback(tmp_path / "none" / LOG_FILE, ValueError("x"))
    assert said == f"Its traceback cannot be written to {tmp_path / 'none' / LOG_FILE} (No such file or directory)."


def test_crash_is_logged_and_noted_with_the_command_to_go_on(tmp_path):
    (tmp_path / STUDY_FILE).write_text("{}")
    with pytest.raises(ZeroDivisionError) as raised, crash_logged(tmp_path, "python launch.py --resume"):
        raise ZeroDivisionError("by nothing")
    (note,) = raised.value.__notes__
    assert str(tmp_path / LOG_FILE) in note
    assert note.endswith("continue with: python launch.py --resume")
    assert "ZeroDivisionError: by nothing" in (tmp_path / LOG_FILE).read_text()


def test_mistakes_of_users_are_not_logged(tmp_path):
    (tmp_path / STUDY_FILE).write_text("{}")
    with pytest.raises(UserError), crash_logged(tmp_path, ""):
        raise UserError("no")
    assert not (tmp_path / LOG_FILE).exists()


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("a\nb"), "ValueError: a"), (ValueError(), "ValueError: no cause is known")]
)
def test_error_in_short_is_one_line(error, said):
    assert error_in_short(error) == said
