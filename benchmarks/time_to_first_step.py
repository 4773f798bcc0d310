"""Seconds from `python launch.py` to the first model and to the first step of fine-tuning, with two checkouts in turn.

    python benchmarks/time_to_first_step.py [--before COMMIT] [--after DIR] [--data NAME …] [--repeats N] [--json FILE]

`before` (HEAD~1) is a commit, checked out into a temporary worktree; `after` (this checkout) is a folder. For each data
set (demo, flowers17, clothing), each checkout begins a study with an empty cache (cold), then another with the cache
that the first one left (warm); which checkout comes first changes from repeat to repeat. A study is interrupted once a
trial has reported an epoch. Printed are the medians of the repeats and of their ratios, in seconds since the command:

    line     the first line of output
    plan     the plan
    model    the first model, `–` where a version has none
    step     the first step of a fine-tuning trial: its first report, less what the epoch took
    report   that report

The photos are those of `development_data.py`. The demo needs neither them nor a download.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
from bit_identity import StudyError, environment, git, worktree
from development_data import DATA, MISSING

THIS_CHECKOUT = Path(__file__).resolve().parents[1]
MOMENTS = ("line", "plan", "model", "step", "report")
PHOTOS = ("--model", "timm:tf_efficientnet_lite0", "--weights", "demo", "--image-size", "96")
STUDIES = {
    "demo": (),
    "flowers17": ("--data", str(DATA / "flowers17"), *PHOTOS),
    "clothing": ("--data", str(DATA / "clothing"), *PHOTOS),
}
"""Flags of each study."""
SIGNS = {"plan": "  Study     ", "model": "  First model ", "report": " epoch 1: "}
"""What a line of output holds at a moment."""
END_S = 120.0
"""For a study to end after its interrupt."""


def measure(checkout: Path, flags: Sequence[str], folder: Path, cache: Path) -> dict[str, float]:
    """Run a study until its first report; the seconds of each moment.

    Args:
        checkout: the version to run.
        flags: of the study.
        folder: of the study, new.
        cache: the cache's folder.

    Raises:
        StudyError: the study ended before a trial reported.
    """
    where = ("--out", str(folder.parent), "--name", folder.name, "--cache", str(cache))
    command = [sys.executable, "launch.py", *where, "--verbose", "2", *flags]
    began, seconds, said = time.time(), dict[str, float](), list[str]()
    process = subprocess.Popen(
        command,
        cwd=checkout,
        env=environment(checkout) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            said.append(line)
            now = time.time() - began
            seconds.setdefault("line", now)
            for moment, sign in SIGNS.items():
                if sign in line and moment not in seconds:
                    seconds[moment] = now
                    if moment == "report":
                        process.send_signal(signal.SIGINT)
        process.wait(END_S)
    finally:
        process.kill()
    if "report" not in seconds:
        raise StudyError(f"{' '.join(command)}\nin {checkout} ended before a trial reported:\n{''.join(said[-20:])}")
    return seconds | {"step": first_step(folder) - began}


def first_step(folder: Path) -> float:
    """When the first step of a fine-tuning trial began, in seconds since 1970."""
    trials = pq.read_table(folder / "trials.parquet").to_pylist()
    trained = {trial["number"] for trial in trials if trial["config.regularizer"] not in ("linear_probe", "frozen")}
    epochs = pq.read_table(folder / "epochs.parquet").to_pylist()
    return min(e["reported"] - e["seconds"] - e["eval_seconds"] for e in epochs if e["trial"] in trained)


def table(results: Sequence[tuple[str, str, str, dict[str, float]]]) -> list[str]:
    """Lines of medians: before → after, and the median ratio of the pairs.

    Args:
        results: (data, cache, version, seconds of each moment), in the order of the runs.
    """
    lines = [f"{'':16}" + "".join(f"{moment:>24}" for moment in MOMENTS)]
    for data, cache in dict.fromkeys((data, cache) for data, cache, *_ in results):
        cells = []
        for moment in MOMENTS:
            before, after = (
                [s[moment] for d, c, v, s in results if (d, c, v) == (data, cache, version) and moment in s]
                for version in ("before", "after")
            )
            texts = [f"{statistics.median(values):.1f}" if values else "–" for values in (before, after)]
            ratios = [b / a for a, b in zip(before, after, strict=False)]
            ratio = f" ({statistics.median(ratios):.2f})" if ratios else ""
            cells.append(f"{' → '.join(texts)}{ratio}".rjust(24))
        lines.append(f"{data:10}{cache:6}" + "".join(cells))
    return lines


def main() -> int:
    """Run the program; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT", default="HEAD~1", help="commit to compare with (HEAD~1)")
    parser.add_argument("--after", metavar="DIR", type=Path, default=THIS_CHECKOUT, help="checkout (this one)")
    parser.add_argument("--data", nargs="+", choices=STUDIES, default=list(STUDIES), help="data sets (all)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (3)")
    parser.add_argument("--json", type=Path, help="write every run's seconds here")
    arguments = parser.parse_args()
    if arguments.data != ["demo"] and not DATA.exists():
        parser.error(MISSING)
    after, results = arguments.after.resolve(), list[tuple[str, str, str, dict[str, float]]]()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
    try:
        commit = git(after, "rev-parse", "--verify", f"{arguments.before}^{{commit}}")
        with (
            tempfile.TemporaryDirectory(prefix="first-step-") as temporary,
            worktree(after, commit, Path(temporary).resolve() / "checkout") as before,
        ):
            versions = [("before", before), ("after", after)]
            for repeat in range(arguments.repeats):
                for data in arguments.data:
                    for version, checkout in versions if repeat % 2 == 0 else versions[::-1]:
                        folder = Path(temporary).resolve() / f"{data}-{version}-{repeat}"
                        for cache in ("cold", "warm"):
                            seconds = measure(checkout, STUDIES[data], folder / cache, folder / "cache")
                            results.append((data, cache, version, seconds))
                            times = ", ".join(f"{m} {seconds[m]:.1f}" for m in MOMENTS if m in seconds)
                            print(f"  {data} {cache} {version}: {times}", flush=True)
    except StudyError as error:
        print(f"time_to_first_step.py: {error}", file=sys.stderr)
        return 2
    print("\n".join(table(results)))
    if arguments.json:
        names = ("data", "cache", "version", "seconds")
        runs = [dict(zip(names, result, strict=True)) for result in results]
        arguments.json.write_text(json.dumps({"before": commit, "runs": runs}, indent=1))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
