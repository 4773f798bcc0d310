from __future__ import annotations

import pytest

from delta_tune.console.format import format_bytes, format_count, format_duration, format_params


def test_clock_writes_seconds_as_people_do():
    assert [format_duration(seconds) for seconds in (0, 75, 3675)] == ["0:00", "1:15", "1:01:15"]


@pytest.mark.parametrize(
    ("size", "text"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "0.977 KiB"), (1536, "1.5 KiB"), (2**20, "1 MiB")),
        *((24 * 2**30, "24 GiB"), (999.9 * 2**30, "0.976 TiB")),
    ],
)
def test_format_bytes_has_three_digits_and_a_unit(size, text):
    assert format_bytes(size) == text


def test_format_count_uses_the_singular_for_one_alone():
    assert [format_count(n, "GPU") for n in (0, 0.25, 1, 1.0, 2)] == ["0 GPUs", "0.25 GPUs", "1 GPU", "1 GPU", "2 GPUs"]


def test_brief_leaves_the_method_out():
    assert format_params({"regularizer": "l2", "lr": 0.01234, "batch_norm": "frozen"}) == "lr=0.0123 batch_norm=frozen"
