"""How the fields of the two configurations are declared: default, range and description beside the type.

The checks, the flags of `launch.py` and the pages of docs/reference are made from them. Standard library only.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from delta_tune.config.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """The finite numbers from `low` to `high`; an open end is not part of the range."""

    low: float
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open or self.high == math.inf else value <= self.high
        return above and below

    def __str__(self) -> str:
        lower = f"{'>' if self.low_open else '≥'} {self.low}"
        return lower if self.high == math.inf else f"{lower} and {'<' if self.high_open else '≤'} {self.high}"


@dataclass(frozen=True, slots=True)
class Field:
    """One setting, with all that its checks, its flag and its documentation need."""

    name: str
    default: Any
    help: str
    """One line without a full stop; code is in backticks."""
    hint: Any
    """The annotated type."""
    kind: type | None
    """bool, int or float; None for everything else."""
    choices: tuple[str, ...]
    """The allowed words: all that is allowed if there is no `kind`, else allowed besides numbers."""
    optional: bool
    """Whether None is allowed."""
    range: Range | None
    unset: str | None
    """What applies if the value is None."""
    group: str
    """Heading under which `--help` lists it."""
    metavar: str | None

    @property
    def flag(self) -> str:
        """The flag of `launch.py` for it."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def wanted(self) -> str:
        """The values allowed by type, in words: "a whole number"."""
        if self.kind is None:
            return f"one of {', '.join(self.choices)}"
        number = {bool: "True or False", int: "a whole number", float: "a number"}[self.kind]
        return " or ".join((number, *self.choices))

    @property
    def default_text(self) -> str:
        """The default in words; empty for a switch and for what starts empty."""
        if self.default is None:
            return self.unset or "none"
        if isinstance(self.default, bool | Mapping):
            return ""
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def checked(self, value: Any) -> Any:
        """The value, a whole number as int.

        Raises:
            UserError: the value is of another type, no choice, or out of range.
        """
        if (value is None and self.optional) or (self.kind is None and not self.choices):
            return value
        if self.choices and value in self.choices:
            return value
        if self.kind is bool:
            allowed = isinstance(value, bool)
        else:  # NaN is no number
            number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
            allowed = number and (self.kind is float or (self.kind is int and value == value // 1))
        if not allowed:
            raise UserError(f"{self.name} must be {self.wanted}{' or None' * self.optional}, but got {value!r}.")
        if self.kind is int:
            value = int(value)
        self.check_range(value)
        return value

    def check_range(self, value: float | None) -> None:
        """Check only the range of a value; None has none.

        Raises:
            UserError: the value is out of range.
        """
        if value is not None and self.range is not None and value not in self.range:
            raise UserError(f"{self.name} must be {self.range}, but got {value!r}.")


def field(
    default: T,
    help: str,
    *,
    range: Range | None = None,
    unset: str | None = None,
    group: str = "",
    metavar: str | None = None,
) -> T:
    """A field of a configuration; see `Field` for the arguments."""
    about = {"help": help, "range": range, "unset": unset, "group": group, "metavar": metavar}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=cast(Callable[[], T], default.copy), metadata=about)
    return dataclasses.field(default=default, metadata=about)


@cache
def fields_of(config: type) -> Mapping[str, Field]:
    """The fields of a configuration by name, in their order."""
    hints = get_type_hints(config)
    return MappingProxyType({f.name: _field(f, hints[f.name]) for f in dataclasses.fields(config)})


def _field(declared: dataclasses.Field[Any], hint: Any) -> Field:
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    numbers = [option for option in options if option in (bool, int, float)]
    literals = [option for option in options if get_origin(option) is Literal]
    return Field(
        name=declared.name,
        default=declared.default if declared.default_factory is dataclasses.MISSING else declared.default_factory(),
        hint=hint,
        kind=numbers[0] if numbers and str not in options else None,
        choices=tuple(choice for literal in literals for choice in get_args(literal)),
        optional=type(None) in options,
        **declared.metadata,
    )
