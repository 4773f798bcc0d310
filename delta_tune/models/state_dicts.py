"""Find a network's tensors in what training scripts save, whatever they are wrapped in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from delta_tune.config import UserError

# Parts of names that torch.compile, (Fully Sharded) Data Parallel, activation checkpointing and Fabric insert
_WRAPPERS = frozenset(
    {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_original_module"}
)
# Where training scripts put the state dict of the network
_USUAL_KEYS = frozenset(
    {"state_dict", "model", "model_state_dict", "model_state", "net", "network", "weights", "module"}
)
# Words in the names of averages and of an optimizer's state, which are not the trained weights themselves
_SECONDARY = frozenset({"ema", "swa", "avg", "average", "averaged", "shadow", "optim", "optimizer", "optimizers"})
_DEPTH = 4
"""Words of a prefix at most before the names of another format."""
_OLD_DENSENET = re.compile(r"^(.*denselayer\d+\.(?:norm|conv))\.([12]\.\w+)$")


@dataclass(frozen=True, slots=True, eq=False)
class FoundStateDict:
    """One network's tensors in a file."""

    place: tuple[str, ...]
    """Keys of the dictionaries that lead to it."""
    prefix: str
    """What stands before the names there: empty, or ends in a dot."""
    tensors: dict[str, Tensor]
    """By the network's own names, with what else stands under the prefix."""

    @property
    def label(self) -> str:
        """Where it stands, for messages."""
        return repr(".".join((*self.place, self.prefix.rstrip("."))).strip(".")[:80])

    @property
    def rank(self) -> tuple[bool, bool, bool]:
        """Sorts the trained weights first, then what stands at an unusual key, then averages.

        Of a teacher and its student (self-distillation), the teacher is what its authors evaluate.
        """
        words = re.split(r"[^a-z]+", ".".join((*self.place, self.prefix)).lower())
        return not _SECONDARY.isdisjoint(words), not _USUAL_KEYS.issuperset(self.place), "student" in words


def find_state_dict(
    content: object,
    shapes: Mapping[str, torch.Size],
    file: str,
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] | None = None,
) -> tuple[dict[str, Tensor], str]:
    """Find the tensors of a network in the content of a file.

    Dictionaries and lists in one another, prefixes and the names that wrappers insert are seen through. If the file
    has the network several times, the trained weights go before averages of them, and usual keys before others.

    Args:
        content: of the file.
        shapes: name → shape of each tensor that is needed.
        file: its name, for messages.
        convert: makes the network's own tensors of those of other formats and image sizes, where it can.

    Returns:
        Name → tensor, and a sentence on what the file has besides, or an empty one. If no part has all names, the one
        with most of them.

    Raises:
        UserError: there are no tensors, or several networks and none goes before the others.
    """
    parts = list(_dictionaries(content))
    if not parts:
        raise UserError(
            f"{file} holds no dictionary of tensors, or only quantised or sparse ones; save model.state_dict() and "
            "give that file."
        )
    found = [each for place, tensors in parts for each in _complete(place, tensors, shapes, file)]
    fitting = _fitting(found, shapes)
    if convert is not None and not fitting:
        others = [each for place, tensors in parts for each in _converted(place, tensors, shapes, convert)]
        fitting = _fitting(others, shapes)
    fitting = fitting or found
    if not fitting:
        return _closest(parts, shapes), ""
    unlike: list[FoundStateDict] = []
    for each in sorted(fitting, key=lambda each: each.rank):
        if not any(_equal(each.tensors, other.tensors, shapes) for other in unlike):
            unlike.append(each)
    first, *others = unlike
    if rivals := [each.label for each in others if each.rank == first.rank]:
        raise UserError(
            f"{file} holds this network {1 + len(rivals)} times with different weights, at "
            f"{', '.join([first.label, *rivals][:4])}; save the state dict of one of them alone and give that file."
        )
    if not others:
        return first.tensors, ""
    besides = ", ".join(each.label for each in others[:3])
    return (
        first.tensors,
        f"{file} holds other weights of this network too ({besides}); those at {first.label} are used.",
    )


