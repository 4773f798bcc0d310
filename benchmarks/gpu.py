"""All that only a GPU can tell: whether the CUDA paths work, and what each of them is worth.

    python benchmarks/gpu.py                          # one GPU, no network, under eight minutes
    python benchmarks/gpu.py --sections epochs waits --minutes 3 --model timm:tf_efficientnet_lite0

Photos are generated and weights are random: the figures are of speed, memory and agreement, none of accuracy. Each
section stands for itself: one that fails is told with its error, the others go on, and the exit status is 1. The same
is written to gpu.json and as a page of Markdown to gpu.md (--out), after every section.

`--simulate` runs every section that can be on the tests' simulated GPU, in tiny sizes: its figures mean nothing, and
that it ends shows that this program works where there is no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gpu_parts.agreement import gradients, trials
from gpu_parts.attention import planned_attention
from gpu_parts.bench import FULL, TINY, Bench, Sizes, open_bench
from gpu_parts.epochs import checkpoints, methods
from gpu_parts.half import precisions
from gpu_parts.memory import caps, footprint
from gpu_parts.packings import packings
from gpu_parts.profile import waits_and_launches
from gpu_parts.record import Section, page
from gpu_parts.running import Limits, Part, run_parts
from gpu_parts.study import studies
from gpu_parts.ways import ways

from delta_tune.models.devices import torch_threads

PARTS = (
    Part(name="gradients", run=gradients, weight=2),
    Part(name="trials", run=trials, weight=3),
    Part(name="attention", run=planned_attention, weight=2),
    Part(name="precisions", run=precisions, weight=1),
    Part(name="epochs", run=methods, weight=8),
    Part(name="ways", run=ways, weight=1),
    Part(name="checkpoints", run=checkpoints, weight=3),
    Part(name="memory", run=caps, weight=1, simulates=False),
    Part(name="footprint", run=footprint, weight=1, simulates=False),
    Part(name="packings", run=packings, weight=6),
    Part(name="study", run=studies, weight=4, simulates=False),
    Part(name="waits", run=waits_and_launches, weight=2, simulates=False),
)


@contextmanager
def opened(folder: Path, sizes: Sizes) -> Iterator[Bench]:
    """The bench on this machine's GPU."""
    yield open_bench(folder, sizes, torch.device("cuda"))


@contextmanager
def opened_in_simulation(folder: Path, sizes: Sizes) -> Iterator[Bench]:
    """The bench on a simulated GPU, which the tests own."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    from helpers.simulated_gpu import simulated_gpu

    with torch_threads(1), simulated_gpu("cuda"):  # its operators are tiny
        yield open_bench(folder, sizes, torch.device("cuda"), simulated=True)


def facts(arguments: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """What was measured, where, with which versions."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "delta-tune": version("delta-tune"),
        "torch": torch.__version__,
        "CPUs": os.cpu_count(),
        "model": f"{sizes.model}, {sizes.image_size} pixels, batches of {sizes.batch_size}, {sizes.images} photos",
        "minutes": arguments.minutes,
    }
    if arguments.simulate:
        return found | {"GPU": "simulated: the figures mean nothing"}
    properties = torch.cuda.get_device_properties(0)
    return found | {
        "GPU": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
    }


def write(out: Path, result: dict[str, Any]) -> None:
    """Write the JSON and the page, whole."""
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (("gpu.json", json.dumps(result, indent=1) + "\n"), ("gpu.md", page(result))):
        partial_file = out / f"{name}.partial"
        partial_file.write_text(text, encoding="utf-8")
        partial_file.replace(out / name)


def arguments_of(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", nargs="+", choices=[part.name for part in PARTS], metavar="NAME")
    parser.add_argument("--minutes", type=float, default=6.0, help="how long to repeat and when to stop starting (6)")
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark"), help="folder of gpu.json and gpu.md")
    parser.add_argument("--model", help=f"NAME of torchvision.models or timm:NAME ({FULL.model})")
    parser.add_argument("--image-size", type=int, help=f"in pixels ({FULL.image_size})")
    parser.add_argument("--batch-size", type=int, help=f"images a step ({FULL.batch_size})")
    parser.add_argument("--images", type=int, help=f"photos for training ({FULL.images})")
    parser.add_argument("--simulate", action="store_true", help="on a simulated GPU, in tiny sizes")
    arguments = parser.parse_args(words)
    if not arguments.simulate and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --simulate shows that this program works, and measures nothing")
    return arguments


def main(words: Sequence[str] | None = None) -> int:
    """Run the sections; 1 if one failed, else 0."""
    arguments = arguments_of(words)
    given = {name: getattr(arguments, name) for name in ("model", "image_size", "batch_size", "images")}
    given = {name: value for name, value in given.items() if value is not None}
    sizes = dataclasses.replace(TINY if arguments.simulate else FULL, **given)
    chosen = [part for part in PARTS if arguments.sections is None or part.name in arguments.sections]
    parts = [part for part in chosen if part.simulates or not arguments.simulate]
    skipped = [
        Section(name=part.name, state="not run", notes=["It needs a real GPU."]) for part in chosen if part not in parts
    ]
    result: dict[str, Any] = {
        "format": 1,
        "facts": facts(arguments, sizes),
        "sections": [dataclasses.asdict(section) for section in skipped],
    }
    start = time.monotonic()
    opener = opened_in_simulation if arguments.simulate else opened
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(ends=start + 60 * arguments.minutes)
        for section in run_parts(parts, partial(opener, Path(folder), sizes), limits):
            print(f"{section.name}: {section.state}, {section.seconds:.1f} s", file=sys.stderr, flush=True)
            result["sections"].append(dataclasses.asdict(section))
            result["facts"]["seconds"] = time.monotonic() - start
            write(arguments.out, result)
    print(page(result), end="")
    return int(any(section["state"] == "failed" for section in result["sections"]))


if __name__ == "__main__":
    sys.exit(main())
