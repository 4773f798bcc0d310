"""A file of events that a kill cannot damage."""

import math

import pytest

from delta_tune.results.journal import Journal


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal.jsonl")


def test_journal_has_no_events_before_the_first(journal):
    assert journal.resume(0) == []


def test_journal_gives_events_back_in_their_order_and_bit_for_bit(journal):
    events = [{"a": 0.1 + 0.2, "b": None}, {"a": 5e-324, "b": "two\nlines, ü"}, {"a": -math.inf, "b": True}]
    for event in events:
        journal.append(event)
    assert journal.resume(0) == events


def test_journal_keeps_what_is_not_a_number(journal):
    journal.append({"a": math.nan})
    assert math.isnan(journal.resume(0)[0]["a"])


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
    assert journal.resume(0) == [{"number": 0}]


def test_journal_refuses_a_damaged_line(journal, tmp_path):
    (tmp_path / "journal.jsonl").write_text('[1, {"a":\n[2, {"a": 1}]\n')
    with pytest.raises(ValueError, match="Expecting value"):
        journal.resume(0)


def test_journal_is_gone_once_it_is_cleared(journal, tmp_path):
    journal.clear()
    journal.append({"number": 0})
    journal.clear()
    assert list(tmp_path.iterdir()) == []


def test_journal_tells_only_what_follows_the_tables(journal):
    for number in range(4):
        journal.append({"number": number})
    assert journal.resume(3) == [{"number": 3}]
    assert journal.resume(5) == []
    assert journal.count == 5


def test_journal_tells_nothing_after_a_gap(journal, tmp_path):
    for number in range(4):
        journal.append({"number": number})
    file = tmp_path / "journal.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:2] + lines[3:]))
    assert journal.resume(0) == [{"number": 0}, {"number": 1}]


def test_journal_goes_on_counting_where_it_was_resumed(journal):
    journal.append({"number": 0})
    journal.clear()
    journal.resume(1)
    journal.append({"number": 1})
    assert journal.resume(1) == [{"number": 1}]