def all_tensors(content: object) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a file, with its name there."""
    for _, tensors in _dictionaries(content):
        yield from tensors.items()


def _dictionaries(content: object) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """The place and the tensors of each dictionary with tensors, outer ones first."""
    queue: list[tuple[tuple[str, ...], object]] = [((), content)]
    seen: set[int] = set()  # a file may hold a dictionary that contains itself
    for place, value in queue:
        if id(value) in seen:
            continue
        seen.add(id(value))
        items: list[tuple[Any, Any]] = []
        if isinstance(value, Mapping):
            items = list(value.items())
            tensors = {k: v for k, v in items if isinstance(k, str) and isinstance(v, Tensor) and _is_plain(v)}
            if tensors:
                yield place, tensors
        elif isinstance(value, list | tuple):
            items = list(enumerate(value))
        queue += [((*place, str(key)), item) for key, item in items if isinstance(item, Mapping | list | tuple)]


def _is_plain(tensor: Tensor) -> bool:
    unusual = tensor.is_meta or tensor.is_quantized or tensor.is_complex()
    return tensor.layout == torch.strided and not unusual


def _complete(
    place: tuple[str, ...], tensors: Mapping[str, Tensor], shapes: Collection[str], file: str
) -> Iterator[FoundStateDict]:
    """The prefixes in one dictionary under which all names are found."""
    for prefix, names in _prefixes(tensors, shapes).items():
        if len(names) == len(shapes):
            yield FoundStateDict(place, prefix, _under(prefix, tensors, shapes, file))


def _fitting(found: list[FoundStateDict], shapes: Mapping[str, torch.Size]) -> list[FoundStateDict]:
    return [each for each in found if all(each.tensors[name].shape == shape for name, shape in shapes.items())]


def _converted(
    place: tuple[str, ...],
    tensors: Mapping[str, Tensor],
    names: Collection[str],
    convert: Callable[[Mapping[str, Tensor]], dict[str, Tensor]],
) -> Iterator[FoundStateDict]:
    """The prefixes in one dictionary under which `convert` makes all names, the shortest of those that nest."""
    wrappers = _wrappers(names)
    plain = {".".join(part for part in key.split(".") if part not in wrappers): value for key, value in tensors.items()}
    counts: Counter[str] = Counter()
    for key in plain:
        parts = key.split(".")
        counts.update("".join(f"{part}." for part in parts[:depth]) for depth in range(min(len(parts), _DEPTH + 1)))
    done: list[str] = []
    for prefix, count in sorted(counts.items(), key=lambda each: each[0].count(".")):
        if 2 * count < len(names) or any(prefix.startswith(each) for each in done):
            continue
        given = {key.removeprefix(prefix): value for key, value in plain.items() if key.startswith(prefix)}
        try:
            made = convert(given)
        except Exception:  # a converter that meets names or shapes that are not those of its formats
            continue
        if made.keys() >= set(names):
            done.append(prefix)
            yield FoundStateDict(place, prefix, made)


def _prefixes(tensors: Mapping[str, Tensor], names: Collection[str]) -> dict[str, set[str]]:
    """Each prefix before known names, and the names that follow it."""
    wrappers = _wrappers(names)
    longest = max((name.count(".") for name in names), default=0) + 1 + 2 * len(_WRAPPERS)
    found: dict[str, set[str]] = {}
    for key in tensors:
        parts = _current(key).split(".")
        for start in range(max(0, len(parts) - longest), len(parts)):
            name = ".".join(part for part in parts[start:] if part not in wrappers)
            if parts[start] not in wrappers and name in names:
                found.setdefault("".join(f"{part}." for part in parts[:start]), set()).add(name)
    return found


def _under(prefix: str, tensors: Mapping[str, Tensor], names: Collection[str], file: str) -> dict[str, Tensor]:
    """The tensors whose names start with the prefix, without it and without wrappers."""
    wrappers = _wrappers(names)
    found: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if not (current := _current(key)).startswith(prefix):
            continue
        name = ".".join(part for part in current.removeprefix(prefix).split(".") if part not in wrappers)
        if name in found:
            raise UserError(
                f"{file} holds {name!r} with and without the names that wrappers insert; save "
                "model.state_dict() alone and give that file."
            )
        found[name] = tensor
    return found


def _closest(parts: list[tuple[tuple[str, ...], dict[str, Tensor]]], names: Collection[str]) -> dict[str, Tensor]:
    """The part that has most of the names, under their prefix if that is at least half of them."""
    best: dict[str, Tensor] = max((tensors for _, tensors in parts), key=len)
    most = len(names) / 2
    for _, tensors in parts:
        for prefix, known in _prefixes(tensors, names).items():
            if len(known) > most:
                most, best = (
                    len(known),
                    {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)},
                )
    return best


def _wrappers(names: Collection[str]) -> frozenset[str]:
    """The wrappers' names that are not the network's own."""
    return _WRAPPERS.difference(part for name in names for part in name.split("."))


def _current(key: str) -> str:
    """A name as torchvision has it now: DenseNets were saved with a dot more."""
    return _OLD_DENSENET.sub(r"\1\2", key)


def _equal(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor], names: Collection[str]) -> bool:
    pairs = ((tensors[name], others[name]) for name in names)
    return all(
        one.shape == other.shape and torch.allclose(one, other.to(one.dtype), rtol=0, atol=0, equal_nan=True)
        for one, other in pairs
    )
