from __future__ import annotations

import pytest

from delta_tune.cache import Cache, content_key
from delta_tune.config import UserError


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
