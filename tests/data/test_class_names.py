"""The order of classes, and names that look alike."""

import unicodedata

import pytest

from delta_tune.config import UserError
from delta_tune.data.class_names import alike_notes, in_one_form, natural_order, sorted_classes


def test_natural_order_sorts_numbers_by_value():
    assert sorted(["img10", "img2", "Img1", "b", "a"], key=natural_order) == ["a", "b", "Img1", "img2", "img10"]
    assert sorted(["10", "9", "-1", "0"], key=natural_order) == ["-1", "0", "9", "10"]


def test_find_classes_takes_those_of_train():
    assert sorted_classes({"train": ["b", "a", "b"], "val": ["a"]}) == ("a", "b")


def test_find_classes_refuses_a_class_that_train_lacks():
    with pytest.raises(UserError, match="test has the class c, which train does not have"):
        sorted_classes({"train": ["b", "a"], "test": ["a", "c"]})


def test_find_classes_refuses_a_single_class():
    with pytest.raises(UserError, match="only the class 'a'"):
        sorted_classes({"train": ["a", "a"]})


def test_find_classes_refuses_no_images():
    with pytest.raises(UserError, match="no training images"):
        sorted_classes({"train": []})


def test_sorted_classes_tells_which_name_differs_in_case_or_blanks_only():
    with pytest.raises(UserError, match="val has the class cat , which train does not have; rename it to 'Cat', add"):
        sorted_classes({"train": ["Cat", "dog"], "val": ["cat "]})


def test_names_in_two_unicode_forms_are_one_class():
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    labels, notes = in_one_form({"train": [decomposed, "the"], "val": [composed]})
    assert labels == {"train": [composed, "the"], "val": [composed]}
    assert notes == [
        "Classes whose names are written in several Unicode forms (NFC and NFD) were read as one: 'caf\u00e9'."
    ]


def test_names_in_one_unicode_form_need_no_note():
    assert in_one_form({"train": [unicodedata.normalize("NFD", "\u00e9"), "b", "\udce9"]}) == (
        {"train": ["\u00e9", "b", "\udce9"]},
        [],
    )


@pytest.mark.parametrize(
    "pair",
    [
        ("Cat", "cat"),
        ("ice cream", "icecream"),
        ("a", "a "),
        ("a b", "a\u00a0b"),
        ("a", "a\u200b"),
        ("STRASSE", "stra\u00dfe"),
        ("\u00c9", "\u00e9"),
    ],
)
def test_classes_that_differ_in_case_or_blanks_only_are_named(pair):
    (note,) = alike_notes([*pair, "dog"])
    assert note.startswith("Classes that differ only in upper and lower case or blanks are different classes: ")
    assert " and ".join(map(repr, pair)) in note
    assert "dog" not in note


def test_other_classes_are_not_alike():
    assert alike_notes(["a", "b", "a1", "a-1", "e", "\u00e9"]) == []
