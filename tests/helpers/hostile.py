"""Folders that a stranger changed: each field of a JSON file, each column of a table."""

from __future__ import annotations

import copy

import pyarrow as pa

VALUES = (
    *(None, True, -1, 0, 1, 2**61, 1e308, -1.5, 1e-320, "", "x", "\x1b[31m<b>", "\ud800", "9" * 5000),
    *([], [[]], {}, {"a": None}, [None], ["x"] * 3, [1e308, -1e308], {"name": "x"}),
)
"""Values of all JSON types."""
MISSING = object()


def paths(content, prefix=()):
    """The place of each value in a JSON object."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from paths(value, (*prefix, key))


def changed(content, path, value):
    """A copy with another value at a place, or without it."""
    other = copy.deepcopy(content)
    place = other
    for key in path[:-1]:
        place = place[key]
    if value is MISSING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return other


def columns(rows):
    """Columns of all Arrow types, with values that no table of ours has."""
    return {
        "nulls": pa.nulls(rows),
        "text": pa.array(["x"] * rows),
        "numbers as text": pa.array(["1"] * rows),
        "huge": pa.array([1e308] * rows),
        "negative": pa.array([-1] * rows),
        "negative float": pa.array([-0.5] * rows),
        "nan": pa.array([float("nan")] * rows),
        "zero": pa.array([0] * rows),
        "large": pa.array([2**31 - 1] * rows),
        "larger": pa.array([2**62] * rows),
        "true": pa.array([True] * rows),
        "lists": pa.array([[1.0]] * rows),
        "bytes": pa.array([b"\xff"] * rows),
        "nested": pa.array([{"a": 1}] * rows),
        "moments": pa.array([2**62] * rows, pa.timestamp("ns")),
        "dictionary": pa.array(["x"] * rows).dictionary_encode(),
        "json": pa.array(['{"lr": "x", "regularizer": null}'] * rows),
    }
