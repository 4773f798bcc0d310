"""Does a refactoring leave seeded studies bit-identical? Runs the same studies with two checkouts and compares them.

    python benchmarks/bit_identity.py [--before COMMIT] [--after DIR] [--allow NAME …] [--json FILE]
                                       [--quick | --thorough]

`before` (HEAD~1) is a commit, checked out into a temporary worktree; `after` (this checkout) is a folder, with changes
that are not committed yet. Data and weights are generated from a seed; nothing is downloaded. Both checkouts run, with
one trial at a time:

    methods    every method (search_spaces/methods.py), random augmentation, ASHA, test score
    resumed    TPE, ASHA, `--confirm 2`; interrupted by Ctrl-C in the middle of a trial, then resumed

`--quick` runs only the second one, with every method, too few trials for TPE to learn from, and fewer images.
`--thorough` runs the second study two more times with `after`; both must equal its own resumed study:

    across           `before` began it, `after` resumes it
    uninterrupted    from beginning to end in one session

Compared are every column of every table, every tensor and every JSON value that a study writes, floats bit by bit.
Left out are times, nodes, paths and versions (`MACHINE_BOUND`), what is written for people to read (report, model card,
log) and Ray's own files. What only one side has is a difference. `--allow` names files, columns, tensors or JSON keys
that may differ; `*` stands for any characters.

Exit status: 0 if all is equal, 1 if anything differs, 2 if a study could not be run. A checkout is used through
`launch.py` alone, so its modules may move.

Starting Python, torch and Ray takes most of the time: about 40 s of a session on an idle machine. Measured on two cores
that other programs used as well: `--thorough` 7 minutes (load 3), `--quick` 6 minutes (load 6).
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from safetensors import safe_open

THIS_CHECKOUT = Path(__file__).resolve().parents[1]
MACHINE_BOUND = (
    *("*seconds*", "time", "time_use", "began", "ended", "reported", "started", "finished", "interrupted"),
    *("id", "node", "versions", "git_commit", "command", "folder", "resume"),
    *("settings.out", "settings.cache", "settings.space", "metadata.delta_tune.events"),
)
"""Columns and JSON keys that no two runs have in common; `events` counts the journal's lines, restarts included."""
NOT_COMPARED = ("ray/*", "confirm/ray/*", "*.html", "*.md", "*.log", "*.txt")
"""Files of a study that are not compared."""

MODEL, PIXELS = "test_resnet", 32
EPOCHS, GRACE_PERIOD = 4, 2
SPACE = '''"""One Optuna study for both methods (no BALANCE), so that TPE learns from all trials."""


def space(trial):
    regularizer = trial.suggest_categorical("regularizer", ["delta", "l2"])
    trial.suggest_float("lr", 1e-4, 1e-1, log=True)
    if regularizer == "delta":
        trial.suggest_float("alpha", 1e-2, 1.0, log=True)
        trial.suggest_float("attention_temperature", 0.5, 20, log=True)
    return {"batch_norm": "train", "head_lr_multiplier": 10.0}
'''
LIMIT_S = 600.0
"""Time after which a session counts as hung."""
POLL_S = 0.01


class StudyError(Exception):
    """A study did not run as it must for a comparison."""


# Comparing


@dataclass(frozen=True)
class Item:
    """The comparison of one file."""

    studies: str
    file: str
    values: int
    """How many values were compared."""
    difference: str | None = None
    """The first difference, None if there is none."""


@dataclass(frozen=True)
class Values:
    """A column, a tensor or a JSON value."""

    kind: str
    values: list[Any]


def compare_studies(before: Path, after: Path, *, allow: Sequence[str] = (), label: str = "") -> list[Item]:
    """Compare the folders of two studies file by file.

    Args:
        before: folder of a study.
        after: folder of another.
        allow: patterns of files, columns, tensors or JSON keys that may differ.
        label: what the two are called in the result.
    """
    ours, theirs = _files(before), _files(after)
    items = []
    for name in sorted(ours | theirs):
        if _matches(name, allow):
            continue
        if name not in theirs or name not in ours:
            items.append(Item(label, name, 0, f"only {'before' if name in ours else 'after'} has this file"))
        else:
            values, difference = compare_files(before / name, after / name, allow=allow)
            items.append(Item(label, name, values, difference))
    return items


