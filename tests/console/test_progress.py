"""What is printed: lines, dated in a file, under a view in a terminal."""

import io
import json
import re
from pathlib import Path

import pytest
from helpers.fuzz import cases
from helpers.names import NAMES
from hypothesis import given
from rich.console import Console

from delta_tune.config import TrialConfig, visible
from delta_tune.console.live_view import RunProgress
from delta_tune.console.progress import Progress
from delta_tune.console.streams import tolerant
from delta_tune.results.columns import EPOCH_COLUMNS
from delta_tune.results.tables import StudyTables

DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  "


@pytest.fixture
def tables(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    for number, (state, error) in enumerate((("completed", None), ("failed", "it broke (traceback in there)"))):
        tables.add(number, TrialConfig(regularizer="l2", max_epochs=1), {}, {})
        tables.report(number, dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": 1})
        tables.finish(number, state, error)
    return tables


def printing(verbose=1, **console):
    out = io.StringIO()
    return Progress(verbose=verbose, console=Console(file=out, highlight=False, soft_wrap=True, **console)), out


def terminal(verbose=1):
    return printing(verbose, force_terminal=True, width=100, height=30, color_system=None)


def tell(progress, tables):
    """All that a study tells."""
    standing = RunProgress(tables, 4)
    standing.begin(lambda: 1)
    progress.say("Two\nlines.")
    with progress.live(standing, tables, "Search"):
        progress.epoch(tables, 0, len(tables.epochs[0]))
        progress.trial(tables, 0, 4)
        progress.trial(tables, 1, 4, 75.0)
    with progress.bar("Work", 1) as advance:
        advance(1)
    progress.methods(tables)


def test_every_line_of_a_file_begins_with_date_and_time(tables):
    progress, out = printing(2)
    tell(progress, tables)
    lines = out.getvalue().splitlines()
    assert len(lines) > 8
    assert all(re.match(DATE, line) for line in lines), lines


def test_lines_of_a_file_say_how_far_the_study_is(tables):
    progress, out = printing()
    progress.trial(tables, 0, 4, 75.0)
    assert re.search(r"best 50\.0 % \(trial 0\), 2/4 trials, 0:00, about 1:15 left$", out.getvalue().rstrip())


def test_lines_of_a_study_without_a_number_of_trials_count_those_that_are_done(tables):
    progress, out = printing()
    progress.trial(tables, 0, None, 75.0)
    assert re.search(r"best 50\.0 % \(trial 0\), 2 trials, 0:00, about 1:15 left$", out.getvalue().rstrip())


def test_failed_trial_s_line_is_followed_by_its_error(tables):
    progress, out = printing()
    progress.trial(tables, 1, 4)
    assert out.getvalue().splitlines()[-1].endswith("  it broke (traceback in there)")


@pytest.mark.parametrize("made", [printing, terminal])
def test_nothing_is_said_at_verbose_0(tables, made):
    progress, out = made(0)
    tell(progress, tables)
    assert out.getvalue() == ""


def test_lines_of_a_terminal_stand_above_the_view_without_dates(tables):
    progress, out = terminal()
    tell(progress, tables)
    text = out.getvalue()
    assert not re.search(DATE, text)
    assert "2 of 4 trials done" in text
    assert "completed" in text


def test_terminal_is_left_as_it_was_where_the_run_raises(tables):
    progress, out = terminal()
    standing = RunProgress(tables, 4)
    with pytest.raises(KeyboardInterrupt), progress.live(standing, tables, "Search"):
        raise KeyboardInterrupt
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l"), "the cursor is there again"
    with progress.live(standing, tables, "Search"):
        pass  # and a second view can be opened


def test_terminal_is_left_as_it_was_where_the_process_is_about_to_end(tables):
    progress, out = terminal()
    with progress.live(RunProgress(tables, 4), tables, "Search"):
        progress.close()
        assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().rindex("\x1b[?25l")
    progress.close()


def test_bar_can_be_shown_while_the_view_is(tables):
    progress, _ = terminal()
    with progress.live(RunProgress(tables, 4), tables, "Search"), progress.bar("Work", 2) as advance:
        advance(2)


def test_bar_without_progress_is_silent(monkeypatch):
    monkeypatch.setattr("delta_tune.console.progress.SECONDS_BETWEEN_LINES", 0.0)
    progress, out = printing()
    with progress.bar("Work", 2) as advance:
        advance(0)
    assert "Work" not in out.getvalue()


def test_dumb_terminal_has_no_view(tables):
    progress, out = printing(force_terminal=True, _environ={"TERM": "dumb"})
    tell(progress, tables)
    assert "\x1b" not in out.getvalue()
    assert "trials done" not in out.getvalue()


@cases(30)
@given(NAMES)
def test_names_are_shown_as_they_are_everywhere(name):
    named = StudyTables(Path(), "val_accuracy")
    config = TrialConfig(regularizer="l2", max_epochs=1)
    for number, state in enumerate(("completed", "failed")):
        named.trials[number] = trial_row(number, config, name, state)
        named.epochs[number] = [dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": 1}]
    named.leader = 0
    shown = visible(name)
    for made in (
        lambda: printing(2, width=1000),
        lambda: printing(2, force_terminal=True, color_system=None, width=1000),
    ):
        progress, out = made()
        progress.say(f"({name})")
        assert f"({shown})" in out.getvalue()
        progress.trial(named, 1, 2)
        assert shown in out.getvalue().splitlines()[-1]
        out.truncate(0)
        with progress.live(RunProgress(named, 2), named, name), progress.bar(name, 1):
            pass
        progress.methods(named)
        told = re.sub(r"\x1b\[[\d;?]*[A-Za-z]|[\r\n\0]", "", out.getvalue())  # the view's own
        assert told == visible(told)
        assert shown.strip() in told


def trial_row(number, config, name, state):
    row = {"number": number, "state": state, "error": name, "epochs": 1, "train_seconds": 0.0}
    return row | {f"config.{k}": v for k, v in config.record().items()} | {"suggested": json.dumps({"_choice": name})}


def test_output_of_another_alphabet_gets_lines_and_no_view(tables):
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    console = Console(file=tolerant(file), force_terminal=True, color_system=None, width=100)
    tell(Progress(console=console), tables)
    file.flush()
    text = file.buffer.getvalue().decode("ascii")
    assert "Best by val_accuracy" in text
    assert "trials done" not in text


@pytest.mark.parametrize("width", [1, 2, 5, 20])
def test_narrow_terminal_is_enough(tables, width):
    progress, out = printing(force_terminal=True, width=width, height=2, color_system=None)
    tell(progress, tables)
    assert out.getvalue()


def test_study_goes_on_where_nobody_reads_its_output(tables, monkeypatch):
    class Pipe(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    monkeypatch.setattr("sys.stdout", Pipe())
    tell(Progress(), tables)
    monkeypatch.setattr("sys.stdout", None)
    tell(Progress(), tables)


def test_lines_of_a_study_of_several_networks_name_that_of_each_trial(tmp_path):
    tables = StudyTables(tmp_path, "val_accuracy")
    for number, label in enumerate(("one", "a long name")):
        tables.add(number, TrialConfig(regularizer="l2", max_epochs=1, backbone=label), {"backbone": label}, {})
        tables.report(number, dict.fromkeys(EPOCH_COLUMNS, 0.5) | {"epoch": 1})
        tables.finish(number, "completed")
    progress, out = printing()
    progress.networks = ("one", "a long name")
    tell(progress, tables)
    header, *lines = (line for line in out.getvalue().splitlines() if "network" in line or " l2 " in line)
    end = header.index("network") + len("network")
    assert [line[:end].split("  ")[-1].strip() for line in lines[:2]] == ["one", "a long name"]
    assert "l2 on a long name" in out.getvalue(), "the table of the best"
    assert "backbone=" not in out.getvalue()
