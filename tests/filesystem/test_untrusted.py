"""JSON and Parquet from strangers: within limits, or refused in words."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.fuzz import cases
from hypothesis import given
from hypothesis import strategies as st

from delta_tune.filesystem import rows
from delta_tune.filesystem.rows import read_rows
from delta_tune.filesystem.untrusted import JSON_BYTES, parse_json, read_file


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"\xff\xfe\xff", "can't decode"),
        (b'{"a": NaN}', "NaN, which is not finite"),
        (b'{"a": 1e999}', "1e999, which is not finite"),
        (b'{"a": ' + b"9" * 5000 + b"}", "a whole number of 5000 digits"),
        (b'{"a": 1, "a": 2}', "a key stands twice"),
        (b'{"a": ' + b"[" * 60 + b"]" * 60 + b"}", "more than 50 levels"),
        (b"[" * 100_000, "more than 50 levels"),
        (b" " * (JSON_BYTES + 1), "longer than"),
        (b"[1]", "should be a valid dictionary"),
    ],
)
def test_json_that_this_program_never_writes_is_refused(content, said):
    with pytest.raises(ValueError, match=said):
        parse_json(content, dict)


def test_json_may_hold_numbers_that_are_not_finite_where_that_is_allowed():
    assert parse_json("[Infinity, -Infinity]", list, finite=False) == [float("inf"), -float("inf")]


@cases(300)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_json_of_any_bytes_is_parsed_or_refused(content):
    with contextlib.suppress(ValueError):
        assert parse_json(content, dict) == json.loads(content)


def test_file_that_is_none_or_too_large_is_refused(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="no regular file"):
        read_file(tmp_path / "fifo", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="has 11 bytes, more than 10"):
        read_file(tmp_path / "large", 10)


def parquet(table, **options):
    stream = io.BytesIO()
    pq.write_table(table, stream, **options)
    return stream.getvalue()


def test_rows_are_those_that_were_written():
    table = pa.table({"a": [1, None], "b": ["x", "y"], "c": [[1.5], []], "d": pa.nulls(2), "e": [b"z", None]})
    found, metadata = read_rows(parquet(table.replace_schema_metadata({"k": "v"})), "name")
    assert found == table.to_pylist()
    assert metadata[b"k"] == b"v"


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (self.file, "w")


def test_rows_with_pickles_are_refused_and_never_loaded(tmp_path):
    import ray.data  # registers the type

    assert ray.data
    kind = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
    field = pa.field("note", pa.large_binary(), metadata=kind)
    evil = pa.array([pickle.dumps(Evil(str(tmp_path / "ran")))], pa.large_binary())
    with pytest.raises(ValueError, match="arrow_pickled_object"):
        read_rows(parquet(pa.table([evil], schema=pa.schema([field]))), "name")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (pa.table({"a": [{"b": 1}]}), "has the type struct"),
        (pa.table({"a": pa.array([1], pa.timestamp("ns"))}), "has the type timestamp"),
        (pa.table({"a": [[["x"]]]}), "has the type list"),
        (pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), "one name"),
    ],
)
def test_rows_of_other_columns_are_refused(table, said):
    with pytest.raises(ValueError, match=said):
        read_rows(parquet(table), "name")


def test_rows_that_unfold_to_too_much_are_refused_before_they_do(monkeypatch):
    many = parquet(pa.table({"a": pa.array([0] * 50_000)}))
    texts = parquet(pa.table({"a": ["x" * 10_000] * 3_000}))
    lists = parquet(pa.table({"a": [[0.0] * 50_000]}))
    assert max(map(len, (many, texts, lists))) < 20_000
    monkeypatch.setattr(rows, "VALUES", 40_000)
    monkeypatch.setattr(rows, "TEXT_BYTES", 10**6)
    for content, said in ((many, "50000 values"), (lists, "50000 values"), (texts, "texts take more than")):
        with pytest.raises(ValueError, match=said):
            read_rows(content, "name")


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no such format", parquet(pa.table({"a": [1]}))[:-9]])
def test_what_is_no_parquet_file_is_refused(content):
    with pytest.raises(ValueError, match="Parquet"):
        read_rows(content, "name")