def compare_files(before: Path, after: Path, *, allow: Sequence[str] = ()) -> tuple[int, str | None]:
    """The number of values compared and the first difference of two files of the same kind."""
    left_out = (*MACHINE_BOUND, *allow)
    ours, theirs = (
        {name: values for name, values in read(file).items() if not _matches(name, left_out)}
        for file in (before, after)
    )
    differences = [
        difference for name in ours | theirs if (difference := _difference(name, ours.get(name), theirs.get(name)))
    ]
    compared = sum(_count(ours[name].values) for name in ours.keys() & theirs.keys())
    more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
    return compared, differences[0] + more if differences else None


def read(file: Path) -> dict[str, Values]:
    """The contents of a file by column (Parquet), tensor (safetensors) or dotted key (JSON); others are one value."""
    match file.suffix:
        case ".parquet":
            return _read_table(file)
        case ".safetensors":
            return _read_tensors(file)
        case ".json":
            return dict(_flat("", json.loads(file.read_text())))
    return {file.name: Values("bytes", [file.read_bytes()])}


def _read_table(file: Path) -> dict[str, Values]:
    table = pq.read_table(file)
    columns = {name: Values(str(table[name].type), table[name].to_pylist()) for name in table.column_names}
    metadata = {key.decode(): value for key, value in (table.schema.metadata or {}).items()}
    return columns | {f"metadata.{key}": Values("bytes", [value]) for key, value in metadata.items()}


def _read_tensors(file: Path) -> dict[str, Values]:
    with safe_open(file, framework="np") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
        metadata = opened.metadata() or {}
    return {
        **{
            name: Values(f"{array.dtype}{list(array.shape)}", array.ravel().tolist()) for name, array in tensors.items()
        },
        **{f"metadata.{key}": Values("string", [value]) for key, value in metadata.items()},
    }


def _flat(name: str, value: Any) -> Iterator[tuple[str, Values]]:
    """The leaves of a JSON value; an empty object or list is one too."""
    if isinstance(value, (dict, list)) and value:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _flat(f"{name}.{key}" if name else str(key), inner)
    else:
        yield name, Values(type(value).__name__, [value])


