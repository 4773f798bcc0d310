"""Parquet files are opened only if their types are plain."""

import os
import pickle

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_tune.config import UserError
from delta_tune.filesystem.parquet import open_parquet

PICKLED = {b"ARROW:extension:name": b"ray.data.arrow_pickled_object", b"ARROW:extension:metadata": b""}
FIELD = pa.field("x", pa.large_binary(), metadata=PICKLED)


class TouchFile:
    """Creates a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return open, (str(self.file), "w")


def write(path, field, values):
    pq.write_table(pa.table([pa.array(values, field.type)], schema=pa.schema([field])), path)
    return path


def nested():
    value = b"value"
    return [
        (FIELD, [value]),
        (pa.field("x", pa.struct([FIELD])), [{"x": value}]),
        (pa.field("x", pa.list_(FIELD)), [[value]]),
        (pa.field("x", pa.large_list(FIELD)), [[value]]),
        (pa.field("x", pa.list_(FIELD, 1)), [[value]]),
        (pa.field("x", pa.map_(pa.string(), FIELD)), [[("key", value)]]),
        (pa.field("x", pa.list_(pa.struct([pa.field("y", pa.list_(FIELD))]))), [[{"y": [value]}]]),
    ]


@pytest.mark.parametrize(("field", "values"), nested(), ids=lambda value: str(getattr(value, "type", "")))
@pytest.mark.parametrize("registered", [False, True])
def test_open_parquet_refuses_extension_types(tmp_path, field, values, registered):
    if registered:
        pytest.importorskip("ray.data")  # it registers the type
    file = write(tmp_path / "a.parquet", field, values)
    with pytest.raises(UserError, match=r"'a' has the type 'ray\.data\.arrow_pickled_object' in its column 'x'"):
        open_parquet(file, name="a")


def test_open_parquet_runs_no_pickle(tmp_path):
    pytest.importorskip("ray.data")
    file = write(tmp_path / "a.parquet", FIELD, [pickle.dumps(TouchFile(tmp_path / "ran"))])
    with pytest.raises(UserError):
        open_parquet(file, name="a")
    assert not (tmp_path / "ran").exists()


def test_open_parquet_refuses_a_type_that_cannot_be_rebuilt(tmp_path):
    pytest.importorskip("ray.data")
    metadata = {b"ARROW:extension:name": b"ray.data.arrow_tensor", b"ARROW:extension:metadata": b"no shape"}
    file = write(tmp_path / "a.parquet", pa.field("x", pa.list_(pa.int64()), metadata=metadata), [[1]])
    with pytest.raises(UserError, match="'a' cannot be read as Parquet"):
        open_parquet(file, name="a")


@pytest.mark.parametrize(
    ("kind", "value"), [(pa.uuid(), b"0" * 16), (pa.bool8(), 1), (pa.dictionary(pa.int8(), pa.string()), "a")]
)
def test_open_parquet_reads_plain_types(tmp_path, kind, value):
    array = pa.array([value], getattr(kind, "storage_type", kind))
    array = kind.wrap_array(array) if isinstance(kind, pa.BaseExtensionType) else array
    pq.write_table(pa.table({"x": array}), tmp_path / "a.parquet")
    with open_parquet(tmp_path / "a.parquet", name="a") as parquet:
        assert parquet.read().num_rows == 1


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" * 5, b"no Parquet"])
def test_open_parquet_refuses_another_file(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(UserError, match="'a' cannot be read as Parquet"):
        open_parquet(tmp_path / "a.parquet", name="a")


def test_open_parquet_refuses_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="'a' cannot be read as Parquet"):
        open_parquet(tmp_path / "a.parquet", name="a")


def test_open_parquet_reads_a_file_whose_name_is_not_utf8(tmp_path):
    file = write(tmp_path / "a.parquet", pa.field("x", pa.int64()), [1, 2])
    renamed = os.fsencode(tmp_path) + b"/caf\xe9.parquet"
    os.rename(file, renamed)
    with open_parquet(os.fsdecode(renamed), name="a") as parquet:
        assert parquet.read()["x"].to_pylist() == [1, 2]
