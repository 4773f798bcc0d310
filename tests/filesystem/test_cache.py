from __future__ import annotations

import pytest
from pyarrow import fs

from delta_tune.config import UserError
from delta_tune.filesystem.cache import Cache, content_key


@pytest.mark.parametrize("address", ["{}", "file://{}"])
def test_cache_gives_back_what_was_written(tmp_path, address):
    cache = Cache(address.format(tmp_path / "new" / "cache"))
    assert cache.read("a.bin") is None
    cache.write("a.bin", b"one")
    cache.write("a.bin", b"two")
    assert cache.read("a.bin") == b"two"
    assert [file.name for file in (tmp_path / "new" / "cache").iterdir()] == ["a.bin"]


def test_cache_refuses_an_address_that_nothing_opens():
    with pytest.raises(UserError, match=r"cache ftp://host/x cannot be opened.*give a folder"):
        Cache("ftp://host/x")


def test_content_key_tells_where_parts_end():
    assert content_key(["ab", "c"]) != content_key(["a", "bc"])
    assert content_key(["a"]) == content_key(["a"])


def test_cache_refuses_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"cache .*file/cache cannot be written to.*give a folder that can"):
        Cache(tmp_path / "file" / "cache")


def test_making_a_cache_leaves_nothing_behind(tmp_path):
    Cache(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_cache_may_lie_on_s3(bucket):
    cache = Cache(f"s3://{bucket}/some/cache")
    assert cache.read("a.bin") is None
    cache.write("a.bin", b"one")
    cache.write("a.bin", b"two")
    assert Cache(f"s3://{bucket}/some/cache").read("a.bin") == b"two"
    found = fs.FileSystem.from_uri(f"s3://{bucket}")[0].get_file_info(fs.FileSelector(bucket, recursive=True))
    assert [info.base_name for info in found if info.is_file] == ["a.bin"]
