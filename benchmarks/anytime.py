"""How good is the model that one would have in hand after 15 s, 30 s, 1, 2, 4, 8 and 16 minutes?

    python benchmarks/anytime.py [--data flowers17-10 …] [--model mobilenet_v2] [--seeds 0] [--minutes 16] [--by-budget]
    python benchmarks/anytime.py --quick

Accuracy on test against the wall clock, from the command on: imports, start of Ray and preparation count. The arms:

- ours: `launch.py` with default settings and `--time-budget`. Its folder best/ is watched from outside, and every model
  that it ever held is scored when the study is over.
- usual: `anytime_parts/usual.py`, Ray Tune with Optuna and ASHA around a function that fine-tunes, as one writes it by
  hand. In hand is the model with the best validation accuracy that was reported so far.
- AutoGluon: AutoGluon-MultiModal, if `--autogluon` names an interpreter that has it. Never run so far.

They run one after another on the same files, with the same pretrained weights, input size, seed and validation metric,
on all cores. At each point counts the newest model that existed then. No model counts as the guess that every image is
of the most frequent class of train, and is marked "none".

Decided before there was any result: ours is one run with the longest time as its budget, watched, because a user gives
one budget and looks at what there is; so is the usual script. `--by-budget` adds a column of ours with a run for each
point, which is its budget; its model is the one at its end, and the moment of that end shows the overrun. AutoGluon has
no model before its end, so it is run in that way only. The seed draws the splits that a data set lacks, but test is the
same for every seed; "-10" is ten images a class for train and for val, with all of test.

Differences are ours less the other, in points of accuracy, ± one standard error over the test images, paired by image.
Seeds are averaged. Every run is appended to `--results` as soon as it is scored, and a run that is there is not run
again: the program can be stopped at any time. Give a new version of the code a new file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path

from anytime_parts.arms import HERE, Outcome, autogluon, ours, usual_script
from anytime_parts.plot import picture
from anytime_parts.points import AUTOGLUON, EACH, OURS, POINTS, USUAL, Run
from anytime_parts.tables import figures, in_short, page
from anytime_parts.tasks import BACKBONES, DIGITS, SETS, Task, prepare
from development_data import DATA, MISSING

QUICK_POINTS = (15, 30)

Arm = Callable[[Task, int, Path], Outcome]


def read(file: Path) -> list[Run]:
    """The runs that are recorded."""
    return [Run.from_json(json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def append(file: Path, run: Run) -> None:
    with open(file, "a") as lines:
        lines.write(json.dumps(dataclasses.asdict(run)) + "\n")


def commit() -> str:
    """Of the code that is measured, + if it was changed since."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty=+", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


Key = tuple[str, str, int, str, int, int]


def wanted(data: str, options: argparse.Namespace) -> list[Key]:
    """The keys of a data set's runs, in the order in which they are run."""
    budgets: dict[str, set[int]] = {}
    for column in options.columns:
        budgets.setdefault(column.arm, set()).update(options.points if column.by_budget else options.points[-1:])
    return [
        (data, options.model, options.image_size, arm, seed, budget)
        for seed in options.seeds
        for arm in budgets
        for budget in sorted(budgets[arm])
    ]


def one_run(key: Key, arm: Arm) -> Run:
    """Run an arm and score its models."""
    data, model, image_size, name, seed, budget = key
    with tempfile.TemporaryDirectory(prefix="anytime-") as folder:
        (work := Path(folder) / "run").mkdir()
        task = prepare(data, seed, BACKBONES[model], image_size, Path(folder))
        facts = {
            "date": time.strftime("%Y-%m-%d %H:%M"),
            "commit": commit(),
            "cpus": os.cpu_count(),
            "splits": task.fingerprint,
            **{split: task.count(split) for split in task.splits},
            **{package: version(package) for package in ("torch", "ray", "optuna", "timm")},
        }
        before = os.getloadavg()[0]
        outcome = arm(task, budget, work)
        return Run(
            data=data,
            model=model,
            image_size=image_size,
            arm=name,
            seed=seed,
            budget=budget,
            versions=tuple(outcome.versions),
            guess=task.guess,
            ended=outcome.ended,
            exit_status=outcome.exit_status,
            last_lines=outcome.last_lines,
            facts=facts | {"load": (before, outcome.load_after)},
        )


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line; also the columns, the points and the input size that follow from it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="digits, EfficientNet-Lite0 at 64 px, 15 and 30 s")
    parser.add_argument("--data", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help=", ".join(SETS))
    parser.add_argument("--model", choices=BACKBONES, default="mobilenet_v2")
    parser.add_argument("--image-size", type=int, help="in pixels (97 for mobilenet_v2, 96 for efficientnet_lite0)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the splits and of the arms (0)")
    parser.add_argument("--minutes", type=float, default=16, help="the last point and the budget of watched runs (16)")
    parser.add_argument("--arms", nargs="+", choices=("ours", "usual"), default=["ours", "usual"])
    parser.add_argument("--by-budget", action="store_true", help="also a run of ours for each point")
    parser.add_argument("--autogluon", metavar="PYTHON", help="an interpreter that has autogluon.multimodal")
    parser.add_argument("--results", type=Path, default=Path("anytime.jsonl"), help="file of runs (anytime.jsonl)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the curves here, as SVG")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here")
    options = parser.parse_args(words)
    options.points = [point for point in POINTS if point <= 60 * options.minutes]
    if options.quick:
        options.data, options.model, options.points = [DIGITS], "efficientnet_lite0", list(QUICK_POINTS)
        options.image_size = options.image_size or 64
    elif not DATA.exists():
        parser.error(MISSING)
    if not options.points:
        parser.error(f"--minutes must be at least {POINTS[0] / 60:g}, but got {options.minutes:g}")
    if options.autogluon and (reason := lacks_autogluon(options.autogluon)):
        parser.error(
            f"--autogluon {options.autogluon} cannot import autogluon.multimodal ({reason}); name an interpreter that "
            f"has it, or leave --autogluon out"
        )
    options.image_size = options.image_size or BACKBONES[options.model].image_size
    chosen = [(OURS, "ours" in options.arms), (EACH, options.by_budget), (USUAL, "usual" in options.arms)]
    options.columns = [column for column, asked in [*chosen, (AUTOGLUON, options.autogluon)] if asked]
    return options


def lacks_autogluon(python: str) -> str | None:
    """Why an interpreter cannot run AutoGluon; None if it can."""
    try:
        found = subprocess.run(
            [python, "-c", "import autogluon.multimodal"], capture_output=True, text=True, check=False
        )
    except OSError as error:
        return error.strerror
    return (found.stderr.strip().splitlines() or ["it says nothing"])[-1] if found.returncode else None


def main(words: Sequence[str] | None = None) -> int:
    """Run what is missing and print the tables."""
    options = arguments_of(words)
    arms: dict[str, Arm] = {
        "ours": ours,
        "usual": usual_script,
        "autogluon": partial(autogluon, python=options.autogluon),
    }
    done = {run.key for run in read(options.results)}
    for key in (key for data in options.data for key in wanted(data, options) if key not in done):
        run = one_run(key, arms[key[3]])
        append(options.results, run)
        print(in_short(run), file=sys.stderr, flush=True)
    known = {run.key: run for run in read(options.results)}
    groups = {data: [known[key] for key in wanted(data, options)] for data in options.data}
    print("\n".join(page(groups, options.columns, options.points)))
    if options.plot:
        options.plot.write_text(picture(groups, options.columns, options.points), encoding="utf-8")
    if options.json:
        options.json.write_text(json.dumps(figures(groups, options.columns, options.points), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
