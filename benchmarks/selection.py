"""Which rule should name the winner of a study, and when are there enough trials? On recorded learning curves.

    python benchmarks/selection.py [--quick] [--curves DIR] [--json FILE]

This text was written before the curves of `curves/` were looked at; `curves.parquet`, where the question came from, had
been. Each table is a set of photos with one network; `record_curves.py` made them. Configurations that diverged are
left out, for no rule names one.

**A simulated study** draws n = 4, 8 or 16 completed configurations without replacement (at most half of those there
are), and a rule names one of them.
Its score is the named one's test accuracy after the last epoch; its loss is what the best test accuracy among those
drawn (the oracle) has more. All arms see the same 2,000 studies for each set and n (seed 0). The arms:

    a  today   best val_accuracy of the best epoch, ties by val_loss. Also shown with the best epoch's weights, a*
    b  last    best val_accuracy of the last epoch, ties by val_loss
    c  near    lowest val_loss of the last epoch among those whose val_accuracy then is within one standard error of the
               best of them (binomial: sqrt(p (1 - p) / number of validation photos), p the best)
    d  nll     lowest val_loss of the last epoch at the temperature that suits the same logits best
    e  near+T  as c, by the loss of d
    f  mean3   best mean val_accuracy of the last three epochs, ties by val_loss of the last
    g  near3   as c, with means over the last three epochs

The old table has no logits: d and e are not there, nor is a*.

**The interval** of an arm's mean difference to a is the middle 95 % over 200 pools of configurations that were drawn
from the recorded ones with replacement, each with 2,000 studies of its own: configurations are the units. One that a
pool has twice is drawn twice as readily, but no study has it twice.

**The decision.** An arm's gain on a set is its mean difference to a over the three n. Arms are struck out whose mean
gain over their sets is below 0.1 points or which lose 0.3 or more on any set. Of the rest the one that is the best on
most sets is taken, among equals that of the larger mean gain. If none is left, today's stays.

**Smaller validation sets.** b, c, d, e, which need the last logits only, with half of the photos of each class, of 20
such halves in turn; differences are to b. They show whether the choice holds, and decide nothing.

**Another metric.** a, b, c, e with balanced accuracy in the place of accuracy, for validation, test and oracle. As
validation has 10 photos of each class, only the test scores differ; so b, c, d, e also with 20 draws in turn that
leave from 10 photos of one class to 2 of another. Decides nothing either.

**Enough trials?** A study runs configurations in a random order, one at a time, through the project's own rungs (the
first after one epoch, factor 4) and stops as `selection_parts/enough_trials.py` says, or after 32. The rule's
settings are chosen on the old table alone: the largest share of the standard error at which today's winner and c's lose
at most 0.2 points. It has proved itself if over the new sets it takes at most half of the epochs of 32 trials, and its
winner is at most 0.2 points of mean below theirs. Studies that stop after a fixed number stand beside it.

**Which rungs?** The same studies over all configurations of a set: test accuracy of the one that the rule taken above
names, against epochs, with other rungs, with starting points first, and at full length. Samplers are not compared: of
30 configurations a space, the nearest free one soon is a random one. The wish: five times fewer epochs than full length
to what 32 trials at full length have.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from selection_parts.arms import LAST, NAMES, TODAY, TODAY_BEST, arms_of, decision
from selection_parts.efficiency import WAYS, efficiency, trials_shown
from selection_parts.enough_trials import enough_trials
from selection_parts.pool import Floats, Pool, parts_of, read_pool, tables
from selection_parts.sequence import MOST_TRIALS, judge, runs_of
from selection_parts.studies import POOLS, Outcome, simulate

HERE = Path(__file__).parent
OLD, NEW = HERE / "curves.parquet", HERE / "curves"
TRIALS = (4, 8, 16)
PARTS, HALF, FALLING = 20, (0.5, 0.5), (1.0, 0.2)
BALANCED_ARMS, PART_ARMS = "abce", "bcde"
FIXED = (8, 12, 16, 24)
Outcomes = dict[int, dict[str, Outcome]]
"""n → arm → outcome."""


def outcomes(
    pool: Pool, studies: int, pools: int, arms: str = "abcdefg", shares: tuple[float, float] | None = None
) -> Outcomes:
    """Of the arms over today's, or over the last epoch's if today's is not among them.

    Args:
        pool: the set.
        studies: for each n.
        pools: of the bootstrap.
        arms: their letters.
        shares: of the validation photos that the class with the most and that with the fewest keep.
    """
    judges = [pool]
    if shares is not None:
        assert pool.labels is not None
        judges = [pool.with_photos(photos) for photos in parts_of(pool.labels, PARTS, *shares)]
    rules = [{name: arm for name, arm in arms_of(each).items() if name in arms} for each in judges]
    against = TODAY if TODAY in arms else LAST
    return {
        n: simulate(rules, pool.test, pool.best_test, n, studies=studies, pools=pools, against=against)
        for n in TRIALS
        if 2 * n <= len(pool)
    }


def mean_gains(found: Outcomes) -> dict[str, tuple[float, Floats]]:
    """Arm → its mean gain over all n, and that in each bootstrap pool."""
    by_arm = {arm: [each[arm] for each in found.values()] for arm in next(iter(found.values()))}
    return {
        arm: (float(np.mean([each.gain for each in own])), np.mean([each.gains for each in own], axis=0))
        for arm, own in by_arm.items()
    }


def gain_text(gain: float, gains: Floats) -> str:
    """+0.16 [+0.07, +0.25]."""
    low, high = np.percentile(gains, [2.5, 97.5])
    return f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"


def print_outcomes(title: str, by_set: Mapping[str, Outcomes]) -> None:
    """A row per arm: of each n the mean score and the loss against the oracle; then the gain over all n."""
    print(f"\n{title}")
    for name, found in by_set.items():
        print(f"{name:19}" + "".join(f"{f'n = {n}':>14}" for n in found) + "   gain [95 %]")
        for arm, gain in mean_gains(found).items():
            cells = "".join(f"{each[arm].score:>8.2f} -{each[arm].loss:<4.2f}" for each in found.values())
            print(f"  {NAMES[arm]:17}{cells}   {gain_text(*gain)}")


def print_decision(by_set: Mapping[str, Outcomes]) -> str:
    """The arms' gains by set, and the arm that follows from them."""
    by_arm = {name: mean_gains(found) for name, found in by_set.items()}
    print("\nPoints gained over today's, mean over n")
    print(f"{'':19}" + "".join(f"{name:>16}" for name in by_set) + "   mean [95 %]")
    for arm in NAMES:
        found = {name: gains[arm] for name, gains in by_arm.items() if arm in gains}
        cells = "".join(f"{found[name][0]:>+16.2f}" if name in found else f"{'':16}" for name in by_set)
        if found:
            gain, gains = (np.mean(each, axis=0) for each in zip(*found.values(), strict=True))
            print(f"  {NAMES[arm]:17}{cells}   {gain_text(float(gain), gains)}")
    # What today's delivers from its best epoch is no rule of its own: it names what today's names.
    rules = [arm for arm in NAMES if arm not in (TODAY, TODAY_BEST)]
    taken = decision(
        {name: {arm: found[arm][0] for arm in rules if arm in found} for name, found in by_arm.items()},
    )
    print(f"Taken: {NAMES[taken]}")
    return taken


