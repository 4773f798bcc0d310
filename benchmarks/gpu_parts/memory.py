"""Whether the GPU's memory can be capped, and what a trial that needs more meets and leaves."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch

from delta_tune.cluster.gpu_sharing import heaviest_config, measure_footprint, trials_per_gpu
from delta_tune.training.trial import run_trial
from gpu_parts.agreement import losses_of
from gpu_parts.bench import Bench
from gpu_parts.record import Section

GIB = 2**30


def caps(bench: Bench, section: Section) -> None:
    """A cap of a tenth holds; a trial above its cap raises OutOfMemoryError; the next one runs, in as much memory."""
    total = torch.cuda.get_device_properties(bench.device).total_memory
    _set_cap(0.1)
    try:
        torch.empty(int(0.2 * total), dtype=torch.uint8, device=bench.device)
        section.fail("a process got twice the memory of its cap")
    except torch.cuda.OutOfMemoryError:
        section.notes.append("A cap of a tenth of the memory holds.")
    finally:
        _set_cap(1.0)
    config = bench.config("delta_uniform", behavior_scale="raw", max_epochs=1)
    before = _run(bench, config)
    section.row(trial="before", peak_GiB=before[1] / GIB, train_loss=before[0])
    _set_cap(before[1] / total / 3)
    try:
        run_trial(bench.few, config, device=bench.device)
        section.fail("a trial ran in a third of the memory that it takes")
    except torch.cuda.OutOfMemoryError as error:
        section.row(trial="under a cap of a third", error=type(error).__name__)
    except RuntimeError as error:  # whatever the libraries say when they get no memory
        section.row(trial="under a cap of a third", error=f"{type(error).__name__}: {error}")
    finally:
        _set_cap(1.0)
    after = _run(bench, config)
    section.row(trial="after", peak_GiB=after[1] / GIB, train_loss=after[0])
    section.check(after[1] <= 1.1 * before[1], "a trial after one that ran out of memory takes more than before")
    off = abs(after[0] - before[0]) / abs(before[0])
    section.check(
        off < 0.02, f"a trial after one that ran out of memory has the loss {after[0]:.4g}, not {before[0]:.4g}"
    )


def footprint(bench: Bench, section: Section) -> None:
    """What `--gpus-per-trial auto` measures, and how many trials it lets share this GPU, by batch size."""
    for batch_size in (8, bench.sizes.batch_size, 4 * bench.sizes.batch_size):
        config = replace(bench.config("delta"), batch_size=batch_size)
        found = measure_footprint(bench.task, heaviest_config([config]))
        section.row(
            batch_size=batch_size,
            peak_GiB=found.peak / GIB,
            of_GiB=found.total / GIB,
            busy=found.busy,
            images_per_s=found.images_per_second,
            trials_that_share=trials_per_gpu(found, cpus_per_gpu=torch.get_num_threads(), cpus_per_trial=1),
        )
        section.check(0 < found.peak < found.total, f"batches of {batch_size}: the peak is {found.peak} bytes")


def _run(bench: Bench, config: object) -> tuple[float, int]:
    """The training loss of a trial and the peak of memory in bytes."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(bench.device)
    result = run_trial(bench.few, config, device=bench.device)  # type: ignore[arg-type]
    return losses_of(result)["train_loss"], torch.cuda.max_memory_reserved(bench.device)


def _set_cap(fraction: float) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(fraction)
