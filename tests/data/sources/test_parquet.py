"""Parquet data sets: which file is which split, what labels mean, and what is refused before it is decoded."""

import io
import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fuzz import cases
from hypothesis import given
from hypothesis import strategies as st

from delta_tune.config import UserError
from delta_tune.data.sources import parquet_columns, parquet_rows
from delta_tune.data.sources.find import find_source

FUZZ = cases(150)


def table_of(labels, *, names=None, metadata=None):
    """Rows whose image is the row's number."""
    table = pa.table({"image": [b"%d" % row for row in range(len(labels))], "label": labels})
    if names:
        metadata = json.dumps({"info": {"features": {"label": {"names": names, "_type": "ClassLabel"}}}})
    return table.replace_schema_metadata({"huggingface": metadata}) if metadata else table


def write(folder, *paths, table=None):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_of(["a", "b"]) if table is None else table, folder / path)


def files_of(source, folder):
    """Split → the paths that its rows come from."""
    return {
        split: sorted({os.path.relpath(name.rpartition(":")[0], folder) for name in examples.names})
        for split, examples in source.splits.items()
    }


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("pets_train.parquet", "pets_test.parquet"),
        ("train.parquet/part-0.parquet", "test.parquet/part-0.parquet"),
        ("data/train.parquet/part-0", "data/test.parquet/part-0"),
        ("split=train/part-0.parquet", "split=test/part-0.parquet"),
        ("year=2020/split=train/0.parquet", "year=2020/split=test/0.parquet"),
        ("training.parquet", "testing.parquet"),
        ("TRAIN.parquet", "Test.PARQUET"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("partial-train/0000.parquet", "partial-test/0000.parquet"),
        ("train-00000-of-00004.parquet", "test-00000-of-00001.parquet"),
        ("train2017.snappy.parquet", "test2017.snappy.parquet"),
        ("petsTrain.parquet", "petsTest.parquet"),
        ("trainset.parquet", "test_data.parquet"),
        ("a/b/c/train/x/0.parquet", "a/b/c/test/x/0.parquet"),
    ],
)
def test_split_is_read_in_any_part_of_the_path(tmp_path, train, test):
    write(tmp_path, train, test)
    source = find_source(tmp_path, seed=0)
    assert files_of(source, tmp_path) == {"train": [train], "test": [test]}
    assert source.notes[0] == f"The names of the Parquet files tell the splits: train is {train!r}; test is {test!r}."


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev", "eval"])
def test_split_val_has_many_names(tmp_path, name):
    write(tmp_path, "train.parquet", f"{name}.parquet")
    assert files_of(find_source(tmp_path, seed=0), tmp_path)["val"] == [f"{name}.parquet"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["train.parquet", "train/test-0.parquet"], "'train/test-0.parquet' names test and train"),
        (["train_test.parquet"], "names test and train, but can be only one split"),
        (["train.parquet", "extra.parquet"], r"name no split \('extra.parquet'\) beside others that do"),
        (["test.parquet", "trainval.parquet"], r"name no split \('trainval.parquet'\)"),
        (["train.parquet", "dev.parquet", "eval.parquet"], "dev and eval all mean val"),
        (["split=0/a.parquet", "split=1/a.parquet"], "'split=0' does not say which split"),
        (["split=train/a.parquet", "split=extra/a.parquet"], "'split=extra' does not say which split"),
        (["is_test=0/a.parquet", "is_test=1/a.parquet"], "'is_test=0' does not say which split"),
        (["mytrain.parquet", "mytest.parquet"], "'mytest.parquet' may be a split of its own beside train"),
        (["test.parquet"], "test but none of train: test is 'test.parquet'"),
    ],
)
def test_split_that_is_open_is_refused(tmp_path, paths, message):
    write(tmp_path, *paths)
    with pytest.raises(UserError, match=message):
        find_source(tmp_path, seed=0)


def test_files_of_no_split_are_train_and_said(tmp_path):
    write(tmp_path, "latest.parquet", "sub/contest.parquet")
    source = find_source(tmp_path, seed=0)
    assert files_of(source, tmp_path) == {"train": ["latest.parquet", "sub/contest.parquet"]}
    assert "all are train: 'latest.parquet', 'sub/contest.parquet'" in source.notes[0]


def test_file_that_is_given_is_train_whatever_its_name(tmp_path):
    write(tmp_path, "pets_test.parquet")
    source = find_source(tmp_path / "pets_test.parquet", seed=0)
    assert list(source.splits) == ["train"]
    assert source.notes == ("'pets_test.parquet' is all of the data, so it is train although its name says test.",)


def test_names_above_the_data_say_no_split(tmp_path):
    write(tmp_path / "test", "part-0.parquet")
    assert list(find_source(tmp_path / "test", seed=0).splits) == ["train"]


