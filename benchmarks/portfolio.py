"""Which configurations should a study try first? A portfolio, chosen greedily over the tasks of `recipe.py`.

    python benchmarks/portfolio.py [--sets SET …] [--backbones NAME …] [--size 10] [--score single|mean|ensemble]

Candidates are the arms of `recipe.py` that ran for as many epochs as its base on every task. The first member of the
portfolio is the arm with the best mean accuracy over the tasks, each next one the arm with which the best of those so
far comes closest to the best of all arms, on the mean (as the portfolios of AutoGluon and Auto-sklearn 2 are chosen).

To judge it each set of photos is left out in turn, with all its sizes and networks: the portfolio is chosen on the
others, and its regret after k trials is how far the best of its first k stays below the best of all arms on the tasks
left out, in points of test accuracy. Beside it stand the mean regret of k arms drawn at random, and that of the arms in
the order of their mean accuracy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from recipe import ARMS, BASE, SETS, read
from rich.console import Console
from rich.table import Table

DRAWS = 200
Scores = NDArray[np.float64]
"""(arms, tasks): test accuracy in percent."""


def table_of(rows: Sequence[dict[str, Any]], score: str) -> tuple[list[str], list[tuple[str, str]], Scores]:
    """The arms, the tasks (network, set) and the accuracy of each arm on each task, a mean over its splits."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {}
    for row in rows:
        if row["settings"]["max_epochs"] == BASE["max_epochs"]:
            found.setdefault(row["arm"], {}).setdefault((row["backbone"], row["set"]), []).append(row[score])
    tasks = sorted(found["base"])
    arms = [arm for arm in ARMS if set(tasks) <= found.get(arm, {}).keys()]
    return arms, tasks, np.array([[np.mean(found[arm][task]) for task in tasks] for arm in arms])


def greedy(scores: Scores, size: int) -> list[int]:
    """Numbers of the arms of the portfolio, in the order in which they are tried."""
    chosen: list[int] = []
    best = np.full(scores.shape[1], -np.inf)
    while len(chosen) < min(size, len(scores)):
        gains = np.maximum(scores, best).mean(1)
        # The mean accuracy decides between arms that add nothing
        order = sorted(set(range(len(scores))) - set(chosen), key=lambda arm: (-gains[arm], -scores[arm].mean()))
        chosen.append(order[0])
        best = np.maximum(best, scores[order[0]])
    return chosen


def by_mean(scores: Scores, size: int) -> list[int]:
    """The arms of the best mean accuracy."""
    return [int(arm) for arm in np.argsort(-scores.mean(1), kind="stable")[:size]]


def regrets(scores: Scores, chosen: Sequence[int]) -> NDArray[np.float64]:
    """(k,): mean over the tasks of how far the best of the first k stays below the best of all."""
    so_far = np.maximum.accumulate(scores[list(chosen)], axis=0)
    found: NDArray[np.float64] = (scores.max(0) - so_far).mean(1)
    return found


def left_out(
    scores: Scores, tasks: Sequence[tuple[str, str]], choose: Callable[[Scores, int], list[int]], size: int
) -> dict[str, NDArray[np.float64]]:
    """Family of sets (flowers17, …) → regret of the first k on its tasks of what was chosen on the others."""
    families = [name.partition("-")[0] for _, name in tasks]
    found = {}
    for family in dict.fromkeys(families):
        here = np.array([each == family for each in families])
        found[family] = regrets(scores[:, here], choose(scores[:, ~here], size))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=Path(__file__).with_name("recipe.jsonl"))
    parser.add_argument("--sets", nargs="+", default=SETS, help="more sets leave fewer arms that ran on all of them")
    parser.add_argument("--backbones", nargs="+", default=["mobilenet_v2"])
    parser.add_argument("--size", type=int, default=10)
    parser.add_argument("--score", default="single", choices=("single", "mean", "ensemble"))
    arguments = parser.parse_args()
    rows = [row for row in read(arguments.file) if row["set"] in arguments.sets]
    rows = [row for row in rows if row["backbone"] in arguments.backbones]
    arms, tasks, scores = table_of(rows, arguments.score)
    size = min(arguments.size, len(arms))
    rng = np.random.default_rng(0)

    def drawn(given: Scores, size: int) -> list[int]:
        return [int(arm) for arm in rng.permutation(len(given))[:size]]

    orders = {"greedy": greedy, "by mean": by_mean}
    table = Table(f"{len(arms)} arms, {arguments.score}", *(f"after {k}" for k in range(1, size + 1)))
    for name, choose in orders.items():
        each = left_out(scores, tasks, choose, size)
        for family, values in each.items():
            table.add_row(f"{name}, {family} left out", *(f"{value:.1f}" for value in values))
        table.add_row(f"{name}, mean", *(f"{value:.1f}" for value in np.mean(list(each.values()), axis=0)))
    random = [np.mean(list(left_out(scores, tasks, drawn, size).values()), axis=0) for _ in range(DRAWS)]
    table.add_row("at random, mean", *(f"{value:.1f}" for value in np.mean(random, axis=0)))
    console = Console(width=200)
    console.print(table)
    told = Table("order", "arm", *(f"{backbone[:9]} {name}" for backbone, name in tasks), "mean", "regret so far")
    chosen = greedy(scores, size)
    for place, (number, regret) in enumerate(zip(chosen, regrets(scores, chosen), strict=True), 1):
        own = [f"{value:.1f}" for value in scores[number]]
        told.add_row(str(place), arms[number], *own, f"{scores[number].mean():.1f}", f"{regret:.2f}")
    console.print(told)


if __name__ == "__main__":
    main()
