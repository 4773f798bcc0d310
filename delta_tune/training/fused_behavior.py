"""The behaviour term in one kernel a layer each way, written in Triton; `usable` says where.

The plain form in `regularizers` casts, subtracts, squares and sums in kernels of their own, each of which reads and
writes whole maps. Here the forward kernel reads both maps once and the backward kernel once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # comes with torch's wheels for CUDA
    triton = None

Term = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[Tensor]], Tensor]

_log = logging.getLogger(__name__)
_BLOCK = 1024
_PROGRAMS = 1024  # of a layer's forward kernel: more blocks than the largest GPU holds at once
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_checked: dict[tuple[object, ...], bool] = {}

if triton is not None:

    @triton.jit  # type: ignore[untyped-decorator]
    def _forward_kernel(  # type: ignore[no-untyped-def]
        target, source, factor, sums, count, inner, channels, scale, block: tl.constexpr, programs: tl.constexpr
    ):
        program = tl.program_id(0)
        total = tl.zeros([block], dtype=tl.float32)
        for start in range(program * block, count, programs * block):
            at = start + tl.arange(0, block)
            inside = at < count
            t = tl.load(target + at, mask=inside, other=0.0).to(tl.float32)
            s = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
            total += tl.load(factor + (at // inner) % channels) * (t - s) * (t - s)
        tl.store(sums + program, tl.sum(total) * scale)

    @triton.jit  # type: ignore[untyped-decorator]
    def _backward_kernel(  # type: ignore[no-untyped-def]
        grad, target, source, factor, result, count, inner, channels, scale, block: tl.constexpr
    ):
        at = tl.program_id(0) * block + tl.arange(0, block)
        inside = at < count
        t = tl.load(target + at, mask=inside, other=0.0).to(tl.float32)
        s = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
        f = tl.load(factor + (at // inner) % channels)
        tl.store(result + at, 2 * scale * tl.load(grad) * f * (t - s), mask=inside)


_SCHEMA = "(Tensor[] targets, Tensor[] sources, Tensor[] factors) -> Tensor"
_BACKWARD_SCHEMA = "(Tensor grad, Tensor[] targets, Tensor[] sources, Tensor[] factors) -> Tensor[]"


def _on_device(targets: Sequence[Tensor], sources: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    """½ · mean over images of Σ_layers Σ_channels factor_lj · ‖FM_t[j] − FM_s[j]‖² / (H·W), a float32 scalar.

    Args:
        targets: (B, C, H, W) each.
        sources: of the same shapes, types and strides, without gaps in memory.
        factors: (C,) each, float32.
    """
    sums = torch.empty(len(targets), _PROGRAMS, dtype=torch.float32, device=targets[0].device)
    for target, source, factor, own in zip(targets, sources, factors, sums, strict=True):
        layout = target.numel(), _inner(target), target.shape[1], _scale(target)
        _forward_kernel[(_PROGRAMS,)](target, source, factor, own, *layout, block=_BLOCK, programs=_PROGRAMS)
    return sums.sum()


def _backward_on_device(
    grad: Tensor, targets: Sequence[Tensor], sources: Sequence[Tensor], factors: Sequence[Tensor]
) -> list[Tensor]:
    results = [torch.empty_like(target) for target in targets]
    for target, source, factor, result in zip(targets, sources, factors, results, strict=True):
        layout = target.numel(), _inner(target), target.shape[1], _scale(target)
        grid = (triton.cdiv(target.numel(), _BLOCK),)
        _backward_kernel[grid](grad, target, source, factor, result, *layout, block=_BLOCK)
    return results


def _on_cpu(targets: Sequence[Tensor], sources: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    terms = [
        _scale(t) * ((t.float() - s.float()).square().sum((0, 2, 3)) * f).sum()
        for t, s, f in zip(targets, sources, factors, strict=True)
    ]
    return torch.stack(terms).sum()


def _backward_on_cpu(
    grad: Tensor, targets: Sequence[Tensor], sources: Sequence[Tensor], factors: Sequence[Tensor]
) -> list[Tensor]:
    return [
        ((t.float() - s.float()) * (2 * _scale(t) * grad * f).view(1, -1, 1, 1)).to(t.dtype)
        for t, s, f in zip(targets, sources, factors, strict=True)
    ]


# On the CPU for tests and simulated devices: real CPU trials compute the plain form, whose bits must not change
fused_behavior = torch.library.custom_op(
    "delta_tune::behavior", _on_device, mutates_args=(), device_types="cuda", schema=_SCHEMA
)
fused_behavior.register_kernel("cpu", _on_cpu)
_fused_backward = torch.library.custom_op(
    "delta_tune::behavior_backward", _backward_on_device, mutates_args=(), device_types="cuda", schema=_BACKWARD_SCHEMA
)
_fused_backward.register_kernel("cpu", _backward_on_cpu)


def _keep(ctx: Any, inputs: tuple[list[Tensor], list[Tensor], list[Tensor]], output: Tensor) -> None:
    ctx.save_for_backward(*(x for group in inputs for x in group))


def _gradients(ctx: Any, grad: Tensor) -> tuple[list[Tensor], list[None], list[None]]:
    saved = ctx.saved_tensors
    count = len(saved) // 3
    groups = [list(saved[i : i + count]) for i in range(0, len(saved), count)]
    return _fused_backward(grad, *groups), [None] * count, [None] * count


fused_behavior.register_autograd(_gradients, setup_context=_keep)


def usable(targets: Sequence[Tensor], sources: Sequence[Tensor], factors: Sequence[Tensor], plain: Term) -> bool:
    """Whether `fused_behavior` computes this term as `plain` does.

    Asked for maps of a new kind, on a device, it computes both for an image or two and logs a sentence if the kernels
    fail or differ.
    """
    if triton is None or targets[0].device.type != "cuda":
        return False
    for target, source in zip(targets, sources, strict=True):
        same = target.dtype == source.dtype and target.shape == source.shape and target.stride() == source.stride()
        if (
            not same
            or target.dtype not in _DTYPES
            or _inner(target) == 0
            or target.numel() >= 2**31 - _BLOCK * _PROGRAMS
        ):
            return False
    key = (targets[0].device, *((t.dtype, t.shape[1], _inner(t) == 1) for t in targets))
    if key not in _checked:
        reason = _why_not([s[:2] for s in sources], factors, plain)
        _checked[key] = reason is None
        if reason is not None:
            _log.warning("The behaviour term is computed without its Triton kernel: %s.", reason.rstrip("."))
    return _checked[key]


def _why_not(sources: Sequence[Tensor], factors: Sequence[Tensor], plain: Term) -> str | None:
    """Why the kernels cannot be used, found on maps that differ from the source's."""
    results = []
    try:
        for term in (plain, fused_behavior):
            targets = [(0.5 * s + 0.25).requires_grad_() for s in sources]
            with torch.enable_grad():
                value = term(targets, sources, factors)
            results.append([value.detach(), *torch.autograd.grad(3 * value, targets)])
    except (torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # compiling a kernel starts compilers and loads drivers, which may raise anything
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    for expected, found in zip(*results, strict=True):
        difference = (found.float() - expected.float()).norm()
        if not difference <= 1e-2 * expected.float().norm():  # True for NaN too
            return "its result differs from the plain form's"
    return None


def _inner(maps: Tensor) -> int:
    """Elements between one channel and the next in memory: 1 for channels last; 0 if the maps have gaps."""
    if maps.is_contiguous(memory_format=torch.channels_last):
        return 1
    return maps.shape[2] * maps.shape[3] if maps.is_contiguous() else 0


def _scale(maps: Tensor) -> float:
    return 0.5 / (maps.shape[0] * maps.shape[2] * maps.shape[3])
