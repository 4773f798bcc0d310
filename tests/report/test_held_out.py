"""The table of what final runs predict of images that they were not trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from delta_tune.config import UserError
from delta_tune.report.held_out import HeldOut, join, read_suspects, write_held_out
from delta_tune.report.predictions import WORST

COUNT = 18


@pytest.fixture
def logits():
    """Of the validation split."""
    return torch.from_numpy(np.random.default_rng(0).normal(0, 2, (COUNT, 3)).astype(np.float32))


@pytest.fixture
def written(task, logits, tmp_path):
    """A function from suspects to the file; names of images and classes are as given."""

    def write(suspects=(), classes=None, names=None):
        val = task.dataset.val if names is None else dataclasses.replace(task.dataset.val, names=names)
        dataset = dataclasses.replace(task.dataset, val=val, classes=classes or task.dataset.classes)
        file = tmp_path / "held_out.parquet"
        write_held_out(task.on(dataset), logits, np.array(suspects, dtype=np.int64), file)
        return file

    return write


def held_out(rng, count):
    return HeldOut(
        names=tuple(f"{rng.integers(1e9)}.png" for _ in range(count)),
        labels=rng.integers(0, 3, count),
        logits=rng.normal(0, 1, (count, 3)).astype(np.float32),
    )


def test_joined_parts_keep_each_image_with_its_label_and_logits():
    rng = np.random.default_rng(0)
    parts = [held_out(rng, 4), held_out(rng, 3)]
    whole = join(parts)
    assert whole.names == parts[0].names + parts[1].names
    np.testing.assert_array_equal(whole.labels[4:], parts[1].labels)
    np.testing.assert_array_equal(whole.logits[:4], parts[0].logits)


def test_accuracy_is_that_of_the_logits():
    part = HeldOut(names=("a", "b"), labels=np.array([1, 1]), logits=np.log([[1, 3], [3, 1]]).astype(np.float32))
    assert part.accuracy == 0.5


def test_rows_hold_the_probabilities_of_the_predicted_and_of_the_true_class(written, task, logits):
    rows = pq.read_table(written()).to_pylist()
    assert len(rows) == COUNT
    val, exponents = task.dataset.val, np.exp(logits.double().numpy())
    for row, name, label, each in zip(rows, val.names, val.labels, exponents, strict=True):
        assert (row["image"], row["true"]) == (name, task.dataset.classes[label])
        assert row["predicted"] == task.dataset.classes[each.argmax()]
        assert row["probability"] == pytest.approx(each.max() / each.sum(), rel=1e-5)
        assert row["probability_of_true"] == pytest.approx(each[label] / each.sum(), rel=1e-5)
        assert row["suspect"] is None
        assert row["thumbnail"] is None


def test_suspects_have_their_place_and_are_read_in_it(written, task):
    file = written([7, 2, 11])
    places = {row: each for row, each in enumerate(pq.read_table(file)["suspect"].to_pylist()) if each is not None}
    assert places == {7: 1, 2: 2, 11: 3}
    rows, found = pq.read_table(file).to_pylist(), read_suspects(file)
    assert [each.image for each in found] == [task.dataset.val.names[row] for row in (7, 2, 11)]
    assert [(each.true, each.predicted) for each in found] == [
        (rows[row]["true"], rows[row]["predicted"]) for row in (7, 2, 11)
    ]
    assert found[0].thumbnail.startswith(b"\xff\xd8\xff")


def test_suspects_beyond_what_a_report_shows_have_a_place_but_no_thumbnail(written, monkeypatch):
    monkeypatch.setattr("delta_tune.report.held_out.WORST", 2)
    assert WORST > 2
    file = written([7, 2, 11])
    rows = pq.read_table(file).to_pylist()
    assert [rows[row]["suspect"] for row in (7, 2, 11)] == [1, 2, 3]
    assert [row for row, each in enumerate(rows) if each["thumbnail"]] == [2, 7]
    assert len(read_suspects(file)) == 2


def test_names_that_are_not_utf8_or_look_alike_are_told_apart(written):
    file = written([0], classes=("\udcff", "\udcfe", "<b>"), names=("\udc80<i>.png", *("x",) * (COUNT - 1)))
    rows = pq.read_table(file).to_pylist()
    assert len({row["true"] for row in rows}) == 3
    (found,) = read_suspects(file)
    assert found.image.encode()
    assert found.image.endswith("<i>.png"), "escaped where it is shown"


def test_no_file_is_no_suspects(tmp_path):
    assert read_suspects(tmp_path / "none.parquet") == ()


def replaced(table, name, values):
    return table.set_column(table.column_names.index(name), name, pa.array(values * table.num_rows))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop_columns("true"), "column true"),
        (lambda table: replaced(table, "probability", [1e308]), "column probability"),
        (lambda table: replaced(table, "suspect", [-1]), "column suspect"),
        (lambda table: replaced(table, "suspect", ["first"]), "column suspect"),
        (lambda table: replaced(table, "thumbnail", [b"<svg onload=alert(1)>"]), "neither a JPEG nor a PNG"),
    ],
)
def test_table_of_a_stranger_is_refused(written, change, said):
    file = written([3])
    pq.write_table(change(pq.read_table(file)), file)
    with pytest.raises(UserError, match=f"held_out.parquet is damaged .*{said}.*; remove it"):
        read_suspects(file)


def test_file_that_is_no_table_is_refused(tmp_path):
    (tmp_path / "held_out.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(UserError, match=r"held_out.parquet is damaged .*; remove it"):
        read_suspects(tmp_path / "held_out.parquet")
