"""How early can a trial be judged, and how many epochs does a search need? On recorded learning curves.

    python benchmarks/search_efficiency.py [--quick] [--json FILE] [--grid] [--curves FILE] [--processes N] [--within P]

First the rank correlation of each epoch's validation score with the final test score, by schedule. Then whole studies
are replayed (`replay.py`) with trials that cost nothing: uniform draws at full length, the same with Tune's ASHA,
OptunaSearch with ASHA as people use them, and ours. A study has reached the target once a configuration within one
point of the best final score has run to its last epoch; the epochs of all slots until then are counted. The incumbent
is what a study would choose: the best validation accuracy among trials of full budget. A final score is itself known
to about 1.4 points (510 photos), so the best of all is in part a lucky one; `--within 1.5` asks for one as good as it.

`--grid` replays settings of ours instead, each seed on a random 60 % of the configurations with that part's own
target, so that a setting must suit many best configurations and not the one of this table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from old_space import EPOCHS, SCHEDULES, curves_space
from replay import (
    Curve,
    Finish,
    Method,
    Nearest,
    Ours,
    OurSearch,
    RandomSearch,
    Replay,
    UsualSearch,
    read_curves,
    replay,
    usual_asha,
)
from scipy.stats import spearmanr

from delta_tune.config import Metric, TrialConfig
from delta_tune.spaces.space import Space
from delta_tune.spaces.validation import CheckedSpace, check_space

BASE = TrialConfig(max_epochs=EPOCHS)
RECIPE = {"lr": 0.001, "batch_norm": "frozen", "head_lr_multiplier": 10.0, "_schedule": "cosine"}
SPACE = Space(
    name="curves",
    function=curves_space,
    base=BASE,
    # The library default in the space's coordinates, whose schedule is a helper; then one point of each other method.
    start=(
        {"regularizer": "delta", **RECIPE, "alpha": 1.0, "beta": 0.01, "attention_temperature": 5.0},
        {"regularizer": "l2", **RECIPE, "weight_decay": 1e-4},
        {"regularizer": "l2_sp", **RECIPE, "alpha": 0.1},
        {"regularizer": "delta_uniform", **RECIPE, "alpha": 1.0},
    ),
)
BUDGETS = (60, 120)
"""Epochs after which the incumbent is scored; with more, most replays would only go on for this figure."""
PART = 0.6
RESAMPLES = 2000
OURS = Ours()
Measures = dict[str, float]


@cache
def checked_space(ours: Ours) -> CheckedSpace:
    """The space as these settings search it."""
    start = SPACE.start if ours.starts else ()
    fixed = {"_schedule": ours.schedule} if ours.schedule else {}
    balance = "regularizer" if ours.balanced else None
    return check_space(
        Space(name="curves", function=curves_space, base=BASE, start=start, fixed=fixed, balance=balance), seed=0
    )


def our_method(ours: Ours) -> Callable[[int], Method]:
    """Seed → our search; the space is checked once."""
    checked = checked_space(ours)
    return lambda seed: OurSearch(checked, seed, EPOCHS, ours)


METHODS: dict[str, Callable[[int], Method]] = {
    "random, full length": lambda seed: RandomSearch(SPACE, seed, None),
    "random + ASHA": lambda seed: RandomSearch(SPACE, seed, usual_asha(EPOCHS)),
    "OptunaSearch + ASHA": lambda seed: UsualSearch(SPACE, seed, EPOCHS),
    "ours": our_method(OURS),
}
RUNGS = {f"grace {grace}, factor {factor}": (grace, factor) for grace in (1, 2, 3, 4) for factor in (2, 3, 4)}
GRID: dict[str, Ours] = {
    "ours": OURS,
    "no tolerance": Ours(num_val=None),
    "rungs by method": Ours(by_method=True),
    "rungs by val_loss": Ours(rung_metric="val_loss"),
    "no starting points": Ours(starts=False),
    "balanced, by method": Ours(balanced=True, by_method=True),
    "balanced, one set": Ours(balanced=True),
    **{f"{schedule} only": Ours(schedule=schedule) for schedule in SCHEDULES},
    # Rungs are compared on random draws: TPE costs twenty times the rest of a replay.
    "random draws": Ours(sampler="random"),
    "without, by method": Ours(sampler="random", num_val=None, by_method=True),
    "by method": Ours(sampler="random", by_method=True),
    **{name: Ours(sampler="random", grace_period=g, reduction_factor=f) for name, (g, f) in RUNGS.items()},
    **{
        f"without, {name}": Ours(sampler="random", grace_period=g, reduction_factor=f, num_val=None)
        for name, (g, f) in RUNGS.items()
    },
}


def spearman_by_epoch(curves: Sequence[Curve], metric: Metric, resamples: int = 100) -> list[dict[str, float]]:
    """Rank correlation of each epoch's score with the final one, with a 95 % bootstrap interval over configurations.

    A configuration has the worst of scores from the epoch on in which it diverged.
    """
    sign = 1.0 if metric == "val_accuracy" else -1.0
    rng = np.random.default_rng(0)
    final = np.array([curve.final for curve in curves])
    draws = rng.integers(len(curves), size=(resamples, len(curves)))
    found = []
    for epoch in range(1, EPOCHS + 1):
        scores = np.array(
            [sign * c.rows[epoch - 1][metric] if len(c.rows) >= epoch else -1e9 for c in curves], dtype=float
        )
        samples = [spearmanr(scores[draw], final[draw]).statistic for draw in draws if len(set(final[draw])) > 1]
        low, high = np.nanpercentile(samples, [2.5, 97.5])
        rho = float(spearmanr(scores, final).statistic)
        found.append({"epoch": epoch, "rho": rho, "low": float(low), "high": float(high)})
    return found


def measures(found: Replay, curves: Sequence[Curve], target: float) -> Measures:
    """Epochs and time until the target was reached and chosen (inf: never), and the incumbent's final scores."""
    told = {"reached": math.inf, "makespan": math.inf, "chosen": math.inf, **{f"at {b}": 0.0 for b in BUDGETS}}
    best, score = -math.inf, 0.0
    for finish in found.finishes:
        curve = curves[finish.index]
        if (own := max(row["val_accuracy"] for row in curve.rows)) > best:
            best, score = own, curve.final
        if curve.final >= target and told["reached"] == math.inf:
            told["reached"], told["makespan"] = finish.epochs, finish.time
        if score >= target and told["chosen"] == math.inf:
            told["chosen"] = finish.epochs
        for budget in BUDGETS:
            if finish.epochs <= budget:
                told[f"at {budget}"] = score
    return told


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What all methods of a table have in common."""

    slots: int
    within: float = 0.01
    """How far below the best final score the target is."""
    part: float = 1.0
    """Share of the configurations that a seed has to itself, drawn at random."""
    least: int = max(BUDGETS)
    """Epochs for which a replay goes on after it reached the target."""


def one_replay(seed: int, *, way: str | Ours, curves: Sequence[Curve], nearest: Nearest, setting: Setting) -> Measures:
    """The figures of one seed."""
    make = METHODS[way] if isinstance(way, str) else our_method(way)
    order = np.random.default_rng([5, seed]).permutation(len(curves))
    own = nearest.copy(order < round(setting.part * len(curves)))
    target = max(curve.final for curve, free in zip(curves, own.free, strict=True) if free) - setting.within

    def enough(epochs: int, finishes: Sequence[Finish]) -> bool:
        return epochs >= setting.least and any(curves[finish.index].final >= target for finish in finishes)

    return measures(replay(make(seed), curves, own, setting.slots, seed, enough), curves, target)


def quiet() -> None:
    """No word of each trial, nor of a space function that takes long on a busy machine: nothing of it is timed here."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", "Define-by-run function passed in the `space` argument took")