def _files(folder: Path) -> set[str]:
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    return {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in NOT_COMPARED)}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a pattern matches the name or a part of it: `time` matches `test_scorings.0.time`."""
    return any(fnmatch.fnmatchcase(part, pattern) for part in (name, *name.split(".")) for pattern in patterns)


def _difference(name: str, before: Values | None, after: Values | None) -> str | None:
    """The first difference of what two files have under a name."""
    if before is None or after is None:
        return f"only {'after' if before is None else 'before'} has {name}"
    if before.kind != after.kind:
        return f"{name}: {before.kind} before, {after.kind} after"
    for row, (one, other) in enumerate(zip(before.values, after.values, strict=False)):
        if _bits(one) != _bits(other):
            where = f"{name}, row {row}" if len(before.values) > 1 else name
            return f"{where}: {_short(one)} before, {_short(other)} after"
    if len(before.values) != len(after.values):
        return f"{name}: {len(before.values)} rows before, {len(after.values)} after"
    return None


def _bits(value: Any) -> Any:
    """Something that is equal for two values only if their types and bits are: for NaN and NaN, not for 0 and -0."""
    match value:
        case float():
            return struct.pack("<d", value)
        case list():
            return [_bits(each) for each in value]
        case dict():
            return {key: _bits(each) for key, each in value.items()}
    return type(value), value


def _count(value: Any) -> int:
    """How many single values a value consists of."""
    return sum(map(_count, value)) if isinstance(value, list) else 1


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


# Running


class Studies:
    """Runs the studies of any checkout, in processes of their own."""

    def __init__(self, work: Path, quick: bool) -> None:
        self.work, self.quick = work, quick
        self._running: list[subprocess.Popen[bytes]] = []
        self._lock = threading.Lock()
        self._stopped = False

    def methods(self, checkout: Path, label: str) -> Path:
        """Run the study of all methods; its folder."""
        folder = self.work / label / "methods"
        flags = ["--space", "search_spaces/methods.py", "--num-trials", "10", "--metric", "val_accuracy"]
        self._run(checkout, folder, [*self._flags(), *flags])
        return folder

    def uninterrupted(self, checkout: Path, label: str) -> Path:
        """Run the second study from its beginning to its end; its folder."""
        folder = self.work / label / "resumed"
        self._run(checkout, folder, [*self._flags(), *self._more_flags()])
        return folder

    def interrupted(self, checkout: Path, label: str, copy: str | None = None) -> str:
        """Begin the second study, interrupt it in the middle of a trial, and copy it; in words where it was hit."""
        folder = self.work / label / "resumed"
        with self._launched(checkout, folder, [*self._flags(), *self._more_flags()]) as process:
            _interrupt(process, folder, epochs=10 if self.quick else 26)
        rows = pq.read_table(folder / "trials.parquet").to_pylist()
        hit = [row for row in rows if row["state"] == "stopped" and 0 < row["epochs"] < EPOCHS]
        if not hit:
            raise StudyError(f"{label}: the interruption did not hit a trial; run it again.")
        if copy is not None:
            shutil.copytree(folder.parent, self.work / copy)
        return f"{label}: interrupted in trial {hit[0]['number']} after {hit[0]['epochs']} of {EPOCHS} epochs"

    def resumed(self, begun: Future[str], checkout: Path, label: str) -> Path:
        """Finish an interrupted study; its folder."""
        begun.result()
        folder = self.work / label / "resumed"
        # A study by a version that did not remember its studies asks for its places again
        flags = [*self._flags(), *self._more_flags()]
        places = [text for flag in ("--data", "--weights", "--space") for text in (flag, flags[flags.index(flag) + 1])]
        self._run(checkout, folder, ["--resume", *places])
        return folder

    def stop(self) -> None:
        """End all studies that run, and let no other begin."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()

    def _flags(self) -> list[str]:
        return [
            *("--data", str(self.work / "data"), "--model", f"timm:{MODEL}", "--image-size", str(PIXELS)),
            *("--weights", str(self.work / "weights.safetensors"), "--set", "batch_size=8"),
            *("--max-epochs", str(EPOCHS), "--max-concurrent-trials", "1", "--seed", "7"),
        ]

    def _more_flags(self) -> list[str]:
        """Flags of the second study: TPE uses what it has learned from the eleventh trial on."""
        space = "search_spaces/methods.py" if self.quick else str(self.work / "space.py")
        return [
            *("--space", space, "--num-trials", "10" if self.quick else "14", "--sampler", "tpe", "--confirm", "2"),
            *("--grace-period", str(GRACE_PERIOD), "--reduction-factor", "2", "--metric", "val_loss"),
        ]

    def _run(self, checkout: Path, folder: Path, flags: list[str]) -> None:
        with self._launched(checkout, folder, flags):
            pass

    @contextlib.contextmanager
    def _launched(self, checkout: Path, folder: Path, flags: list[str]) -> Iterator[subprocess.Popen[bytes]]:
        """Run `launch.py` while the block runs, and wait for its end.

        Raises:
            StudyError: it failed, with the end of what it printed.
        """
        folder.parent.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        command = [
            *(sys.executable, "launch.py", "--out", str(folder.parent), "--name", folder.name, "--verbose", "2"),
            *("--cache", str(folder.parent / f"{folder.name}-cache"), *flags),
        ]
        output = folder.parent / f"{folder.name}-output.txt"
        with output.open("ab") as file:
            with self._lock:
                if self._stopped:
                    raise StudyError("stopped")
                process = subprocess.Popen(
                    command, cwd=checkout, env=environment(checkout), stdout=file, stderr=subprocess.STDOUT
                )
                self._running.append(process)
            try:
                yield process
                status = process.wait(LIMIT_S)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait(LIMIT_S)
                with self._lock:
                    self._running.remove(process)
        if status:
            end = "\n".join(output.read_text(errors="replace").splitlines()[-30:])
            raise StudyError(f"{' '.join(command)}\nin {checkout} ended with status {status}:\n{end}")
        flag = " --resume" if "--resume" in flags else ""
        print(f"        {folder.parent.name}/{folder.name}{flag}: {time.monotonic() - began:.0f} s", flush=True)