def print_enough(pools: Sequence[Pool], taken: str, studies: int) -> list[dict[str, Any]]:
    """What stopping early costs, by set, by order and by rule of the winner."""
    print(f"\nAgainst {MOST_TRIALS} trials: trials, share of the epochs, points lost ± standard error over the studies")
    rows = []
    studied = [(pool, starts) for pool in pools for starts in (False, True) if pool.starts.any() or not starts]
    for pool, starts in studied:
        runs, arms = runs_of(pool, studies, starts=starts), arms_of(pool)
        epochs, full = np.mean([(run.epochs[-1], run.full.sum()) for run in runs], axis=0)
        name = f"{pool.name}, starts first" if starts else pool.name
        print(f"{name}: {len(runs[0].order)} trials have {epochs:.0f} epochs, {full:.1f} run to their end")
        for arm in (arm for arm in dict.fromkeys((TODAY, taken)) if arm in arms):
            for stops in (enough_trials, *FIXED):
                told = judge(pool, runs, arms[arm], stops)
                rule = f"{stops} trials" if isinstance(stops, int) else "auto"
                cells = f"{told.trials:>7.1f}{told.share:>7.2f}{told.loss:>7.2f} ± {told.error:.2f}"
                print(f"  {NAMES[arm]:17}{rule:>10}{cells}")
                rows.append({"set": name, "arm": arm, "stops": rule, **vars(told)})
    return rows


