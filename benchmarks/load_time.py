"""How long does a program that only predicts wait: for the import, the first prediction, the command?

    python benchmarks/load_time.py [--before COMMIT|DIR] [--after DIR] [--repeats 7] [--folder BEST …]

Each figure is that of whole processes, from their start to their end, less that of `python -c pass`. `before` (HEAD~1)
is a commit, checked out into a temporary worktree, or a folder; `after` is this checkout. They run in turn, each round
in the other order, and medians are printed with the median of the rounds' ratios: what else the machine does then hits
both. One round before is not counted, for the files are not in memory then.

    import    `import delta_tune; delta_tune.load`: what a program waits for when it starts
    predict   load a model and predict one image
    command   `python -m delta_tune predict FOLDER IMAGE`
    torch     `import torch, torchvision`, which nobody who builds a network with torchvision or timm can do without

Without `--folder` there are two models with random weights: MobileNetV2 of torchvision, and EfficientNet-Lite0 of timm.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

THIS_CHECKOUT = Path(__file__).resolve().parents[1]
MODELS = {"mobilenet_v2": 224, "timm:tf_efficientnet_lite0": 224}
IMPORT = "import delta_tune; delta_tune.load"
PREDICT = "import sys, delta_tune; delta_tune.load(sys.argv[1]).predict(sys.argv[2])"


@contextlib.contextmanager
def checkout(given: str) -> Iterator[Path]:
    """A folder as it is, or a commit in a temporary worktree."""
    if Path(given).is_dir():
        yield Path(given).resolve()
        return
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "before"
        git = ["git", "-C", str(THIS_CHECKOUT), "worktree"]
        subprocess.run([*git, "add", "--detach", "--quiet", str(place), given], check=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True)


def make_models(work: Path) -> dict[str, Path]:
    """Folders of models with random weights."""
    import timm
    import torch
    import torchvision

    from delta_tune.inference.model_folder import save_model
    from delta_tune.models.backbones import build_target, load_backbone
    from delta_tune.training.checkpoint import save_weights

    found = {}
    for number, (name, size) in enumerate(MODELS.items()):
        own = name.removeprefix("timm:")
        network = timm.create_model(own) if own != name else torchvision.models.get_model(name)
        weights, run = work / f"{number}.pth", work / f"{number}.safetensors"
        torch.save(network.state_dict(), weights)
        backbone = load_backbone(name, str(weights), size)
        save_weights(build_target(backbone, 10, torch.Generator()).state_dict(), run)
        found[name] = work / f"model-{number}"
        save_model(backbone, [f"class {k}" for k in range(10)], [run], {}, found[name])
    return found


def seconds(command: list[str], place: Path) -> float:
    """Wall time of a process whose delta_tune is that of `place`."""
    environment = {**os.environ, "PYTHONPATH": str(place)}
    began = time.perf_counter()
    subprocess.run(command, check=True, env=environment, cwd=place, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(
    commands: dict[str, list[str]], places: dict[str, Path], repeats: int
) -> dict[tuple[str, str], list[float]]:
    """(command, place) → the seconds of each round."""
    found: dict[tuple[str, str], list[float]] = {(name, place): [] for name in commands for place in places}
    for round_number in range(repeats + 1):
        order = list(places) if round_number % 2 else list(reversed(places))
        for name, command in commands.items():
            for place in order:
                took = seconds(command, places[place])
                if round_number:
                    found[name, place].append(took)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="HEAD~1", help="Commit or folder (HEAD~1)")
    parser.add_argument("--after", default=str(THIS_CHECKOUT), help="Folder (this checkout)")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", nargs="+", type=Path, default=[], help="Models; random ones by default")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work, checkout(given.before) as before:
        models = {str(folder): folder.resolve() for folder in given.folder} or make_models(Path(work))
        image = Path(work) / "image.png"
        write_image(image)
        python = [sys.executable]
        commands = {
            "nothing": [*python, "-c", "pass"],
            "torch": [*python, "-c", "import torch, torchvision"],
            "import": [*python, "-c", IMPORT],
        }
        for name, folder in models.items():
            commands[f"predict, {name}"] = [*python, "-c", PREDICT, str(folder), str(image)]
            commands[f"command, {name}"] = [*python, "-m", "delta_tune", "predict", str(folder), str(image)]
        found = measure(commands, {"before": before, "after": Path(given.after).resolve()}, given.repeats)
    show(found, list(commands))


def write_image(file: Path) -> None:
    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def show(found: dict[tuple[str, str], list[float]], names: list[str]) -> None:
    table = Table("", "before, s", "after, s", "after / before")
    idle = {place: statistics.median(found["nothing", place]) for place in ("before", "after")}
    for name in names[1:]:
        parts = {place: [each - idle[place] for each in found[name, place]] for place in idle}
        pairs = zip(parts["before"], parts["after"], strict=True)
        ratio = statistics.median(after / before for before, after in pairs)
        medians = [f"{statistics.median(parts[place]):.2f}" for place in ("before", "after")]
        table.add_row(name, *medians, f"{ratio:.2f}")
    Console(highlight=False, width=100).print(table)


if __name__ == "__main__":
    main()
