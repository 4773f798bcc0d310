"""Tables of paths, labels, splits and groups: what is read, and what is refused in one sentence."""

import json
import tarfile

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.data.sources.find import find_source
from delta_tune.data.sources.label_cells import parts_of, separator_in
from delta_tune.data.sources.table_columns import find_columns


def write(root, *paths):
    """Files with their own path as content: nothing here looks into them."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())


def rows_of(source):
    """Split → label and content of each row."""
    return {
        split: [(label, examples.read(i).decode()) for i, label in enumerate(examples.labels)]
        for split, examples in source.splits.items()
    }


@pytest.fixture
def photos(tmp_path):
    """Four images beside where a table will be."""
    write(tmp_path, "a.jpg", "b.jpg", "deep/c.jpg", "deep/d.jpg")
    return tmp_path


CSV = "FORMAT csv, HEADER"
FRAME = {
    "image": ["a.jpg", "b.jpg", "deep/c.jpg", "deep/d.jpg"],
    "label": ["cat", "dog, big", "001", "cat"],
    "split": ["train", "Training", "val", "test"],
    "group": ["x", None, "y", "y"],
}
EXPECTED = {
    "train": [("cat", "a.jpg"), ("dog, big", "b.jpg")],
    "val": [("001", "deep/c.jpg")],
    "test": [("cat", "deep/d.jpg")],
}


def by_pandas(path):
    frame = pd.DataFrame(FRAME)
    if path.suffix == ".jsonl":
        frame.to_json(path, orient="records", lines=True)
    elif path.suffix == ".parquet":
        frame.astype({"label": "category"}).to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")


def by_polars(path):
    frame = pl.DataFrame(FRAME)
    if path.suffix == ".jsonl":
        frame.write_ndjson(path)
    elif path.suffix == ".parquet":
        frame.with_columns(pl.col("label").cast(pl.Categorical)).write_parquet(path)
    else:
        frame.write_csv(path, separator="\t" if path.suffix == ".tsv" else ",", include_bom=path.suffix == ".csv")


def by_duckdb(path):
    options = {".jsonl": "FORMAT json", ".parquet": "FORMAT parquet", ".tsv": "FORMAT csv, DELIMITER '\t', HEADER"}
    duckdb.from_arrow(pa.table(FRAME)).query("rows", f"COPY rows TO '{path}' ({options.get(path.suffix, CSV)})")


@pytest.mark.parametrize("writer", [by_pandas, by_polars, by_duckdb])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_tables_of_three_writers_give_paths_labels_splits_and_groups(photos, writer, suffix):
    writer(photos / f"table{suffix}")
    source = find_source(photos / f"table{suffix}", seed=0)
    assert rows_of(source) == EXPECTED
    assert {split: list(found.groups) for split, found in source.splits.items()} == {
        "train": ["x", ""],
        "val": ["y"],
        "test": ["y"],
    }
    assert source.name == "table"
    assert source.splits["val"].names == [str(photos / "deep" / "c.jpg")]
    assert "The column split tells the splits: train 2, val 1, test 1." in source.notes


def test_csv_of_a_european_excel_is_read(photos):
    (photos / "t.csv").write_bytes("\ufeffimage;label\r\na.jpg;Bär\r\nb.jpg;dog, big\r\n".encode())
    assert rows_of(find_source(photos / "t.csv", seed=0))["train"] == [("Bär", "a.jpg"), ("dog, big", "b.jpg")]


def test_names_of_rows_that_pandas_writes_are_no_labels(photos):
    pd.DataFrame({"image": ["a.jpg", "b.jpg"], "label": [10, 9]}).to_csv(photos / "t.csv")
    assert find_source(photos / "t.csv", seed=0).splits["train"].labels == ["10", "9"]


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (pa.array([True, False]), ["true", "false"]),
        (pa.array([1.0, 2.0]), ["1", "2"]),
        (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
        (pa.array(["x|y", "z"]), ["x|y", "z"]),
        (pa.array(["x", "y"], pa.string_view()), ["x", "y"]),
    ],
)
def test_parquet_labels_of_many_types(tmp_path, values, labels):
    pq.write_table(pa.table({"image": [b"0", b"1"], "label": values}), tmp_path / "a.parquet")
    assert find_source(tmp_path / "a.parquet", seed=0).splits["train"].labels == labels


def test_parquet_struct_is_read_at_its_path_where_it_has_no_bytes(photos):
    images = [{"bytes": b"own", "path": "x.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": None, "path": None}]
    pq.write_table(pa.table({"image": images, "label": ["a", "b", "c"]}), photos / "t.parquet")
    train = find_source(photos / "t.parquet", seed=0).splits["train"]
    assert [train.read(row) for row in range(3)] == [b"own", b"b.jpg", b""]


def test_groups_and_splits_beside_encoded_images_are_read(tmp_path):
    table = {"image": [b"0", b"1", b"2"], "label": [0, 1, 0], "split": ["val", "train", "train"], "group": [7, None, 7]}
    pq.write_table(pa.table(table), tmp_path / "t.parquet", row_group_size=2)
    source = find_source(tmp_path / "t.parquet", seed=0)
    assert rows_of(source) == {"train": [("1", "1"), ("0", "2")], "val": [("0", "0")]}
    assert source.splits["train"].groups == ["", "7"]
    assert source.splits["train"].names[1].endswith("t.parquet:2")


# ------------------------------------------------------------------------------------------------ several labels


def hugging_face(column, names):
    return {"huggingface": json.dumps({"info": {"features": {column: names}}})}


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "_type": "Sequence"},
        {"feature": {"names": ["cat", "dog"], "_type": "ClassLabel"}, "_type": "List"},
        [{"names": ["cat", "dog"], "_type": "ClassLabel"}],
    ],
)
def test_list_column_gives_several_labels_with_the_names_of_hugging_face(tmp_path, feature):
    table = pa.table({"image": [b"0", b"1", b"2"], "labels": [[1, 0, 1], [], None]})
    pq.write_table(table.replace_schema_metadata(hugging_face("labels", feature)), tmp_path / "a.parquet")
    assert find_source(tmp_path / "a.parquet", seed=0).splits["train"].labels == [("dog", "cat"), (), ()]


@pytest.mark.parametrize("kind", [pa.list_, pa.large_list, lambda inner: pa.list_(inner, 2)])
def test_list_columns_of_all_kinds(tmp_path, kind):
    labels = pa.array([["a", "b"], ["b", "c"]], kind(pa.string()))
    pq.write_table(pa.table({"image": [b"0", b"1"], "label": labels}), tmp_path / "a.parquet")
    assert find_source(tmp_path / "a.parquet", seed=0).splits["train"].labels == [("a", "b"), ("b", "c")]


@pytest.mark.parametrize(
    ("column", "cells", "labels"),
    [
        ("label", ["cat|dog", "cat", "bird"], [("cat", "dog"), ("cat",), ("bird",)]),
        ("label", ["cat;dog", "cat", "bird"], [("cat", "dog"), ("cat",), ("bird",)]),
        ("labels", ["cat|dog", "dog|cat", ""], [("cat", "dog"), ("dog", "cat"), ()]),
        ("tags", ["cat, dog", "dog", "cat"], [("cat", "dog"), ("dog",), ("cat",)]),
        ("labels", ["['cat', 'dog']", "[]", '["cat"]'], [("cat", "dog"), (), ("cat",)]),
        ("label", ["crane, bird", "crane, machine", "bird"], ["crane, bird", "crane, machine", "bird"]),
        ("label", ["n01;crane", "n02;heron", "n03;bird"], ["n01;crane", "n02;heron", "n03;bird"]),
        ("labels", ["cat", "dog", "bird"], ["cat", "dog", "bird"]),
    ],
)
def test_cells_of_csv_may_hold_several_labels(photos, column, cells, labels):
    images = ["a.jpg", "b.jpg", "deep/c.jpg"]
    pd.DataFrame({"image": images, column: cells}).to_csv(photos / "t.csv", index=False)
    source = find_source(photos / "t.csv", seed=0)
    assert source.splits["train"].labels == labels
    assert any("may hold several labels" in note for note in source.notes) == isinstance(labels[0], tuple)


def test_comma_that_may_belong_to_a_name_is_refused():
    with pytest.raises(UserError, match=r"'machine' never stands alone.*write \| between"):
        separator_in({"crane, bird", "crane, machine", "bird", "crane"}, plural=True, column="labels")


@pytest.mark.parametrize("cell", ["[1, [2]]", "[" * 5000 + "]", "[f()]", "[{}]", "['a', 2.5]"])
def test_cell_that_is_no_list_is_refused(cell):
    with pytest.raises(UserError, match="is no list of labels"):
        parts_of(cell, "[")


def test_separators_of_one_table_hold_for_all(photos):
    pd.DataFrame({"image": ["a.jpg", "b.jpg"], "labels": ["x|y", "y"]}).to_csv(photos / "train.csv", index=False)
    pd.DataFrame({"image": ["deep/c.jpg"], "labels": ["x"]}).to_csv(photos / "val.csv", index=False)
    assert find_source(photos, seed=0).splits["val"].labels == [("x",)]


@pytest.mark.parametrize("values", [[0, 1, 1], [False, True, True], ["0", "1", "1"], [0.0, 1.0, 1.0]])
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_one_column_a_label(photos, values, suffix):
    frame = pd.DataFrame({"image": ["a.jpg", "b.jpg", "deep/c.jpg"], "rain": values, "snow": values[::-1]})
    frame.to_csv(photos / "t.csv", index=False)
    frame.to_parquet(photos / "t.parquet")
    source = find_source(photos / f"t{suffix}", seed=0)
    assert source.splits["train"].labels == [("snow",), ("rain", "snow"), ("rain",)]


def test_one_column_a_label_with_one_label_an_image_is_classes(photos):
    frame = pd.DataFrame({"image": ["a.jpg", "b.jpg", "deep/c.jpg"], "x": [1, 0, 0], "y": [0, 1, 1]})
    frame.to_csv(photos / "t.csv", index=False)
    source = find_source(photos / "t.csv", seed=0)
    assert source.splits["train"].labels == ["x", "y", "y"]
    assert any("each image has one label" in note for note in source.notes)


def test_rows_of_one_image_give_it_their_labels_together(photos):
    frame = pd.DataFrame({"image": ["a.jpg", "b.jpg", "a.jpg", "a.jpg"], "labels": ["x", "y", "y", "x"]})
    frame.to_csv(photos / "t.csv", index=False)
    source = find_source(photos / "t.csv", seed=0)
    assert rows_of(source) == {"train": [(("x", "y"), "a.jpg"), (("y",), "b.jpg")]}
    assert "2 rows of images that other rows name too: an image has the labels of all its rows." in source.notes


def test_rows_that_repeat_an_image_are_read_once(photos):
    frame = pd.DataFrame({"image": ["a.jpg", "b.jpg", "./a.jpg"], "label": ["x", "y", "x"]})
    frame.to_csv(photos / "t.csv", index=False)
    assert rows_of(find_source(photos / "t.csv", seed=0)) == {"train": [("x", "a.jpg"), ("y", "b.jpg")]}


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["a.jpg"], "species": ["x"]}, "has no column 'label': its columns are image, species; rename"),
        ({"picture": ["a.jpg"], "label": ["x"]}, "has no column 'image'"),
        ({"img": ["a.jpg"], "path": ["a.jpg"], "label": ["x"]}, "has the columns 'img' and 'path'; name the one"),
        ({"image": ["a.jpg"], "class": ["x"], "target": ["x"]}, "has the columns 'class' and 'target'"),
        ({"image": ["a.jpg"], "age": [34], "male": [1]}, "one column of 0 and 1 for each label, but 'age' has '34'"),
        ({"image": ["a.jpg", "b.jpg"], "label": ["x", ""]}, "has 1 empty values, first in row 2; fill"),
        ({"image": ["a.jpg", ""], "label": ["x", "y"]}, "column of images of .* is empty in row 2"),
        ({"image": ["a.jpg", "b.jpg"], "label": ["x", "y"], "split": ["train", ""]}, "names no split in row 2"),
        (
            {"image": ["a.jpg"], "label": ["x"], "split": ["tran"]},
            r"has 'tran' \(did you mean train .*is no split",
        ),
        ({"image": ["a.jpg"], "label": ["x"], "split": ["test"]}, "has 'test' but no train"),
        (
            {"image": ["a.jpg"] * 3, "label": ["x"] * 3, "split": ["train", "dev", "eval"]},
            "'dev' and 'eval', which all mean val",
        ),
        ({"image": ["a.jpg", "a.jpg"], "label": ["x", "y"]}, "a.jpg' is 'x' in row 1 and 'y' in row 2 of train"),
        ({"image": ["e.jpg", "f.jpg"], "label": ["x", "y"]}, "No image is where the paths lead, such as 'e.jpg'"),
        ({"image": ["http://x.org/a.jpg"], "label": ["x"]}, "begins with http://, which is not read"),
        ({"image": ["s3://bucket/a.jpg?endpoint_override=evil"], "label": ["x"]}, "names options or a server"),
        ({"image": ["s3://user@bucket/a.jpg"], "label": ["x"]}, "a password or a token|names options or a server"),
        ({"image": ["file://host/a.jpg"], "label": ["x"]}, "a file of another machine"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(photos, columns, message):
    pd.DataFrame(columns).to_csv(photos / "t.csv", index=False)
    with pytest.raises(UserError, match=message):
        find_source(photos / "t.csv", seed=0)


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        (b"image,label\na.jpg,x,y\n", ".csv"),
        (b"image,label\na.jpg,\xff\n", ".csv"),
        (b"", ".csv"),
        (b"\x00\x01", ".csv"),
        (b"[" * 100_000, ".jsonl"),
        (b"3\n", ".jsonl"),
        (b'{"image": "a.jpg", "label": 1}\n{"image": "b.jpg", "label": "x"}\n', ".jsonl"),
        (b"", ".jsonl"),
    ],
)
def test_files_that_are_no_tables_are_refused(photos, content, suffix):
    (photos / f"t{suffix}").write_bytes(content)
    with pytest.raises(UserError, match=rf"t\{suffix}' (cannot be read as a table|has no column)"):
        find_source(photos / f"t{suffix}", seed=0)


def test_null_character_in_a_path_is_refused(photos):
    (photos / "t.jsonl").write_text('{"image": "a\\u0000.jpg", "label": "x"}\n')
    with pytest.raises(UserError, match="null character"):
        find_source(photos / "t.jsonl", seed=0)


def test_canonical_names_count_whatever_other_columns_there_are():
    found = find_columns("t", ["path", "class", "image", "label", "labels", "Patient ID"])
    assert (found.image, found.label, found.group, found.likely_group) == ("image", "label", None, "Patient ID")


@pytest.mark.parametrize("names", [("File Name", "Class"), ("filename", "category"), ("image_path", "label_name")])
def test_usual_names_of_columns_are_known(names):
    found = find_columns("t", names)
    assert (found.image, found.label) == names


# ------------------------------------------------------------------------------------------------------------ paths


def test_paths_may_be_absolute_lead_up_and_come_from_windows(photos, monkeypatch):
    (photos / "tables").mkdir()
    images = [str(photos / "a.jpg"), "../b.jpg", "..\\deep\\c.jpg", (photos / "deep" / "d.jpg").as_uri()]
    pd.DataFrame({"image": images, "label": list("xyxy")}).to_csv(photos / "tables" / "t.csv", index=False)
    expected = [("x", "a.jpg"), ("y", "b.jpg"), ("x", "deep/c.jpg"), ("y", "deep/d.jpg")]
    source = find_source(photos / "tables" / "t.csv", seed=0)
    assert rows_of(source) == {"train": expected}
    assert any("3 images of 't.csv' outside of its folder" in note for note in source.notes)
    monkeypatch.chdir(photos / "tables")
    assert rows_of(find_source("t.csv", seed=0)) == {"train": expected}


def test_missing_image_is_a_damaged_image(photos):
    pd.DataFrame({"image": ["a.jpg", "e.jpg"], "label": list("xy")}).to_csv(photos / "t.csv", index=False)
    with pytest.raises(FileNotFoundError):
        find_source(photos / "t.csv", seed=0).splits["train"].read(1)


@pytest.mark.parametrize("ending", ["", ".jpg"])
def test_names_alone_are_found_below_the_table(photos, ending):
    frame = pd.DataFrame({"image": [f"a{ending}", f"c{ending}", f"e{ending}"], "label": list("xyx")})
    write(photos, "other/c.txt")
    (photos / "a.jpg").rename(photos / "deep" / "a.jpg")
    frame.to_csv(photos / "t.csv", index=False)
    source = find_source(photos / "t.csv", seed=0)
    assert [source.splits["train"].read(row) for row in (0, 1)] == [b"a.jpg", b"deep/c.jpg"]
    assert any("found by their names" in note for note in source.notes)
    with pytest.raises(FileNotFoundError):
        source.splits["train"].read(2)


def test_name_that_two_images_have_is_refused(photos):
    write(photos, "other/c.jpg")
    pd.DataFrame({"image": ["c", "d"], "label": list("xy")}).to_csv(photos / "t.csv", index=False)
    with pytest.raises(UserError, match=r"The image 'c' may be .*deep/c\.jpg' or .*other/c\.jpg'"):
        find_source(photos / "t.csv", seed=0)


def test_likely_groups_are_named(photos):
    frame = pd.DataFrame({"image": ["a.jpg", "b.jpg"], "label": list("xy"), "patient_id": [1, 1]})
    frame.to_csv(photos / "t.csv", index=False)
    source = find_source(photos / "t.csv", seed=0)
    assert source.splits["train"].groups is None
    assert any("'patient_id' was not used; name it group" in note for note in source.notes)


# ---------------------------------------------------------------------------------------------- tables in folders


def labels_csv(path, images, labels, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame({"file_name": images, "label": labels, **columns}).to_csv(path, index=False)


def test_folder_of_images_with_a_table_beside_them(photos):
    labels_csv(photos / "labels.csv", ["a.jpg", "deep/c.jpg"], ["x", "y"])
    source = find_source(photos, seed=0)
    assert rows_of(source) == {"train": [("x", "a.jpg"), ("y", "deep/c.jpg")]}
    assert any("2 images in the folder that no table names: 'b.jpg', 'deep/d.jpg'" in note for note in source.notes)
    assert source.name == photos.name


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_hugging_face_image_folder(tmp_path, name):
    for split, images in (("train", ["1.jpg", "2.jpg"]), ("validation", ["3.jpg"])):
        write(tmp_path, *(f"{split}/{image}" for image in images))
        frame = pd.DataFrame({"file_name": images, "label": [image[0] for image in images]})
        if name.endswith("csv"):
            frame.to_csv(tmp_path / split / name, index=False)
        elif name.endswith("jsonl"):
            frame.to_json(tmp_path / split / name, orient="records", lines=True)
        else:
            frame.to_parquet(tmp_path / split / name)
    assert rows_of(find_source(tmp_path, seed=0)) == {
        "train": [("1", "train/1.jpg"), ("2", "train/2.jpg")],
        "val": [("3", "validation/3.jpg")],
    }


def test_table_in_the_root_of_a_hugging_face_folder_tells_splits_by_its_column(tmp_path):
    write(tmp_path, "train/1.jpg", "train/2.jpg", "test/3.jpg")
    images = ["train/1.jpg", "train/2.jpg", "test/3.jpg"]
    labels_csv(tmp_path / "metadata.csv", images, list("xyx"), split=["train", "train", "test"])
    assert {split: len(found.labels) for split, found in find_source(tmp_path, seed=0).splits.items()} == {
        "train": 2,
        "test": 1,
    }


def test_roboflow_classes_are_labels_of_their_own(tmp_path):
    for split in ("train", "valid"):
        write(tmp_path, f"{split}/1.jpg", f"{split}/2.jpg")
        (tmp_path / split / "_classes.csv").write_text("filename, cat, dog\n1.jpg, 1, 1\n2.jpg, 0, 1\n")
    assert rows_of(find_source(tmp_path, seed=0)) == {
        "train": [(("cat", "dog"), "train/1.jpg"), (("dog",), "train/2.jpg")],
        "val": [(("cat", "dog"), "valid/1.jpg"), (("dog",), "valid/2.jpg")],
    }


def test_class_folders_count_where_a_table_says_the_same(tmp_path):
    write(tmp_path, "x/1.jpg", "y/2.jpg")
    before = find_source(tmp_path, seed=0)
    labels_csv(tmp_path / "metadata.csv", ["y/2.jpg", "x/1.jpg"], ["y", "x"])
    source = find_source(tmp_path, seed=0)
    assert rows_of(source) == rows_of(before) == {"train": [("x", "x/1.jpg"), ("y", "y/2.jpg")]}
    assert any("tables beside them were not read: 'metadata.csv'" in note for note in source.notes)


def test_table_with_groups_counts_beside_class_folders(tmp_path):
    write(tmp_path, "x/1.jpg", "y/2.jpg")
    labels_csv(tmp_path / "metadata.csv", ["y/2.jpg", "x/1.jpg"], ["y", "x"], group=["g", "g"])
    assert find_source(tmp_path, seed=0).splits["train"].groups == ["g", "g"]


def test_table_that_contradicts_class_folders_is_refused(tmp_path):
    write(tmp_path, "part1/1.jpg", "part2/2.jpg")
    labels_csv(tmp_path / "labels.csv", ["part1/1.jpg", "part2/2.jpg"], ["cat", "dog"])
    with pytest.raises(UserError, match=r"holds class folders, and 'labels.csv' with other classes; give"):
        find_source(tmp_path, seed=0)


def test_table_without_labels_beside_class_folders_is_no_data(tmp_path):
    write(tmp_path, "x/1.jpg", "y/2.jpg")
    pd.DataFrame({"file_name": ["1.jpg"], "caption": ["a cat"], "width": [3]}).to_csv(tmp_path / "metadata.csv")
    assert rows_of(find_source(tmp_path, seed=0)) == {"train": [("x", "x/1.jpg"), ("y", "y/2.jpg")]}


def test_fault_of_a_table_beside_loose_images_is_said(photos):
    pd.DataFrame({"file_name": ["a.jpg"], "species": ["x"]}).to_csv(photos / "labels.csv", index=False)
    with pytest.raises(UserError, match=r"labels\.csv' has no column 'label'"):
        find_source(photos, seed=0)


def test_tables_named_for_splits(photos):
    labels_csv(photos / "train.csv", ["a.jpg", "b.jpg"], ["x", "y"])
    labels_csv(photos / "test.csv", ["deep/c.jpg"], ["x"])
    (photos / "sample_submission.csv").write_text("id,label\n")
    assert rows_of(find_source(photos, seed=0)) == {
        "train": [("x", "a.jpg"), ("y", "b.jpg")],
        "test": [("x", "deep/c.jpg")],
    }


def test_many_rows_are_read_in_seconds(tmp_path):
    write(tmp_path, "0.jpg")
    count = 100_000
    table = {"image": [f"{i}.jpg" for i in range(count)], "label": np.arange(count) % 7, "group": np.arange(count) // 3}
    pd.DataFrame(table).to_csv(tmp_path / "t.csv", index=False)
    train = find_source(tmp_path / "t.csv", seed=0).splits["train"]
    assert (train.labels[8], train.groups[8], len(train.labels)) == ("1", "2", count)


# --------------------------------------------------------------------------------------- groups beside class folders


def test_groups_csv_adds_groups_to_class_folders(tmp_path):
    write(tmp_path, "train/x/1.jpg", "train/y/2.jpg", "val/x/3.jpg")
    pd.DataFrame({"image": ["train/x/1.jpg", "val/x/3.jpg"], "group": [7, 8]}).to_csv(tmp_path / "groups.csv")
    source = find_source(tmp_path, seed=0)
    assert {split: found.groups for split, found in source.splits.items()} == {"train": ["7", ""], "val": ["8"]}
    assert "The groups are those of 'groups.csv', 1 image without one." in source.notes
    assert rows_of(source)["train"] == [("x", "train/x/1.jpg"), ("y", "train/y/2.jpg")]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["x/1.jpg"], "patients": [1]}, "has no column 'group': its columns are image, patients"),
        ({"image": ["x/9.jpg"], "group": [1]}, "No image is where the paths lead"),
        ({"image": ["x/1.jpg"], "group": [None]}, "names none of the images, or no group"),
    ],
)
def test_groups_csv_that_cannot_be_used_is_refused(tmp_path, columns, message):
    write(tmp_path, "x/1.jpg", "y/2.jpg")
    pd.DataFrame(columns).to_csv(tmp_path / "groups.csv", index=False)
    with pytest.raises(UserError, match=message):
        find_source(tmp_path, seed=0)


# ----------------------------------------------------------------------------------------------------- at addresses


@pytest.fixture
def published(bucket, photos):
    """The images, a table and a shard at an address."""
    labels_csv(photos / "t.csv", ["a.jpg", "./deep/c.jpg", "gone.jpg"], list("xyx"))
    with tarfile.open(photos / "deep" / "s-0.tar", "w") as tar:
        tar.add(photos / "a.jpg", "0.jpg")
        tar.add(photos / "b.jpg", "0.txt")
    filesystem, _ = fs.FileSystem.from_uri(f"s3://{bucket}")
    fs.copy_files(str(photos), f"{bucket}/my photos", destination_filesystem=filesystem)
    return f"s3://{bucket}/my photos"


def test_table_at_an_address_names_what_lies_beside_it(published):
    train = find_source(f"{published}/t.csv", seed=0).splits["train"]
    assert [train.read(row) for row in (0, 1)] == [b"a.jpg", b"deep/c.jpg"]
    assert train.names[1] == f"{published}/deep/c.jpg"
    with pytest.raises(FileNotFoundError):
        train.read(2)


def test_table_here_names_images_at_an_address(published, tmp_path):
    labels_csv(tmp_path / "here.csv", [f"{published}/b.jpg", f"{published}/deep/d.jpg"], list("xy"))
    source = find_source(tmp_path / "here.csv", seed=0)
    assert rows_of(source) == {"train": [("x", "b.jpg"), ("y", "deep/d.jpg")]}
    assert source.splits["train"].readers > 0


def test_shard_at_an_address_is_read_where_it_lies(published):
    for place in (f"{published}/deep/s-0.tar", f"{published}/deep/s-{{0..0}}.tar"):
        assert rows_of(find_source(place, seed=0)) == {"train": [("b.jpg", "a.jpg")]}


@pytest.mark.parametrize("path", ["/etc/passwd", "../../../etc/passwd", "file:///etc/passwd"])
def test_table_at_an_address_names_no_files_of_this_machine(published, photos, path):
    bucket = published.split("/")[2]
    filesystem, _ = fs.FileSystem.from_uri(f"s3://{bucket}")
    with filesystem.open_output_stream(f"{bucket}/my photos/evil.csv") as file:
        file.write(f"image,label\n{path},x\na.jpg,y\n".encode())
    with pytest.raises(UserError, match=r"of this machine|out of the bucket|of another machine"):
        find_source(f"{published}/evil.csv", seed=0)
