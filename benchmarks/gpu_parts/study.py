"""A whole study on the GPU: `auto` as its share, and one whose first share is too small for its trials."""

from __future__ import annotations

import tempfile
import time
from typing import Any

import pyarrow.parquet as pq
import torch

import delta_tune
from delta_tune.cluster.gpu_sharing import gpu_share
from gpu_parts.bench import Bench
from gpu_parts.record import Section


def space(trial: Any) -> dict[str, Any]:
    """L2 and DELTA by turns, at learning rates that do no harm."""
    trial.suggest_float("lr", 1e-5, 1e-4, log=True)
    return {"regularizer": trial.suggest_categorical("regularizer", ["l2", "delta_uniform"]), "batch_size": 32}


def studies(bench: Bench, section: Section) -> None:
    """Four trials of two epochs at `auto`, then two whose share of the memory does not hold them at first."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(bench.device).total_memory
    tight = gpu_share(max(2, int(total / 2**30)))  # about the context alone
    for name, share, trials in (("auto", "auto", 4), ("too small a share", tight, 2)):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as out:
            result = delta_tune.tune(
                **bench.settings,
                space=space,
                num_trials=trials,
                max_epochs=2,
                grace_period=2,
                train_per_class=16,
                gpus_per_trial=share,
                cpus_per_trial=1,
                out=out,
                name="study",
                verbose=0,
            )
            rows = pq.read_table(result.path / "trials.parquet").to_pylist()
        section.row(
            study=name,
            seconds=time.perf_counter() - start,
            states=", ".join(sorted({row["state"] for row in rows})),
            first_share=share,
            shares=", ".join(sorted({f"{row['gpus']:g}" for row in rows})),
            out_of_memory=sum(row["out_of_memory"] for row in rows),
        )
        bad = [f"{row['state']}: {row.get('error')}" for row in rows if row["state"] not in ("completed", "pruned")]
        section.check(not bad, f"{name}: {len(bad)} of {len(rows)} trials did not end well ({'; '.join(bad[:1])})")
        section.check(all(row["gpus"] > 0 for row in rows), f"{name}: a trial had no GPU")
        if share == tight:
            again = sum(row["out_of_memory"] for row in rows)
            section.check(again > 0, f"{name}: no trial ran out of memory at a share of {tight:g}")
