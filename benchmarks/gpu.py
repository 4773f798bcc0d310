"""All that only a GPU can tell: whether the CUDA paths work, and what each of them is worth.

    python benchmarks/gpu.py [--model NAME --weights FILE --image-size PIXELS] [--json FILE]

Checks come first: a trial on the GPU agrees with the same one on the CPU, a capped process gets an out-of-memory error
and no more memory, a compiled trial agrees with a plain one. Then figures, each against its alternative in turns:
autocast, channels_last, torch.compile, pinned copies, the source's maps recomputed against fetched from the host, and
trials a minute with 1, 2, 4 … of them on the GPU beside what `--gpus-per-trial auto` chooses.

`--device cpu` runs what can run without one: that is how this program is kept working where there is none.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

import delta_tune
from delta_tune.cluster.gpu_sharing import gpu_share, heaviest_config, measure_footprint, trials_per_gpu
from delta_tune.config import TrialConfig
from delta_tune.models.backbones import build_target
from delta_tune.models.devices import autocast, to_device
from delta_tune.models.feature_maps import feature_maps
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

TURNS = 5
figures: dict[str, Any] = {}


def say(what: str, **values: float | str) -> None:
    """A line for the reader and the same for `--json`."""
    figures[what] = values
    shown = ", ".join(
        f"{k.replace('_', ' ')} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in values.items()
    )
    print(f"{what:36s}{shown}", flush=True)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(device: torch.device, ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each way, run in turns after one to warm up."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(TURNS + 1):
        for name, run in ways.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in times.items()}


def check_agreement(task: Task, device: torch.device) -> None:
    config = TrialConfig(regularizer="delta_uniform", batch_size=16, max_epochs=2, augmentation="crop_flip", lr=0.001)
    rows = {name: run_trial(task, config, device=name).epochs[-1] for name in ("cpu", device.type)}
    compiled = run_trial(task, config, device=device, compile_with="inductor" if device.type == "cuda" else "eager")
    losses = {name: row["val_loss"] for name, row in rows.items()}
    say("validation loss of one trial", **losses, compiled=compiled.epochs[-1]["val_loss"])
    assert abs(losses[device.type] - losses["cpu"]) < 0.1 * losses["cpu"], "the GPU learns something else"
    assert abs(compiled.epochs[-1]["val_loss"] - losses[device.type]) < 0.1 * losses["cpu"], "so does compiled code"


def check_memory_cap() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(0.1)
    try:
        torch.empty(int(0.2 * total), dtype=torch.uint8, device="cuda")
    except torch.cuda.OutOfMemoryError:
        say("memory cap of a tenth", holds="yes")
    else:
        raise AssertionError("a process got more memory than its cap")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def compare_steps(task: Task, device: torch.device, batch_size: int) -> None:
    """A training step of the target as the trainer does it, and without one thing or the other."""
    size = task.backbone.preprocessing.image_size
    images = torch.rand(batch_size, 3, size, size, device=device)
    labels = torch.zeros(batch_size, dtype=torch.long, device=device)

    def step_of(*, half: bool = True, last: bool = True, compiled: bool = False) -> Callable[[], None]:
        model = build_target(task.backbone, len(task.dataset.classes), torch.Generator().manual_seed(0)).to(device)
        memory_format = torch.channels_last if last else torch.contiguous_format
        model = model.to(memory_format=memory_format)
        inputs = images.contiguous(memory_format=memory_format)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)
        forward: Any = torch.compile(model) if compiled else model

        def step() -> None:
            with autocast(device if half else torch.device("cpu")):
                loss = F.cross_entropy(forward(inputs).float(), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return step

    ways = {"as it is": step_of(), "without autocast": step_of(half=False), "contiguous": step_of(last=False)}
    if device.type == "cuda":
        ways["compiled"] = step_of(compiled=True)
    times = in_turns(device, ways)
    say("a training step, s", **times)


def compare_copies(device: torch.device, batch_size: int, side: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (batch_size, side, side, 3), dtype=np.uint8)
    ways = {"pinned": lambda: to_device(pixels, device), "pageable": lambda: torch.from_numpy(pixels).to(device)}
    say("a batch to the device, s", **in_turns(device, ways))


def compare_source(task: Task, device: torch.device, batch_size: int) -> None:
    """Whether trials on GPUs should share the source's maps as those on CPUs do."""
    layers = task.backbone.layers
    source = task.source_model(device, layers)
    size = task.backbone.preprocessing.image_size
    images = torch.rand(batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)

    def forward() -> dict[str, torch.Tensor]:
        with torch.no_grad(), autocast(device), feature_maps(source, layers, stop=True) as maps:
            return dict(maps.run(images))

    held = {name: each.cpu().numpy() for name, each in forward().items()}
    ways = {"computed": forward, "fetched": lambda: [to_device(each.copy(), device) for each in held.values()]}
    say("the source's maps of a batch, s", **in_turns(device, ways))


