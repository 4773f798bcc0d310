from __future__ import annotations

import json
import math

import pytest

from delta_tune.filesystem.atomic import atomic_write, write_json


def test_written_whole_replaces_the_file_at_the_end_alone(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")
    with atomic_write(file) as partial:
        partial.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_written_whole_leaves_the_old_file_after_an_exception(tmp_path):
    file = tmp_path / "x.json"
    file.write_text("old")

    def fail_half_way():
        with atomic_write(file) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert file.read_text() == "old"


def test_write_json_is_read_back(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"a": [1, None], "path": tmp_path})
    assert json.loads(file.read_text()) == {"a": [1, None], "path": str(tmp_path)}
    assert list(tmp_path.iterdir()) == [file]


def test_write_json_keeps_the_old_file_where_the_new_one_is_no_json(tmp_path):
    file = tmp_path / "x.json"
    write_json(file, {"a": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(file, {"a": math.nan})
    assert json.loads(file.read_text()) == {"a": 1}