def print_efficiency(pools: Sequence[Pool], taken: str, studies: int) -> list[dict[str, Any]]:
    """Test accuracy against epochs, by set and by the rule that stops trials."""
    print("\nTest accuracy of the named one after as many epochs as so many trials have at full length")
    rows = []
    for pool in pools:
        arm = arms_of(pool).get(taken, arms_of(pool)[TODAY])
        ways = [name for name, (_, starts) in WAYS.items() if pool.starts.any() or not starts]
        found = efficiency(pool, arm, ways, studies)
        shown = "".join(f"{trials:>7}" for trials in trials_shown(min(len(pool), MOST_TRIALS)))
        print(f"{pool.name:20}{shown}   area   epochs to the last of full length")
        for name, told in found.items():
            cells = "".join(f"{score:>7.2f}" for score in told.by_trials)
            print(f"  {name:18}{cells}{told.area:>7.2f}   {'not reached' if told.epochs is None else told.epochs}")
            rows.append({"set": pool.name, "way": name, **vars(told)})
    return rows


def in_json(by_set: Mapping[str, Outcomes]) -> dict[str, Any]:
    """All that is shown."""
    return {
        name: {
            str(n): {
                arm: {"score": each.score, "loss": each.loss, "gain": each.gain, "interval": each.interval}
                for arm, each in arms.items()
            }
            for n, arms in found.items()
        }
        for name, found in by_set.items()
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the studies and of the bootstrap pools")
    parser.add_argument("--curves", type=Path, default=NEW, metavar="DIR", help="the new tables (benchmarks/curves)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    files = tables(options.curves)
    if not files:
        parser.error(f"{options.curves} has no tables; benchmarks/record_curves.py makes them")
    studies, pools, runs = (200, POOLS // 10, 10) if options.quick else (2000, POOLS, 100)
    files = [file for file in files if len(read_pool(file)) >= 2 * min(TRIALS)]  # of one that is still being recorded
    new = [read_pool(file) for file in files]
    every = [read_pool(OLD), *new]
    print(f"{studies} studies; configurations: " + ", ".join(f"{pool.name} {len(pool)}" for pool in every))
    found = {pool.name: outcomes(pool, studies, pools) for pool in every}
    print_outcomes("Test accuracy of the named one, and its loss against the oracle", found)
    taken = print_decision(found)
    halves = {pool.name: outcomes(pool, studies, pools, PART_ARMS, HALF) for pool in new}
    print_outcomes("With half of the validation photos; gains are over b", halves)
    balanced = [read_pool(file, "balanced_accuracy") for file in files]
    by_balanced = {pool.name: outcomes(pool, studies, pools, BALANCED_ARMS) for pool in balanced}
    print_outcomes("By balanced accuracy", by_balanced)
    uneven = {pool.name: outcomes(pool, studies, pools, PART_ARMS, FALLING) for pool in balanced}
    print_outcomes("By balanced accuracy, with 10 to 2 validation photos a class; gains are over b", uneven)
    enough = print_enough(every, taken, studies)
    by_way = print_efficiency(every, taken, runs)
    if options.json:
        told = {"configurations": {pool.name: len(pool) for pool in every}, "studies": studies, "taken": taken}
        shown = {"selection": found, "halves": halves, "balanced": by_balanced, "uneven": uneven}
        told |= {name: in_json(table) for name, table in shown.items()}
        told |= {"enough": enough, "efficiency": by_way}
        options.json.write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
