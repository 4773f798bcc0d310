"""The names of a split's images, in one block of memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np
import pyarrow as pa

from delta_tune.data.splits import Indices

_ERRORS = "surrogatepass"
"""Names of files need not be UTF-8; Python then has surrogates in them, which this keeps."""
_STEP = 4096


class Names(Sequence[str]):
    """Names as one Arrow array, which processes share through Ray; as Python strings they take three times as much.

    Args:
        stored: pyarrow.LargeBinaryArray.
        positions: of these names in it; None for all, in order.
    """

    __slots__ = ("_positions", "_stored")

    def __init__(self, stored: pa.LargeBinaryArray, positions: Indices | None = None) -> None:
        self._stored, self._positions = stored, positions

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The names, copied."""
        return cls(pa.array((name.encode(errors=_ERRORS) for name in names), type=pa.large_binary()))

    def taken(self, positions: Indices | Sequence[int]) -> Names:
        """The names at these positions; the texts are shared."""
        positions = np.asarray(positions, dtype=np.int64)
        return Names(self._stored, positions if self._positions is None else self._positions[positions])

    def compact(self) -> Names:
        """The same names without those that were left away."""
        return self if self._positions is None else Names(self._stored.take(pa.array(self._positions)))

    def __len__(self) -> int:
        return len(self._stored if self._positions is None else self._positions)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Names: ...

    def __getitem__(self, index: int | slice) -> str | Names:
        if isinstance(index, slice):
            return self.taken(np.arange(len(self))[index])
        place = range(len(self))[index]
        content: bytes = self._stored[place if self._positions is None else int(self._positions[place])].as_py()
        return content.decode(errors=_ERRORS)

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), _STEP):
            for content in self[start : start + _STEP].compact()._stored.to_pylist():
                yield content.decode(errors=_ERRORS)

    def __add__(self, other: Sequence[str]) -> Names:
        return Names.of([*self, *other])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(one == two for one, two in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Names({list(self[:3])!r}, {len(self)} in all)"


def taken(names: Sequence[str], positions: Indices | Sequence[int]) -> Sequence[str]:
    """The names at these positions."""
    return names.taken(positions) if isinstance(names, Names) else tuple(names[position] for position in positions)
