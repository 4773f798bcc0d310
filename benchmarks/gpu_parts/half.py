"""The precision that the GPU trains in, and the other one: float16 with scaling as a T4 trains, bfloat16 as an A100."""

from __future__ import annotations

import math
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest import mock

import torch

from delta_tune.models.devices import half_precision
from delta_tune.training.trial import run_trial
from gpu_parts.agreement import TRIAL_TOLERANCE, in_float32, losses_of
from gpu_parts.bench import Bench, made_up_attention, unbuilt
from gpu_parts.record import Section


def precisions(bench: Bench, section: Section) -> None:
    """DELTA in bfloat16, float16 and float32 on the device; and a run that moves between the two halves of it."""
    # A fitted head on made-up photos is at its minimum: where float16 leaves out a step, it goes another way
    config = bench.config("delta", max_epochs=8, head_start="random", head_lr_multiplier=10.0)
    task = bench.few.on(bench.few.dataset)
    made_up_attention(task)
    task.measurements.measure([config], bench.device)
    chosen = half_precision(bench.device)
    section.notes.append(f"This GPU trains in {chosen}.")
    if not bench.simulated:
        capability = torch.cuda.get_device_capability(bench.device)
        expected = torch.bfloat16 if capability >= (8, 0) else torch.float16
        section.check(chosen == expected, f"a GPU of capability {capability} must train in {expected}, not in {chosen}")
    losses: dict[str, dict[str, float]] = {}
    for name in ("float32", "float16", "bfloat16"):
        if name == "bfloat16" and chosen == torch.float16:
            continue  # emulated
        with ExitStack() as stack:
            stack.enter_context(in_float32() if name == "float32" else has_bfloat16(name == "bfloat16"))
            result = run_trial(unbuilt(task), config, device=bench.device)
        losses[name] = losses_of(result)
        section.row(precision=name, **losses[name], last_epoch_s=result.epochs[-1]["seconds"])
        for what, loss in losses[name].items():
            expected_loss = losses["float32"][what]
            off = abs(loss - expected_loss) / abs(expected_loss)
            # The scale of float16 starts too large, and steps are left out until it fits: four were too few on an H200
            section.check(
                off <= (3 if name == "float16" else 1) * TRIAL_TOLERANCE,
                f"{name}: {what} is {loss:.4g}, in float32 {expected_loss:.4g}",
            )
    if chosen == torch.bfloat16:
        for one, other in (("bfloat16", "float16"), ("float16", "bfloat16")):
            moved = _moved(bench, one, other)
            section.row(precision=f"{one}, then {other}", train_loss=moved)
            section.check(math.isfinite(moved), f"a run that moves from {one} to {other} has the loss {moved}")


def has_bfloat16(answer: bool) -> mock._patch:  # type: ignore[type-arg]
    """What the GPU says of bfloat16 while the block runs; without it, trials train in float16 with scaling."""
    return mock.patch("torch.cuda.is_bf16_supported", return_value=answer)


def _moved(bench: Bench, one: str, other: str) -> float:
    """The last training loss of a run whose first epoch is in one precision and whose second is in the other."""
    config = bench.config("l2", max_epochs=2)

    class Preempted(Exception):
        pass

    def preempt(row: object) -> None:
        raise Preempted

    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        with has_bfloat16(one == "bfloat16"), suppress(Preempted):
            run_trial(bench.few, config, preempt, device=bench.device, checkpoint=place)
        with has_bfloat16(other == "bfloat16"):
            result = run_trial(bench.few, config, device=bench.device, checkpoint=place)
    return losses_of(result)["train_loss"]
