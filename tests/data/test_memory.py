import psutil
import pytest

from delta_tune.data.memory import available_memory, memory_for_images, total_memory


def write(root, path, limit, used, cached, version):
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    names = (
        ("memory.max", "memory.current", "")
        if version == 2
        else (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
        )
    )
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\n{names[2]}active_file {cached // 2}\n{names[2]}inactive_file {cached - cached // 2}\n"
    )


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "cgroup"
    file.write_text("4:memory:/jobs/one\n1:cpu:/other\n0::/user/two\n")
    return file


@pytest.mark.parametrize(("version", "path"), [(1, "memory/jobs/one"), (1, "memory/jobs"), (1, "memory")])
def test_available_memory_counts_control_groups_of_version_1(tmp_path, own, version, path):
    write(tmp_path / "fs", path, 10_000, 7_000, 2_000, version)
    assert available_memory(tmp_path / "fs", own) == 10_000 - 7_000 + 2_000
    assert total_memory(tmp_path / "fs", own) == 10_000


@pytest.mark.parametrize("path", ["user/two", "user", ""])
def test_available_memory_counts_control_groups_of_version_2(tmp_path, own, path):
    write(tmp_path / "fs", path, 9_000, 1_000, 0, 2)
    assert available_memory(tmp_path / "fs", own) == 8_000


def test_available_memory_is_that_of_the_tightest_group(tmp_path, own):
    write(tmp_path / "fs", "user/two", 9_000, 1_000, 0, 2)
    write(tmp_path / "fs", "user", 5_000, 1_000, 0, 2)
    assert available_memory(tmp_path / "fs", own) == 4_000


@pytest.mark.parametrize("limit", ["max", 2**63 - 4096])
def test_available_memory_without_a_limit_is_the_machines(tmp_path, own, limit):
    write(tmp_path / "fs", "user/two", limit, 0, 0, 2)
    write(tmp_path / "fs", "memory", limit, 0, 0, 1)
    assert total_memory(tmp_path / "fs", own) == psutil.virtual_memory().total
    assert total_memory(tmp_path / "fs", tmp_path / "none") == psutil.virtual_memory().total


def test_available_memory_is_not_negative(tmp_path, own):
    write(tmp_path / "fs", "user/two", 1_000, 2_000, 0, 2)
    assert available_memory(tmp_path / "fs", own) == 0


def test_memory_for_images_is_what_was_asked_for_or_half(monkeypatch):
    monkeypatch.setattr("delta_tune.data.memory.available_memory", lambda: 1001)
    assert [memory_for_images(None), memory_for_images(7)] == [500, 7]
