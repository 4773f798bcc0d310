"""WebDataset shards: splits, labels, and tar files that are damaged or hostile."""

import io
import json
import random
import tarfile
from contextlib import suppress

import pytest

from delta_tune.config import UserError
from delta_tune.data.sources.find import find_source


def shard(path, members, *, mode="w", form=tarfile.PAX_FORMAT):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


def rows_of(source):
    return {
        split: [(label, examples.read(i)) for i, label in enumerate(examples.labels)]
        for split, examples in source.splits.items()
    }


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_labels_lie_beside_images(tmp_path, form):
    members = {
        "long" * 20 + "/0.jpg": b"zero",
        "long" * 20 + "/0.cls": b"3\n",
        "1.json": json.dumps({"label": "dog", "width": 3}).encode(),
        "1.seg.png": b"one",
        "2.txt": b"cat",
        "2.jpg": b"two",
        "readme.md": b"",
        "._2.jpg": b"a Mac's",
    }
    shard(tmp_path / "a.tar", members, form=form)
    source = find_source(tmp_path / "a.tar", seed=0)
    assert rows_of(source) == {"train": [("3", b"zero"), ("dog", b"one"), ("cat", b"two")]}
    assert source.splits["train"].names[1] == f"{tmp_path / 'a.tar'}:1.seg.png"
    assert source.name == "a"


def test_shards_of_a_folder_are_splits_by_their_names(tmp_path):
    for name in ("train-000", "train-001", "val-000"):
        shard(tmp_path / f"{name}.tar", {f"{name}.jpg": name.encode(), f"{name}.cls": b"0"})
    rows = rows_of(find_source(tmp_path, seed=0))
    assert {split: [content for _, content in found] for split, found in rows.items()} == {
        "train": [b"train-000", b"train-001"],
        "val": [b"val-000"],
    }


def test_pattern_of_shards(tmp_path):
    for number in range(12):
        shard(tmp_path / f"birds-{number:03}.tar", {"a.jpg": b"%d" % number, "a.cls": b"0"})
    source = find_source(f"{tmp_path}/birds-{{002..010}}.tar", seed=0)
    assert [content for _, content in rows_of(source)["train"]] == [b"%d" % number for number in range(2, 11)]
    assert source.name == "birds"
    with pytest.raises(UserError, match=r"There is no .*birds-012\.tar' \(2 of 4 shards lack\)"):
        find_source(f"{tmp_path}/birds-{{010..013}}.tar", seed=0)


def test_lists_in_json_are_several_labels(tmp_path):
    shard(
        tmp_path / "a.tar", {"0.jpg": b"", "0.json": b'{"labels": ["x", 2]}', "1.jpg": b"", "1.json": b'{"label": "x"}'}
    )
    assert find_source(tmp_path / "a.tar", seed=0).splits["train"].labels == [("x", "2"), ("x",)]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"0.jpg": b""}, "image '0' of .* has no label; put its class into 0.cls"),
        ({"0.jpg": b"", "0.cls": b" "}, "has no label"),
        ({"0.jpg": b"", "0.json": b"[" * 10_000}, "has no label"),
        ({"0.jpg": b"", "0.cls": b"x" * 2000}, "has no label"),
        ({"0.jpg": b"", "0.png": b"", "0.cls": b"1"}, "second image of its key"),
        ({"0.jpg": b"", "0.cls": bytes(2**20 + 1)}, "has 1,048,577 bytes"),
    ],
)
def test_shards_that_cannot_be_used_are_refused(tmp_path, members, message):
    shard(tmp_path / "a.tar", members)
    with pytest.raises(UserError, match=message):
        find_source(tmp_path / "a.tar", seed=0)


def test_compressed_shard_is_refused(tmp_path):
    shard(tmp_path / "a.tar", {"0.jpg": b"", "0.cls": b"1"}, mode="w:gz")
    with pytest.raises(UserError, match="not compressed"):
        find_source(tmp_path / "a.tar", seed=0)


def test_links_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, kind in (("0.jpg", tarfile.SYMTYPE), ("1.jpg", tarfile.LNKTYPE)):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, "/etc/passwd"
            tar.addfile(about)
    assert find_source(tmp_path / "a.tar", seed=0).splits["train"].labels == []


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
@pytest.mark.parametrize("size", [-512, -(2**40), 2**40])
def test_sizes_that_no_member_has_are_refused(tmp_path, kind, size):
    about = tarfile.TarInfo("0.jpg")
    about.type = kind
    info = about.get_info() | {"size": size}
    (tmp_path / "a.tar").write_bytes(_header(info) + bytes(2048))
    with pytest.raises(UserError, match="cannot be read as a shard"):
        find_source(tmp_path / "a.tar", seed=0)


def _header(info):
    """A header in GNU's form, in which sizes may be negative and huge."""
    return tarfile.TarInfo._create_header(info, tarfile.GNU_FORMAT, "utf-8", "strict")


@pytest.mark.parametrize("seed", range(5))
def test_damaged_shard_is_read_or_refused(tmp_path, seed):
    rng = random.Random(seed)
    shard(tmp_path / "a.tar", {f"{i}.{end}": b"7" for i in range(4) for end in ("jpg", "cls")})
    sound = (tmp_path / "a.tar").read_bytes()
    for _ in range(60):
        damaged = bytearray(sound[: rng.randrange(len(sound))] if rng.random() < 0.3 else sound)
        for _ in range(rng.randrange(1, 6)):
            if damaged:
                damaged[rng.randrange(min(len(damaged), 8192))] = rng.randrange(256)
        (tmp_path / "a.tar").write_bytes(damaged)
        with suppress(UserError):
            train = find_source(tmp_path / "a.tar", seed=0).splits["train"]
            for row in range(len(train.labels)):
                assert isinstance(train.read(row), bytes)
