"""Whose turn is it: the numbers of the trials to come, with their choices and their starting points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from delta_tune.spaces.validation import BACKBONE, CheckedSpace


class Turns:
    """The numbers for which nothing is proposed yet.

    If the space balances a hyperparameter, its choices take turns; so do networks, and within each of them what its
    space balances. A number keeps its choice, whenever it is proposed.

    Args:
        checked: the space, with its starting points.
        first: the first number.
        end: the first number that is none of the search's any more.
    """

    def __init__(self, checked: CheckedSpace, first: int, end: int) -> None:
        self.values = checked.turns
        """Choice → the values that all its trials have."""
        self.choices: tuple[Any, ...] = tuple(self.values)
        self._points = {
            choice: [
                {name: value for name, value in point.items() if name not in own}
                for point in checked.points
                if all(point.get(name, value) == value for name, value in own.items())
            ]
            for choice, own in self.values.items()
        }
        self._with_attention = {
            choice
            for choice, own in self.values.items()
            if all(p.config.method.uses_attention for p in checked.drawn if own.items() <= p.params.items())
        }
        self._first, self._next, self._end = first, first, end
        self.skipped: list[int] = []
        """Numbers whose turn was before."""
        self._choice_of: dict[int, Any] = {}
        self._had: Counter[Any] = Counter()

    def choice(self, number: int) -> Any:
        """The balanced choice of a trial; a new trial gets the choice with the fewest trials so far."""
        if number not in self._choice_of:
            self._choice_of[number] = min(self.choices, key=self._trials_had)
            self._had[self._choice_of[number]] += 1
        return self._choice_of[number]

    def _trials_had(self, choice: Any) -> tuple[int, int]:
        """Trials of the choice's network so far, if networks take turns, and of the choice."""
        backbone = self.values[choice].get(BACKBONE)
        of_backbone = sum(n for other, n in self._had.items() if self.values[other].get(BACKBONE) == backbone)
        return of_backbone if backbone else 0, self._had[choice]

    def point(self, number: int) -> dict[str, Any] | None:
        """The next starting point with the number's choice, or None; each is given once."""
        points = self._points[self.choice(number)]
        return points.pop(0) if points else None

    def restore(self, had: Mapping[int, Mapping[str, Any]], choice_of: Mapping[int, Any]) -> None:
        """Continue where an earlier session stopped.

        Args:
            had: number → coordinates of the trials that were proposed.
            choice_of: trial → choice, if they did not take turns from the start.
        """
        self._choice_of.update(choice_of)
        self._had = Counter(self._choice_of.values())
        self._next = max(had, default=self._first - 1) + 1
        for number in range(self._first, self._next):
            self.choice(number)
        self.skipped = [number for number in range(self._first, self._next) if number not in had]
        for number in sorted(had):
            points = self._points[self.choice(number)]
            tried = next((point for point in points if point.items() <= had[number].items()), None)
            if tried is not None:
                points.remove(tried)

    def upcoming(self, *, attention: bool, skip: bool = True) -> Iterator[int]:
        """Numbers in order, each once: those that are not taken from the iterator stay.

        Args:
            attention: whether trials may use attention; otherwise numbers whose choice always does are skipped.
            skip: whether numbers come after one that is skipped.
        """
        for number in list(self.skipped):
            if attention or self.choice(number) not in self._with_attention:
                self.skipped.remove(number)
                yield number
        while self._next < self._end:
            number = self._next
            self._next += 1
            if attention or self.choice(number) not in self._with_attention:
                yield number
            else:
                self.skipped.append(number)
                if not skip:
                    return
