from __future__ import annotations

import pytest

from delta_tune.filesystem.atomic import atomic_write


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
