"""A file of events that a kill cannot damage."""

import math

import pytest

from delta_tune.journal import Journal


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl")


def test_journal_has_no_events_before_the_first(journal):
    assert journal.events() == []


def test_journal_gives_events_back_in_their_order_and_bit_for_bit(journal):
    events = [{"a": 0.1 + 0.2, "b": None}, {"a": 5e-324, "b": "two\nlines, ü"}, {"a": -math.inf, "b": True}]
    for event in events:
        journal.append(event)
    assert journal.events() == events


def test_journal_keeps_what_is_not_a_number(journal):
    journal.append({"a": math.nan})
    assert math.isnan(journal.events()[0]["a"])


def test_journal_is_on_disk_after_each_event(journal, tmp_path):
    sizes = []
    for number in range(3):
        journal.append({"number": number})
        sizes.append((tmp_path / "journal.jsonl").stat().st_size)
    assert sizes == [sizes[0], 2 * sizes[0], 3 * sizes[0]]


@pytest.mark.parametrize("lost", range(1, 13))
def test_journal_leaves_out_an_event_that_was_being_written(journal, tmp_path, lost):
    journal.append({"number": 0})
    journal.append({"number": 1})
    file = tmp_path / "journal.jsonl"
    file.write_bytes(file.read_bytes()[:-lost])
    assert journal.events() == [{"number": 0}]


def test_journal_refuses_a_damaged_line(journal, tmp_path):
    (tmp_path / "journal.jsonl").write_text('{"a":\n{"a": 1}\n')
    with pytest.raises(ValueError, match="Expecting value"):
        journal.events()


def test_journal_is_gone_once_it_is_cleared(journal, tmp_path):
    journal.clear()
    journal.append({"number": 0})
    journal.clear()
    assert list(tmp_path.iterdir()) == []
