"""The arms: each is a command that is run and watched from outside; the models that it had are scored after it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

import delta_tune
from anytime_parts import usual
from anytime_parts.points import Version
from anytime_parts.tasks import Task

HERE = Path(__file__).resolve().parent
LOOK_S = 0.2
MODEL_FILES = ("model.safetensors", "config.json")
LAST_LINES = 40


@dataclass(kw_only=True, slots=True)
class Outcome:
    """What became of a command."""

    began: float
    """`time.monotonic()`, which on one machine all processes share."""
    ended: float = 0.0
    """Seconds after it."""
    exit_status: int = 0
    load_after: float = 0.0
    """Average of the last minute."""
    last_lines: tuple[str, ...] = ()
    versions: list[Version] = field(default_factory=list)


def run(
    command: Sequence[str | Path],
    budget: float,
    log: Path,
    look: Callable[[float], None] = lambda seconds: None,
    environment: dict[str, str] | None = None,
) -> Outcome:
    """Run a command to its end, or until it has taken twice its budget and two minutes.

    Args:
        command: its words.
        budget: seconds.
        log: file of its output.
        look: called every `LOOK_S` with the seconds since the beginning.
        environment: variables beside ours.
    """
    own = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | (environment or {})
    with open(log, "w") as output:
        outcome = Outcome(began=time.monotonic())
        process = subprocess.Popen(
            list(map(str, command)), stdout=output, stderr=output, env=own, cwd=log.parent, start_new_session=True
        )
        with ended_at_last(process):
            while process.poll() is None and time.monotonic() - outcome.began < 2 * budget + 120:
                time.sleep(LOOK_S)
                look(time.monotonic() - outcome.began)
    outcome.ended = time.monotonic() - outcome.began
    outcome.exit_status, outcome.load_after = process.returncode, os.getloadavg()[0]
    outcome.last_lines = tuple(log.read_text(errors="replace").splitlines()[-LAST_LINES:])
    return outcome


@contextmanager
def ended_at_last(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Ends the process, should it still run after the block; with all that it started if it does not end itself."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


class Watch:
    """Keeps every model that a study's `best/` holds, as links to its files, which are replaced and never written to.

    Weights and configuration are replaced one after the other: what is kept was seen unchanged at two looks.
    """

    def __init__(self, best: Path, kept: Path) -> None:
        self.best, self.kept = best, kept
        self.moments: list[float] = []
        self._seen: tuple[int, ...] | None = None
        self._since = 0.0
        self._taken: tuple[int, ...] | None = None

    def look(self, seconds: float) -> None:
        """Look once, `seconds` after the beginning."""
        now = self._state()
        if now != self._seen:
            self._seen, self._since = now, seconds
        elif now is not None and now != self._taken:
            self._take(now)

    def _take(self, now: tuple[int, ...]) -> None:
        """Keep the model, instead of the last one if only more is told of the same weights."""
        place = self.kept / "next"
        place.mkdir(parents=True)
        with suppress(FileNotFoundError):  # it is just being replaced
            for name in MODEL_FILES:
                os.link(self.best / name, place / name)
        if self._state() != now:
            shutil.rmtree(place)
            return
        if self._taken is None or now[:2] != self._taken[:2]:
            self.moments.append(self._since)
        last = self.kept / str(len(self.moments) - 1)
        if last.exists():
            shutil.rmtree(last)
        place.rename(last)
        self._taken = now

    def _state(self) -> tuple[int, ...] | None:
        """Tells a model from any other: inode and time of each file, weights first; None if there is none."""
        try:
            found = [(self.best / name).stat() for name in MODEL_FILES]
        except FileNotFoundError:
            return None
        return tuple(number for stat in found for number in (stat.st_ino, stat.st_mtime_ns))


def ours(task: Task, budget: int, work: Path) -> Outcome:
    """A study with default settings and a time budget."""
    launch = [sys.executable, HERE.parents[1] / "launch.py", "--data", task.folder, "--model", task.backbone.model]
    launch += ["--weights", task.backbone.weights, "--image-size", str(task.image_size), "--seed", str(task.seed)]
    launch += ["--time-budget", f"{budget}s", "--out", work / "results", "--name", "study"]
    watch = Watch(work / "results" / "study" / "best", work / "kept")
    outcome = run(launch, budget, work / "ours.log", watch.look)
    check(outcome, worked=outcome.exit_status != 2)
    for _ in range(2):  # the end of a study may come soon after its last model
        watch.look(outcome.ended)
    for number, seconds in enumerate(watch.moments):
        model = delta_tune.load(work / "kept" / str(number))
        right = task.marks([each.label for each in model.predict(task.images)])
        val_accuracy = model.config.get("metrics", {}).get("val_accuracy")
        outcome.versions.append(Version(seconds=seconds, right=right, val_accuracy=val_accuracy))
    return outcome


def check(outcome: Outcome, *, worked: bool) -> None:
    """End the benchmark if a command did not work, rather than record that it had no model."""
    if not worked:
        raise SystemExit("\n".join(["A run failed; its last lines are:", *outcome.last_lines]))


def shared_flags(task: Task) -> list[str]:
    """Those that both scripts take."""
    return ["--model", task.backbone.timm, "--image-size", str(task.image_size), "--seed", str(task.seed)]


def usual_script(task: Task, budget: int, work: Path) -> Outcome:
    """`usual.py`."""
    command = [sys.executable, HERE / "usual.py", task.folder, work / "out", *shared_flags(task)]
    outcome = run([*command, "--weights", task.weights, "--seconds", str(budget)], budget, work / "usual.log")
    check(outcome, worked=outcome.exit_status == 0)
    versions = work / "out" / "versions"
    told = versions / "versions.jsonl"
    name, size = task.backbone.timm, task.image_size
    test = ImageFolder(f"{task.folder}/test", usual.transform(name, size, train=False))
    model = usual.build(name, str(task.weights), len(test.classes))
    for line in map(json.loads, told.read_text().splitlines() if told.exists() else ()):
        model.load_state_dict(torch.load(versions / line["file"], weights_only=True))
        predicted, _ = usual.classify(model, DataLoader(test, usual.BATCH))
        right = task.marks([test.classes[number] for number in predicted])
        seconds = line["monotonic"] - outcome.began
        outcome.versions.append(Version(seconds=seconds, right=right, val_accuracy=line["val_accuracy"]))
    return outcome


def autogluon(task: Task, budget: int, work: Path, python: str) -> Outcome:
    """`with_autogluon.py`, without a network: the weights lie where timm's download would have put them."""
    repository = f"models--timm--{task.backbone.timm}.{task.backbone.tag}"
    snapshot = work / "hub" / repository / "snapshots" / "local"
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("local")
    state = safetensors.torch.load_file(task.weights)
    safetensors.torch.save_file(state, snapshot / "model.safetensors", {"format": "pt"})
    (work / "out").mkdir()
    command = [python, HERE / "with_autogluon.py", task.folder, work / "out", *shared_flags(task)]
    outcome = run(
        [*command, "--seconds", str(budget)],
        budget,
        work / "autogluon.log",
        environment={"HF_HUB_CACHE": str(work / "hub"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""},
    )
    if (fitted := work / "out" / "fitted.json").exists():
        told = json.loads(fitted.read_text())
        seconds = outcome.ended = told["monotonic"] - outcome.began  # what follows is the scoring
        outcome.versions.append(Version(seconds=seconds, right=task.marks(told["labels"])))
    return outcome
