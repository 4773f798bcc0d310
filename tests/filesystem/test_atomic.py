from __future__ import annotations

import json
import math
import os

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


def test_links_at_foreseeable_names_are_not_written_through(tmp_path):
    victim, folder = tmp_path / "victim", tmp_path / "study"
    victim.write_text("precious")
    folder.mkdir()
    for name in ("report.html", ".report.html.partial"):
        (folder / name).symlink_to(victim)
    with atomic_write(folder / "report.html") as partial:
        partial.write_text("new")
    assert victim.read_text() == "precious"
    assert (folder / "report.html").read_text() == "new"
    assert not (folder / "report.html").is_symlink()


def test_two_writers_of_one_file_do_not_share_what_is_not_whole(tmp_path):
    file = tmp_path / "x.json"
    with atomic_write(file) as one, atomic_write(file) as other:
        one.write_text("one")
        other.write_text("other")
    assert file.read_text() == "one"


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_permissions_are_what_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "x.json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "x.json").stat().st_mode & 0o777 == mode


def test_name_as_long_as_a_name_may_be_is_written(tmp_path):
    file = tmp_path / ("é" * 127)
    write_json(file, {})
    assert list(tmp_path.iterdir()) == [file]