def compare_packings(settings: dict[str, Any], epochs: int) -> None:
    def space(trial: Any) -> dict[str, Any]:
        trial.suggest_float("lr", 1e-4, 1e-3, log=True)
        return {"regularizer": "delta_uniform", "behavior_scale": "raw"}

    with tempfile.TemporaryDirectory() as out:
        for sharers in (1, 2, 4, 8):
            start = time.perf_counter()
            result = delta_tune.tune(
                **settings,
                space=space,
                num_trials=2 * sharers,
                max_epochs=epochs,
                grace_period=epochs,
                gpus_per_trial=gpu_share(sharers),
                out=out,
                name=f"shared-by-{sharers}",
                verbose=0,
            )
            rows = pq.read_table(result.path / "trials.parquet").to_pylist()
            began, ended = min(row["began"] for row in rows), max(row["ended"] for row in rows)
            say(
                f"{sharers} trials on the GPU",
                trials_a_minute=60 * len(rows) / (ended - began),
                whole_study_s=time.perf_counter() - start,
                ran_out_of_memory=float(sum(row["out_of_memory"] for row in rows)),
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--data", default="demo")
    parser.add_argument("--model", default="timm:tf_efficientnet_lite0")
    parser.add_argument("--weights", default="demo")
    parser.add_argument("--image-size", type=int, default=None, help="(224, or 64 on a CPU)")
    parser.add_argument("--batch-size", type=int, default=None, help="(64, or 8 on a CPU)")
    parser.add_argument("--json", type=Path, help="write the same figures here")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no GPU here; --device cpu runs what can run without one")
    small = device.type == "cpu"
    size, batch_size = arguments.image_size or (64 if small else 224), arguments.batch_size or (8 if small else 64)
    settings = {"data": arguments.data, "model": arguments.model, "weights": arguments.weights, "image_size": size}
    task = delta_tune.prepare(**settings, train_per_class=2 if small else None)
    name = torch.cuda.get_device_name(0) if device.type == "cuda" else "CPU"
    print(f"torch {torch.__version__} on {name}; {arguments.model} at {size} px, batches of {batch_size}")
    check_agreement(task, device)
    compare_steps(task, device, batch_size)
    compare_copies(device, batch_size, task.backbone.preprocessing.stored_size)
    compare_source(task, device, batch_size)
    if device.type == "cuda":
        check_memory_cap()
        footprint = measure_footprint(task, heaviest_config([TrialConfig(batch_size=batch_size)]))
        print(footprint.sentence)
        chosen = trials_per_gpu(footprint, cpus_per_gpu=torch.get_num_threads(), cpus_per_trial=1)
        say("auto", **dataclasses.asdict(footprint), trials_on_the_gpu=float(chosen))
        compare_packings(settings, epochs=4)
    if arguments.json:
        told = {"torch": torch.__version__, "device": name, "model": arguments.model, "image_size": size}
        arguments.json.write_text(json.dumps(told | {"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
