"""Text from anywhere: what is unseen is shown as an escape, all else stays."""

import unicodedata

import pytest
from helpers.fuzz import cases
from helpers.names import FILE_NAMES, NAMES
from hypothesis import given

from delta_tune.config import UserError, as_utf8, visible
from delta_tune.data.images import DamagedImage


@pytest.mark.parametrize(
    "name", ["photos", "Größe 3", "日本　語", "👩\u200d🔬", "می\u200cخواهم", "a [b] <c> :d:", "C:\\x"]
)
def test_visible_leaves_what_can_be_seen(name):
    assert visible(name) == name


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[2J", r"\x1b[2J"),
        ("caf\udce9", r"caf\xe9"),
        ("a\u202eb", r"a\u202eb"),
        ("\ud800", r"\ud800"),
    ],
)
def test_visible_escapes_what_cannot(name, shown):
    assert visible(name) == shown


@cases(150)
@given(NAMES | FILE_NAMES)
def test_visible_text_is_one_line_without_controls_and_surrogates(name):
    shown = visible(name)
    assert len(shown.splitlines()) <= 1
    assert not {unicodedata.category(c) for c in shown if c not in "\u200c\u200d"} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert visible(shown) == shown
    shown.encode()


def test_visible_keeps_what_it_is_told_to():
    assert visible("a\n\tb\x1b", keep="\n\t") == "a\n\tb\\x1b"


@cases(150)
@given(NAMES | FILE_NAMES)
def test_as_utf8_changes_surrogates_only(name):
    as_utf8(name).encode()
    if not any("\ud800" <= c <= "\udfff" for c in name):
        assert as_utf8(name) == name


@cases(100)
@given(NAMES)
def test_errors_show_names_without_controls(name):
    for error in (UserError(f"{name} is missing."), DamagedImage(name, name)):
        assert str(error) == visible(str(error))