def environment(checkout: Path) -> dict[str, str]:
    """Variables that make Python and Ray's workers import this checkout, with one thread each."""
    kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return kept | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def _interrupt(process: subprocess.Popen[bytes], folder: Path, *, epochs: int) -> None:
    """Send what Ctrl-C sends after that many epochs, as soon as a trial has most of its epochs before it."""
    deadline = time.monotonic() + LIMIT_S
    while process.poll() is None:
        written = _epochs_written(folder)
        if len(written) >= epochs and written[-1] < GRACE_PERIOD:
            process.send_signal(signal.SIGINT)
            return
        if time.monotonic() > deadline:
            raise StudyError(f"{folder}: no {epochs} epochs within {LIMIT_S:.0f} s")
        time.sleep(POLL_S)
    raise StudyError(f"{folder}: the study ended before it could be interrupted")


def _epochs_written(folder: Path) -> list[int]:
    """The number of each epoch that the study's table and its journal have."""
    written: list[int] = []
    with contextlib.suppress(FileNotFoundError):
        with pq.ParquetFile(folder / "epochs.parquet") as table:
            written += table.read(["epoch"])["epoch"].to_pylist()
        written += map(int, re.findall(r'"epoch": (\d+)', (folder / "journal.jsonl").read_text()))
    return written


def check_imports(checkout: Path) -> None:
    """Make sure that a checkout's program imports its own package, not an installed one.

    Raises:
        StudyError: it does not.
    """
    print_file = [sys.executable, "-c", "import delta_tune; print(delta_tune.__file__)"]
    shown = subprocess.run(print_file, cwd=checkout, env=environment(checkout), capture_output=True, text=True)
    if not Path(shown.stdout.strip()).is_relative_to(checkout):
        raise StudyError(f"{checkout} imports delta_tune from {shown.stdout.strip() or shown.stderr}")


def make_inputs(work: Path, quick: bool) -> None:
    """Write an image folder of four noisy colours, random weights and a search space, the same every time."""
    import numpy as np
    import timm
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    rng = np.random.default_rng(0)
    for split, count in (("train", 8 if quick else 14), ("val", 8), ("test", 8)):
        for k, name in enumerate(("blue", "green", "red", "grey")):
            folder = work / "data" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 200, (PIXELS + 8, PIXELS + 8, 3))
                if k < 3:
                    pixels[..., 2 - k] += rng.integers(10, 50)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    torch.manual_seed(0)
    model = timm.create_model(MODEL, pretrained=False).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # timm starts residual branches at 0: ablations would be too
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.2)
    for _ in range(3):
        model(torch.randn(8, 3, PIXELS, PIXELS))
    save_file(model.state_dict(), work / "weights.safetensors")
    (work / "space.py").write_text(SPACE)


@contextlib.contextmanager
def worktree(repository: Path, commit: str, folder: Path) -> Iterator[Path]:
    """Check a commit out into a folder while the block runs."""
    git(repository, "worktree", "add", "--detach", str(folder), commit)
    try:
        yield folder
    finally:
        git(repository, "worktree", "remove", "--force", str(folder))