def test_names_with_an_underscore_in_front_are_set_aside_and_said(tmp_path):
    write(tmp_path, "train.parquet/part-0", "train.parquet/_temporary/0.parquet", "train.parquet/_metadata")
    source = find_source(tmp_path, seed=0)
    assert files_of(source, tmp_path) == {"train": ["train.parquet/part-0"]}
    assert "'train.parquet/_temporary/0.parquet'" in source.notes[1]


def test_links_in_a_loop_are_read_once(tmp_path):
    write(tmp_path, "train/0.parquet")
    (tmp_path / "train" / "up").symlink_to(tmp_path)
    assert len(find_source(tmp_path, seed=0).splits["train"].labels) == 2


def test_link_that_leads_nowhere_is_refused(tmp_path):
    write(tmp_path, "train-0.parquet")
    (tmp_path / "train-1.parquet").symlink_to("missing")
    with pytest.raises(UserError, match=r"No file is behind 'train-1\.parquet'"):
        find_source(tmp_path, seed=0)


NEUTRAL = ["pets", "part", "0", "v2", "default", "latest", "trainer", "x"]
WORDS = {"train": "train", "Training": "train", "val": "val", "dev": "val", "TEST": "test", "testing": "test"}
PARTS = st.lists(
    st.tuples(st.sampled_from(NEUTRAL + list(WORDS)), st.sampled_from(["_", "-", ".", "/", " "])),
    min_size=1,
    max_size=5,
)


@FUZZ
@given(parts=PARTS)
def test_path_is_one_split_or_refused(tmp_path_factory, parts):
    folder = tmp_path_factory.mktemp("data")
    write(folder, "train-0.parquet", "".join(word + separator for word, separator in parts) + "1.parquet")
    said = {WORDS[word] for word, _ in parts if word in WORDS}
    try:
        found = {split: len(examples.labels) for split, examples in find_source(folder, seed=0).splits.items()}
    except UserError:
        assert len(said) != 1
    else:
        (split,) = said
        assert found == ({"train": 4} if split == "train" else {"train": 2, split: 2})


NAMES = b'{"info": {"features": {"label": {"names": %s}}}}'


@pytest.mark.parametrize(
    "metadata",
    [
        b"{no json",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"x": ' + b"9" * 5000 + b"}",
        b"null",
        b"[]",
        b'{"info": null}',
        b'{"info": {"features": {"label": null}}}',
        NAMES % b"null",
        NAMES % b'{"0": "a"}',
        NAMES % b"[1, 2]",
        NAMES % b"[[1], [2]]",
        NAMES % b'["a", ""]',
        NAMES % b'["a", "a"]',
        NAMES % b'["\\ud800", "b"]',
        NAMES % (b'["' + b"x" * 5000 + b'", "b"]'),
    ],
)
def test_metadata_without_names_leaves_the_numbers_and_is_said(tmp_path, metadata):
    write(tmp_path, "a.parquet", table=table_of([0, 1], metadata=metadata))
    source = find_source(tmp_path, seed=0)
    assert source.splits["train"].labels == ["0", "1"]
    assert "names no classes that can be used" in source.notes[-1]


@pytest.mark.parametrize("first", [0, 1])
def test_names_in_one_file_hold_for_all_and_are_said(tmp_path, first):
    write(tmp_path, f"train-{first}.parquet", table=table_of([0, 1], names=["cat", "dog"]))
    write(tmp_path, f"train-{1 - first}.parquet", "test.parquet", table=table_of([1, 0]))
    source = find_source(tmp_path, seed=0)
    assert source.splits["test"].labels == ["dog", "cat"]
    assert sorted(source.splits["train"].labels) == ["cat", "cat", "dog", "dog"]
    assert f"train-{first}.parquet' hold for all" in source.notes[1]


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ([table_of([0], names=["a", "b"]), table_of([0], names=["b", "a"])], "0 is 'a' or 'b'"),
        ([table_of([0], names=["a", "b"]), table_of([0], names=["a", "b", "c"])], "2 or 3 names"),
        ([table_of([0], names=["a", "b"]), table_of([2])], "the label 2, but the metadata names the labels 0 to 1"),
        ([table_of([0, -1], names=["a", "b"])], "the label -1, which marks a row without a label"),
        ([table_of([0]), table_of(["a"])], "label is a string in .* but an integer in"),
        ([table_of(["9" * 5000])], "value of 5,000 bytes"),
        ([table_of(["a", " "])], "blank values"),
        ([table_of(["a"]).append_column("label", pa.array(["b"]))], "2 columns 'label'"),
    ],
)
def test_labels_that_contradict_are_refused(tmp_path, tables, message):
    for number, table in enumerate(tables):
        write(tmp_path, f"train-{number}.parquet", table=table)
    with pytest.raises(UserError, match=message):
        find_source(tmp_path, seed=0)


def test_categories_that_no_row_has_are_no_classes(tmp_path):
    label = pa.DictionaryArray.from_arrays(pa.array([2, 1]), pa.array(["", "b", "c"]))
    write(tmp_path, "a.parquet", table=pa.table({"image": [b"", b""], "label": label}))
    assert find_source(tmp_path, seed=0).splits["train"].labels == ["c", "b"]


