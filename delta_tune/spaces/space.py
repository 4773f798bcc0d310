"""Search spaces: define-by-run functions in Optuna's style, and loading them from files."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import runpy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

import delta_tune
from delta_tune.config import FIXED_BY_STUDY, TRIAL_FIELDS, TrialConfig, UserError, check_names, did_you_mean

SHIPPED = Path(delta_tune.__file__).resolve().parents[1] / "search_spaces"
Answer = Callable[[str, BaseDistribution], Any]


class SpaceTrial:
    """The argument of a space function: Optuna's `suggest_…` methods. Fixed values come first; answers are recorded."""

    def __init__(self, answer: Answer, fixed: Mapping[str, Any]) -> None:
        self._answer, self._fixed = answer, fixed
        self.values: dict[str, Any] = {}
        self.distributions: dict[str, BaseDistribution] = {}
        """Distributions of the values that were not fixed: what a sampler sees."""

    def fix(self, values: Mapping[str, Any]) -> None:
        """Use these values for these names from now on."""
        self._fixed = {**self._fixed, **values}

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """A float in [low, high]."""
        return float(self.suggest(name, FloatDistribution(low, high, log=log, step=step)))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """An integer in [low, high]."""
        return int(self.suggest(name, IntDistribution(low, high, log=log, step=step)))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of `choices` (None, bool, int, float or str)."""
        return self.suggest(name, CategoricalDistribution(choices))

    def suggest(self, name: str, distribution: BaseDistribution) -> Any:
        """A value of `distribution`; the methods above call this."""
        if name in self._fixed:
            value = self._fixed[name]
            self.values[name] = ",".join(value) if isinstance(value, tuple) else value
        elif name not in self.values:
            self.values[name] = self._answer(name, distribution)
            self.distributions[name] = distribution
        return self.values[name]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """One configuration of a space."""

    config: TrialConfig
    params: dict[str, Any]
    """Sampled values by name: the coordinates in the space."""
    helpers: dict[str, Any]
    """Suggested values whose name starts with an underscore: they are not hyperparameters."""
    distributions: dict[str, BaseDistribution]


@dataclass(frozen=True, kw_only=True)
class Space:
    """A search space with its starting points.

    Attributes:
        function: takes a `SpaceTrial`, returns None or a dict of further values.
        base: the configuration that the space's values override.
        fixed: values fixed by the user (`--set`).
        start: points tried before sampling begins; they may fix only some hyperparameters.
        unmet: fixed values that no point of START has, where there is one.
        balance: name of a categorical hyperparameter whose choices get equal numbers of trials.
        source: text of the file or function; a resumed study must have the same text.
    """

    name: str
    function: Callable[[SpaceTrial], Mapping[str, Any] | None]
    base: TrialConfig = field(default_factory=TrialConfig)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    start: tuple[dict[str, Any], ...] = ()
    unmet: Mapping[str, Any] = field(default_factory=dict)
    balance: str | None = None
    source: str = ""

    def propose(self, answer: Answer) -> Proposal:
        """The configuration that these answers lead to.

        Raises:
            UserError: the function raises, or returns an unknown name or an invalid value.
        """
        trial = SpaceTrial(answer, self.fixed)
        try:
            returned = dict(self.function(trial) or {})
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The space {self.name} raised {type(error).__name__}: {error}, after {trial.values or 'nothing'} was "
                f"suggested; it may only call trial.suggest_… and return a dict."
            ) from error
        for name in trial.values:
            if name not in TRIAL_FIELDS and not name.startswith("_"):
                raise UserError(
                    f"The space {self.name} suggests {name!r}, which is not a hyperparameter"
                    f"{did_you_mean(name, TRIAL_FIELDS)}; the hyperparameters are {', '.join(TRIAL_FIELDS)}, "
                    f"and names of helpers start with an underscore."
                )
        check_names(returned, f"dict returned by the space {self.name}")
        own = {k: v for k, v in trial.values.items() if not k.startswith("_")} | returned
        for name in FIXED_BY_STUDY:
            if name in own:
                raise UserError(
                    f"The space {self.name} gives {name}, which must be the same for all trials of a study; "
                    f"set it with --{name.replace('_', '-')}."
                )
        own |= {k: v for k, v in self.fixed.items() if not k.startswith("_")}
        try:
            config = dataclasses.replace(self.base, **own)
        except UserError as error:
            raise UserError(f"The space {self.name} gives {own}: {error}") from None
        return Proposal(
            config=config,
            params={name: trial.values[name] for name in trial.distributions},
            helpers={k: v for k, v in trial.values.items() if k.startswith("_")},
            distributions=trial.distributions,
        )

    def contradicted(self, point: Mapping[str, Any]) -> list[str]:
        """Names in a starting point that are fixed to another value."""
        return sorted(name for name, value in self.fixed.items() if name in point and point[name] != value)

    def with_fixed(self, **values: Any) -> Space:
        """This space with some hyperparameters fixed."""
        start = tuple(
            {k: v for k, v in point.items() if k not in values}
            for point in self.start
            if all(point.get(k, v) == v for k, v in values.items())
        )
        unmet = values if self.start and not start else {}
        return dataclasses.replace(self, fixed={**self.fixed, **values}, start=start, unmet=unmet, balance=None)


def load_space(space: str | Path | Callable[..., Any], base: TrialConfig, fixed: Mapping[str, Any]) -> Space:
    """Load a space from a file (`space`, `START`, `BALANCE`), or use a function (without START and BALANCE).

    Raises:
        UserError: the file does not exist, does not run, or has no function `space`.
    """
    if callable(space):
        try:
            source = inspect.getsource(space)
        except (OSError, TypeError):  # typed at a prompt, or not a function: there is no text to compare at a resume
            source = ""
        name = getattr(space, "__name__", repr(space))
        return Space(name=name, function=space, base=base, fixed=fixed, source=source)
    file = find_space(space)
    try:
        content = runpy.run_path(str(file))
    except Exception as error:
        raise UserError(f"The space {space} does not run: {type(error).__name__}: {error}.") from error
    function = content.get("space")
    if not callable(function):
        raise UserError(f"The space {space} has no function `space`; define `def space(trial):` in it.")
    start, balance = content.get("START", []), content.get("BALANCE")
    if not isinstance(start, list | tuple) or not all(isinstance(point, dict) for point in start):
        raise UserError(f"START in {space} must be a list of dicts, but got {start!r}.")
    text = file.read_text()
    loaded = Space(
        name=file.name, function=function, base=base, fixed=fixed, start=tuple(start), balance=balance, source=text
    )
    if balance is not None and balance in fixed:
        return loaded.with_fixed(**{balance: fixed[balance]})
    return loaded


def find_space(space: str | Path) -> Path:
    """The space file at this path, or the shipped one of this name.

    Raises:
        UserError: neither exists; the message lists the shipped ones.
    """
    own, candidates = Path(space), [Path(space)]
    if own.parent.name in ("", SHIPPED.name):  # a path into another folder cannot mean a shipped space
        candidates.append(SHIPPED / own.name)
    for candidate in candidates:
        if candidate.is_file():
            return candidate.resolve()
    names = ", ".join(f"search_spaces/{f.name}" for f in shipped_spaces())
    raise UserError(f"There is no search space {space}; give a Python file, or one of {names}.")


def shipped_spaces() -> list[Path]:
    """The files of the shipped spaces."""
    return sorted(SHIPPED.glob("[a-z]*.py"))


def describe(space: Space) -> str:
    """The first line of the space file's docstring."""
    try:
        return (ast.get_docstring(ast.parse(space.source)) or "").partition("\n")[0]
    except SyntaxError:  # an indented function's source
        return ""