def git(repository: Path, *arguments: str) -> str:
    """The output of a git command.

    Raises:
        StudyError: git refuses it.
    """
    done = subprocess.run(["git", "-C", str(repository), *arguments], capture_output=True, text=True)
    if done.returncode:
        raise StudyError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def run_and_compare(
    before: Path, after: Path, work: Path, *, quick: bool, thorough: bool, allow: Sequence[str]
) -> tuple[list[Item], list[str]]:
    """Run the studies of two checkouts, two at a time; the comparisons, and in words what was run."""
    for checkout in (before, after):
        check_imports(checkout)
    make_inputs(work, quick)
    studies = Studies(work, quick)
    with ThreadPoolExecutor(2) as pool:
        both = () if quick else ((before, "before"), (after, "after"))
        methods = [pool.submit(studies.methods, checkout, label) for checkout, label in both]
        begun = [
            pool.submit(studies.interrupted, before, "before", "across" if thorough else None),
            pool.submit(studies.interrupted, after, "after"),
        ]
        second = [
            pool.submit(studies.resumed, begun[0], before, "before"),
            pool.submit(studies.resumed, begun[1], after, "after"),
        ]
        if thorough:
            second.append(pool.submit(studies.resumed, begun[0], after, "across"))
            second.append(pool.submit(studies.uninterrupted, after, "uninterrupted"))
        jobs: list[Future[Any]] = [*methods, *begun, *second]
        try:
            for job in as_completed(jobs):
                job.result()
        except BaseException:
            studies.stop()
            raise
    items: list[Item] = []
    facts: list[str] = []
    first, (one, other, *more) = [job.result() for job in methods], [job.result() for job in second]
    for folders in ([first] if first else []) + [[one, other]]:
        items += compare_studies(*folders, allow=allow, label=folders[0].name)
        facts.append(f"{folders[0].name}: {study_summary(folders[1])}")
    for folder in more:
        items += compare_studies(other, folder, allow=allow, label=folder.parent.name)
    return items, facts + [start.result() for start in begun]


def study_summary(folder: Path) -> str:
    """What a study consisted of, so that a reader sees that something was compared."""
    trials = pq.read_table(folder / "trials.parquet").to_pylist()
    states = ", ".join(f"{count} {state}" for state, count in Counter(row["state"] for row in trials).most_common())
    methods = {row["config.regularizer"] for row in trials}
    return f"{len(trials)} trials ({states}), {len(methods)} methods, {sum(row['epochs'] for row in trials)} epochs"


def print_items(items: Sequence[Item]) -> None:
    """Print a table of the comparisons."""
    width = max(len(item.file) for item in items)
    print(f"\n{'study':13}  {'file':{width}}  {'values':>8}  result")
    for item in items:
        result = f"DIFFERENT  {item.difference}" if item.difference else "equal"
        print(f"{item.studies:13}  {item.file:{width}}  {item.values:8,}  {result}")


def main() -> int:
    """Run the program; its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", metavar="COMMIT", default="HEAD~1", help="commit to compare with (HEAD~1)")
    parser.add_argument("--after", metavar="DIR", type=Path, default=THIS_CHECKOUT, help="checkout (this one)")
    parser.add_argument("--allow", metavar="NAME", action="append", default=[], help="may differ; may be repeated")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="only the second study")
    size.add_argument("--thorough", action="store_true", help="also resume across versions and run uninterrupted")
    parser.add_argument("--json", type=Path, help="write the same figures here")
    arguments = parser.parse_args()
    began, after = time.monotonic(), arguments.after.resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and their children, ignore it
    try:
        commit = git(after, "rev-parse", "--verify", f"{arguments.before}^{{commit}}")
        now = git(after, "rev-parse", "HEAD")
        changed = " with uncommitted changes" if git(after, "status", "--porcelain") else ""
        print(f"before  {commit[:10]}\nafter   {now[:10]}{changed}, {after}", flush=True)
        with (
            tempfile.TemporaryDirectory(prefix="bit-identity-") as folder,
            worktree(after, commit, Path(folder).resolve() / "checkout") as before,
        ):
            work = Path(folder).resolve()
            quick, thorough = arguments.quick, arguments.thorough
            items, facts = run_and_compare(before, after, work, quick=quick, thorough=thorough, allow=arguments.allow)
    except StudyError as error:
        print(f"bit_identity.py: {error}", file=sys.stderr)
        return 2
    seconds = time.monotonic() - began
    print("\n".join(facts))
    print_items(items)
    different = sum(item.difference is not None for item in items)
    verdict = f"{different} of {len(items)} files DIFFERENT" if different else f"all {len(items)} files equal"
    print(f"\n{verdict}, {sum(item.values for item in items):,} values, {seconds:.0f} s")
    if arguments.json:
        figures = {"before": commit, "after": now + changed, "equal": not different, "seconds": seconds}
        arguments.json.write_text(json.dumps(figures | {"facts": facts, "files": [asdict(i) for i in items]}, indent=1))
    return 1 if different else 0


if __name__ == "__main__":
    raise SystemExit(main())