def by_seed(
    way: str | Ours, curves: Sequence[Curve], setting: Setting, seeds: Sequence[int], processes: int = 1
) -> list[Measures]:
    """The figures of each seed's replay."""
    nearest = Nearest(SPACE, [curve.params for curve in curves])
    run = partial(one_replay, way=way, curves=curves, nearest=nearest, setting=setting)
    if processes == 1:
        return [run(seed) for seed in seeds]
    with ProcessPoolExecutor(processes, initializer=quiet) as pool:
        return list(pool.map(run, seeds, chunksize=5))


def median_interval(values: Sequence[float], over: Sequence[float] | None = None) -> tuple[float, float, float]:
    """Median, or that of `values` divided by that of `over`, with its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    data = np.array([values, over if over is not None else np.ones(len(values))], dtype=float)
    draws = np.median(data[:, rng.integers(len(values), size=(RESAMPLES, len(values)))], axis=2)
    with np.errstate(invalid="ignore"):
        ratios = draws[0] / draws[1]
        middle = np.median(data[0]) / np.median(data[1])
    # Sorted rather than interpolated: between a number and infinity there is nothing.
    ordered = np.sort(np.where(np.isnan(ratios), math.inf, ratios))
    return float(middle), float(ordered[int(0.025 * RESAMPLES)]), float(ordered[int(0.975 * RESAMPLES)])


def print_rungs(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """The first table."""
    groups = {"all": list(curves), "delta": [c for c in curves if c.params["regularizer"] == "delta"]}
    groups |= {name: [c for c in curves if c.params["_schedule"] == name] for name in SCHEDULES}
    # Of two that are both hopeless it does not matter which is the worse
    groups["upper half"] = sorted(curves, key=lambda c: -c.final)[: (len(curves) + 1) // 2]
    print("\nSpearman's rank correlation of the validation score at an epoch with the final test score")
    print(f"{'':24}{'n':>4}{'best':>6}{'median':>7} " + "".join(f"{k:>6}" for k in range(1, EPOCHS + 1)))
    told = []
    for name, group in groups.items():
        if len(group) < 3:
            continue
        final = [100 * curve.final for curve in group]
        for metric in ("val_accuracy", "val_loss"):
            rows = spearman_by_epoch(group, metric)
            print(f"{name:>11} {metric:12}{len(group):>4}{max(final):>6.1f}{np.median(final):>7.1f} ", end="")
            print("".join(f"{row['rho']:>6.2f}" for row in rows))
            low, high = min(row["low"] for row in rows[3:4]), max(row["high"] for row in rows[3:4])
            print(f"{'':42}interval at epoch 4: {low:.2f} to {high:.2f}")
            told.append({"group": name, "metric": metric, "n": len(group), "best": max(final), "by_epoch": rows})
    return told


def line(name: str, found: Sequence[Measures], ours: Sequence[Measures] | None) -> str:
    """A row of the second table."""
    reached = [each["reached"] for each in found]
    middle, low, high = median_interval(reached)
    text = f"{name:>22} {middle:>6.0f} [{low:>4.0f}, {high:>4.0f}] {np.median([e['makespan'] for e in found]):>6.0f}"
    text += f" {100 * np.mean(np.isinf(reached)):>5.0f} %"
    # The mean has the tail that the median leaves out: searches that stop the best and never come back
    text += f" {np.mean(np.minimum(reached, 1000)):>6.0f}"
    text += f" {np.median([e['chosen'] for e in found]):>7.0f} "
    text += "".join(f"{100 * np.median([e[f'at {b}'] for e in found]):>7.1f}" for b in BUDGETS)
    if ours is not None:
        ratio, low, high = median_interval(reached, [each["reached"] for each in ours])
        text += f"  {ratio:>5.2f} [{low:.2f}, {high:.2f}]"
    return text


HEADER = (
    f"{'':>22} {'epochs until reached':>20} {'time':>4} {'never':>7} {'mean':>6} {'chosen':>7} "
    + "".join(f"{f'at {b}':>7}" for b in BUDGETS)
    + "  times ours"
)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="10 replays, 1 and 8 slots")
    parser.add_argument("--grid", action="store_true", help="settings of ours on random parts, instead of the methods")
    parser.add_argument("--only", nargs="+", default=None, metavar="NAME", help="these rows of the tables and ours")
    parser.add_argument("--replays", type=int, default=None, help="(200; with --grid 100)")
    parser.add_argument("--slots", type=int, nargs="+", default=None, help="trials at a time (1 2 8 32; --grid: 1 8)")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1, help="(as many as CPUs)")
    parser.add_argument("--within", type=float, default=1.0, metavar="POINTS", help="of the best final score (1)")
    parser.add_argument("--curves", type=Path, default=Path(__file__).with_name("curves.parquet"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    quiet()
    if not options.curves.exists():
        parser.error(f"{options.curves} is not there; benchmarks/record_curves.py makes it")
    curves = read_curves(options.curves)
    number = options.replays or (10 if options.quick else 100 if options.grid else 200)
    slots_list = options.slots or ([1, 8] if options.quick or options.grid else [1, 2, 8, 32])
    within = options.within / 100
    best = max(curve.final for curve in curves)
    near = sum(curve.final >= best - within for curve in curves)
    diverged = sum(curve.diverged for curve in curves)
    print(f"{len(curves)} configurations, {diverged} diverged; best final score {100 * best:.1f} %, {near} within")
    points = "a point" if options.within == 1 else f"{options.within:g} points"
    print(f"{points} of it; {number} replays")
    told: dict[str, Any] = {
        "configurations": len(curves),
        "best": best,
        "near": near,
        "within": within,
        "replays": number,
        "studies": [],
    }
    if not options.grid:
        told["rungs"] = print_rungs(curves)
    part, least = (PART, 0) if options.grid else (1.0, max(BUDGETS))
    ways: Mapping[str, str | Ours] = GRID if options.grid else dict(zip(METHODS, METHODS, strict=True))
    if options.grid:
        ways = {name: name for name in METHODS if name != "ours"} | dict(ways)
    if options.only:
        ways = {name: way for name, way in ways.items() if name == "ours" or any(o in name for o in options.only)}
    for slots in slots_list:
        print(f"\n{slots} slots\n{HEADER}")
        setting = Setting(slots=slots, within=within, part=part, least=least)
        ours = None
        for name in ["ours", *(name for name in ways if name != "ours")]:
            found = by_seed(ways[name], curves, setting, range(number), options.processes)
            ours = ours or found
            print(line(name, found, ours), flush=True)
            summary = {k: [each[k] if math.isfinite(each[k]) else None for each in found] for k in found[0]}
            told["studies"].append({"slots": slots, "method": name, "by_seed": summary})
    if options.json:
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