def test_labels_that_are_not_utf8_are_refused(tmp_path):
    label = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32)), pa.py_buffer(b"\xff")]
    )
    write(tmp_path, "a.parquet", table=pa.table({"image": [b""], "label": label}))
    with pytest.raises(UserError, match="Invalid UTF8"):
        find_source(tmp_path, seed=0)


def test_too_many_rows_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "MAX_ROWS", 3)
    write(tmp_path, "train-0.parquet", "train-1.parquet")
    with pytest.raises(UserError, match="have 4 rows, but at most 3 are read"):
        find_source(tmp_path, seed=0)


def test_rows_that_unfold_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_columns, "STEP_SIZE", 1000)
    table = pa.table({"image": [bytes(1_000_000)] * 2, "label": ["a", "b"]})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(UserError, match=r"would unfold from .* to 1\.91 MiB in 2 rows"):
        find_source(tmp_path, seed=0)


def test_rows_larger_than_images_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_columns, "MAX_FILE_SIZE", 50)
    write(tmp_path, "a.parquet", table=pa.table({"image": [bytes(200), b""], "label": ["a", "b"]}))
    with pytest.raises(UserError, match="in 2 rows; give PNG or JPEG images of at most 50 B"):
        find_source(tmp_path, seed=0)


def test_one_image_that_is_too_large_is_a_damaged_image(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_rows, "MAX_FILE_SIZE", 150)
    write(tmp_path, "a.parquet", table=pa.table({"image": [bytes(200), b"1"], "label": ["a", "b"]}))
    read = find_source(tmp_path, seed=0).splits["train"].read
    with pytest.raises(OSError, match="more than 150 B: make it smaller"):
        read(0)
    assert read(1) == b"1"


@pytest.mark.parametrize("encoding", ["RLE_DICTIONARY", "DELTA_BYTE_ARRAY"])
def test_repeated_images_take_memory_for_a_few(tmp_path, monkeypatch, encoding):
    monkeypatch.setattr(parquet_columns, "STEP_SIZE", 1_000_000)
    table = pa.table({"image": [random.Random(0).randbytes(100_000)] * 50, "label": ["a", "b"] * 25})
    options = {"use_dictionary": True} if encoding == "RLE_DICTIONARY" else {"column_encoding": {"image": encoding}}
    pq.write_table(table, tmp_path / "a.parquet", **{"use_dictionary": False, **options})
    with pq.ParquetFile(tmp_path / "a.parquet") as parquet:
        steps = list(parquet_columns.decode_steps(parquet, "a", 0, "image"))
    assert sum(map(len, steps)) == 50
    assert max(step.nbytes for step in steps) <= 1_000_000


@pytest.mark.parametrize("kept", [0, 40, 10**6])
def test_images_are_the_same_in_any_order_from_any_thread(tmp_path, monkeypatch, kept):
    monkeypatch.setattr(parquet_rows, "_KEPT_SIZE", kept)
    monkeypatch.setattr(parquet_columns, "_STEP_ROWS", 3)
    for number in range(3):
        images = [b"%d-%d" % (number, row) for row in range(20)]
        table = pa.table({"image": images, "label": ["a"] * 20})
        pq.write_table(table, tmp_path / f"{number}.parquet", row_group_size=7)
    order = random.Random(0).choices(range(60), k=300)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(find_source(tmp_path, seed=0).splits["train"].read, order))
    assert found == [b"%d-%d" % divmod(row, 20) for row in order]


def test_file_that_has_lost_rows_is_refused(tmp_path):
    write(tmp_path, "a.parquet", table=table_of(["a", "b"] * 5))
    train = find_source(tmp_path, seed=0).splits["train"]
    write(tmp_path, "a.parquet", table=table_of(["a", "b"]))
    with pytest.raises(UserError, match=r"a\.parquet' has fewer rows than before"):
        train.read(9)


def encoded(table, **options):
    file = io.BytesIO()
    pq.write_table(table, file, **options)
    return file.getvalue()


SOUND = [
    encoded(table_of([0, 1] * 4, names=["cat", "dog"]), compression="none"),
    encoded(table_of(["a", "b"] * 4), row_group_size=3, write_page_checksum=True),
    encoded(table_of(["a", "b"] * 4), data_page_version="2.0", use_dictionary=False, compression="zstd"),
]


@FUZZ
@given(
    content=st.sampled_from(SOUND),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    kept=st.floats(0.5, 1),
)
def test_damaged_file_is_read_or_refused(tmp_path, content, changes, kept):
    damaged = bytearray(content if kept > 0.6 else content[: int(len(content) * kept)])
    for place, value in changes:
        damaged[int(place * len(damaged))] = value
    (tmp_path / "a.parquet").write_bytes(damaged)
    with suppress(UserError):
        train = find_source(tmp_path, seed=0).splits["train"]
        for row in range(len(train.labels)):
            assert isinstance(train.read(row), bytes)
