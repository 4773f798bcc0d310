"""Label maps rename, merge and leave out classes."""

import unicodedata

import pytest

from delta_tune.config import UserError
from delta_tune.data.label_map import apply_label_map, read_label_map
from delta_tune.data.sources.base import Examples, Source


def source_of(train, val=()):
    splits = {"train": train} | ({"val": val} if val else {})
    return Source(
        name="s",
        splits={
            split: Examples(
                labels=list(labels),
                names=[f"{split}{row}" for row in range(len(labels))],
                read=lambda row: b"%d" % row,
                groups=[str(row) for row in range(len(labels))],
            )
            for split, labels in splits.items()
        },
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.csv", 'from,to\ntabby,cat\n"crane, bird",bird\nnone of these,\n'),
        ("m.csv", '\ufefftabby,cat\r\n"crane, bird", bird\r\nnone of these,\r\n\r\n'),
        ("m.json", '{"tabby": "cat", "crane, bird": "bird", "none of these": null}'),
        ("m.json", '{"tabby": "cat", "crane, bird": "bird", "none of these": ""}'),
    ],
)
def test_label_map_is_read_from_csv_and_json(tmp_path, name, text):
    (tmp_path / name).write_bytes(text.encode())
    assert read_label_map(tmp_path / name) == {"tabby": "cat", "crane, bird": "bird", "none of these": ""}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", "tabby\n", "has the line 'tabby'"),
        ("m.csv", "tabby,cat\ntabby,dog\n", "names 'tabby' twice, for 'cat' and 'dog'"),
        ("m.json", '{"tabby": "cat", "tabby": "dog"}', "names 'tabby' twice"),
        ("m.json", '["tabby"]', "it is no object"),
        ("m.json", "[]", "it is no object"),
        ("m.json", '{"tabby": 3}', "a new name is no text"),
        ("m.json", "[" * 100_000, "cannot be read"),
        ("m.csv", "\xff", "cannot be read"),
    ],
)
def test_label_map_that_cannot_be_read_is_refused(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_label_map(tmp_path / name)


def test_missing_label_map_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"m\.csv' cannot be read \(No such file"):
        read_label_map(tmp_path / "m.csv")


def test_classes_are_renamed_merged_and_left_out():
    source = source_of(["tabby", "dog", "siamese", "other"], ["siamese", "other"])
    mapped = apply_label_map(source, {"tabby": "cat", "siamese": "cat", "other": ""})
    assert {split: list(found.labels) for split, found in mapped.splits.items()} == {
        "train": ["cat", "dog", "cat"],
        "val": ["cat"],
    }
    train = mapped.splits["train"]
    assert (train.names, train.groups, train.read(2)) == (["train0", "train1", "train2"], ["0", "1", "2"], b"2")
    assert mapped.notes == (
        "The label map renames 3 classes (2 as 'cat'); there are 2 now.",
        "The label map leaves 2 images out.",
    )


def test_names_may_be_swapped():
    assert apply_label_map(source_of(["a", "b"]), {"a": "b", "b": "a"}).splits["train"].labels == ["b", "a"]


def test_of_several_labels_those_left_out_are_taken_away():
    mapped = apply_label_map(source_of([("a", "b", "c"), ("c",), ()]), {"a": "x", "b": "x", "c": ""})
    assert mapped.splits["train"].labels == [("x",), (), ()]


def test_forms_of_unicode_are_one_name():
    mapped = apply_label_map(source_of([unicodedata.normalize("NFD", "é"), "b"]), {"é": "e"})
    assert mapped.splits["train"].labels == ["e", "b"]


def test_unknown_class_is_refused_with_the_nearest():
    with pytest.raises(UserError, match=r"names the class 'tabbi', .*\(did you mean tabby\?\)"):
        apply_label_map(source_of(["tabby", "dog"]), {"tabbi": "cat"})
