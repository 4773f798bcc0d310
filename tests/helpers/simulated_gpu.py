"""A simulated GPU: the real code with real numbers, where memory is tagged as being "on the device".

    with simulated_gpu("cuda") as gpu:
        run_trial(task, config, device="cuda")
    assert not gpu.waits

A tensor is on the device if its storage was made there or copied there. `_PythonCalls` answers what Python asks
(`tensor.device`, `tensor.to`), `_Operators` sees each operator, forward and backward: it carries the tag on, refuses
operands on two devices as CUDA does, and counts launches, bytes and places where the host waits for the device.
Autocast is the CPU's, so half precision is emulated too.

It cannot see wrong kernels, memory, time and streams, nor what other threads compute: the modes are per thread.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import delta_tune

Kind = Literal["cuda", "mps", "xpu"]

_CPU = torch.device("cpu")
_ROOT = Path(delta_tune.__file__).parent.parent
_OURS = (f"{_ROOT}/delta_tune/", f"{_ROOT}/benchmarks/")
_OPTIM = f"{Path(torch.__file__).parent}/optim/"
_TENSORS_A_LAUNCH = 30  # of a foreach or fused operator, about

_VIEWS = {
    *("detach", "alias", "view", "_unsafe_view", "_reshape_alias", "as_strided", "lift_fresh", "permute", "t"),
    *(
        "transpose",
        "slice",
        "select",
        "unsqueeze",
        "squeeze",
        "expand",
        "split",
        "split_with_sizes",
        "unbind",
        "unfold",
    ),
}
_COPIES = {"copy_", "_to_copy"}
_INDEXING = {"index", "index_put_", "index_put", "_index_put_impl_"}  # these take indices on the CPU, and wait for them
_READ_BY_THE_HOST = {
    *("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "equal", "allclose", "bincount"),
    *("repeat_interleave", "_unique2", "unique_dim", "unique_consecutive"),
}
_NO_FLOAT64 = {"mps", "xpu"}  # of Intel's, the Arc cards
_DEVICE_GETTERS = {
    Tensor.is_cuda.__get__: "cuda",
    Tensor.is_mps.__get__: "mps",
    Tensor.is_xpu.__get__: "xpu",
    Tensor.is_cpu.__get__: "cpu",
}


class Call(NamedTuple):
    """An operator, and the line of ours that asked for it."""

    line: str
    """`delta_tune/training/trial.py:283`, with ` via sgd.py:120` if torch.optim did on our behalf; `?` if none."""
    operator: str


def by_line(calls: Counter[Call]) -> Counter[str]:
    """The same counts for each line."""
    return _sums((call.line, count) for call, count in calls.items())


def by_operator(calls: Counter[Call]) -> Counter[str]:
    """The same counts for each operator."""
    return _sums((call.operator, count) for call, count in calls.items())


class SimulatedGPU:
    """The device, and what was seen on it since the last `clear`.

    Attributes:
        waits: times that the host waited for the device: blocking copies, `item()`, `synchronize()`.
        launches: kernels, counted as operators that compute; a foreach operator is one for each 30 tensors.
        bytes: bytes that operators read and wrote on the device.
        bytes_copied: bytes that were copied from the host or to it.
    """

    def __init__(self, kind: Kind, *, tf32: bool = False) -> None:
        self.device = torch.device(kind, 0)
        self.tf32 = tf32
        self._tagged: dict[int, StorageWeakRef] = {}
        self._pinned: dict[int, StorageWeakRef] = {}
        self._python_asks = False
        self.clear()

    def clear(self) -> None:
        """Forget what was counted."""
        self.waits, self.launches = Counter[Call](), Counter[Call]()
        self.bytes, self.bytes_copied = Counter[Call](), Counter[Call]()

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is on the device."""
        return _among(self._tagged, tensor)

    def _tag(self, tensor: Tensor) -> None:
        reference = StorageWeakRef(tensor.untyped_storage())
        self._tagged[reference.cdata] = reference

    def _pin(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        reference = StorageWeakRef(copy.untyped_storage())
        self._pinned[reference.cdata] = reference
        return copy

    def _device_of(self, tensor: Tensor) -> torch.device:
        return self.device if self.holds(tensor) else _CPU

    def _is_named_by(self, device: Any) -> bool:
        return device is not None and torch.device(device).type == self.device.type

    def _wait(self, operator: str) -> None:
        self.waits[Call(_line(), operator)] += 1


@contextmanager
def simulated_gpu(
    kind: Kind = "cuda", *, bfloat16: bool = True, tf32: bool = False, memory: int = 80 * 2**30
) -> Iterator[SimulatedGPU]:
    """Simulate a GPU in this thread while the block runs.

    Give the block a Task of its own: the networks that a Task keeps are tagged in the block only.

    Args:
        kind: type of the device.
        bfloat16: whether the hardware computes in it; if not it is emulated, as on a T4.
        tf32: round what enters float32 convolutions as Ampere and later do, unless torch is told not to.
        memory: bytes.
    """
    gpu = SimulatedGPU(kind, tf32=tf32)
    with ExitStack() as stack:
        for place, name, replacement in _replacements(gpu, bfloat16, memory):
            if hasattr(place, name):
                stack.enter_context(mock.patch.object(place, name, replacement))
        stack.enter_context(_Operators(gpu))
        stack.enter_context(_PythonCalls(gpu))
        yield gpu


def _replacements(gpu: SimulatedGPU, bfloat16: bool, memory: int) -> Iterator[tuple[Any, str, Any]]:
    """Functions of torch that ask the driver or C++, with what they are on the simulated device."""
    module, autocast, load = torch.get_device_module(gpu.device.type), torch.autocast, torch.load
    group = torch._C._group_tensors_by_device_and_dtype

    def load_to_device(file: Any, map_location: Any = None, **options: Any) -> Any:
        content = load(file, map_location="cpu", **options)
        return tree_map(lambda x: x.to(map_location) if isinstance(x, Tensor) else x, content)

    def group_by_device(*args: Any, **kwargs: Any) -> dict[Any, Any]:  # C++ takes all for the CPU's
        groups = group(*args, **kwargs).items()
        return {(gpu._device_of(next(t for t in v[0][0] if t is not None)), k[1]): v for k, v in groups}

    properties = mock.Mock(total_memory=memory, major=8 if bfloat16 else 7, minor=0)
    yield from (
        (torch, "autocast", lambda _, *args, **kwargs: autocast("cpu", *args, **kwargs)),
        (torch, "load", load_to_device),
        (torch._C, "_group_tensors_by_device_and_dtype", group_by_device),
        (
            Tensor,
            "pin_memory",
            lambda tensor: gpu._pin(tensor),
        ),  # of the class, because readers pin in threads of their own
        (Tensor, "is_pinned", lambda tensor: _among(gpu._pinned, tensor)),
        (torch.accelerator, "current_stream", lambda *_: mock.Mock(is_capturing=lambda: False)),
        (module, "synchronize", lambda *_: gpu._wait("synchronize")),
        (module, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation),
    )
    answers = {
        **{"is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": properties},
        **{"_lazy_init": None, "empty_cache": None, "set_per_process_memory_fraction": None},
        **{"get_rng_state": None, "set_rng_state": None},
    }
    for name, answer in answers.items():
        yield module, name, lambda *_, answer=answer: answer


class _Operators(TorchDispatchMode):
    """Sees every operator, below autograd and autocast."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        gpu, kwargs, name = self._gpu, dict(kwargs or {}), func._schema.name.split("::")[1]
        operands = [*_tensors(args), *_tensors(kwargs.values())]
        there = [x for x in operands if gpu.holds(x)]
        here = [x for x in operands if not gpu.holds(x)]
        result_there = gpu.holds(args[0]) if name == "copy_" else bool(there)
        asked = kwargs.get("device")
        if gpu._is_named_by(asked):
            kwargs["device"], result_there = _CPU, True
        elif asked is not None and gpu._python_asks:  # autograd asks for the CPU too, where C++ takes all to be
            result_there = False
        if there and any(x.dim() for x in here) and name not in _COPIES | _INDEXING:
            found = ", ".join(f"{tuple(x.shape)} on {gpu._device_of(x)}" for x in operands)
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {found} at {_line()}")
        copied = self._copied(name, operands, result_there)
        waits = self._waits(name, args, kwargs, there, copied)
        kwargs.pop("pin_memory", None)
        if gpu.tf32 and there and name.startswith("conv") and torch.backends.cudnn.conv.fp32_precision == "tf32":
            args = tree_map(_rounded_to_tf32, args)
        result = func(*args, **kwargs)
        made = list(_tensors([result]))
        if result_there:
            self._take(name, made)
        if not (there or result_there):
            return result
        call = Call(_line(), name)
        if copied:
            gpu.bytes_copied[call] += sum(x.nbytes for x in made)
        if waits:
            gpu.waits[call] += 1
        if name not in _VIEWS and not name.startswith("empty"):
            in_lists = name.startswith(("_foreach", "_fused", "_amp_foreach"))
            gpu.launches[call] += -(-len(args[0]) // _TENSORS_A_LAUNCH) if in_lists else 1
            gpu.bytes[call] += sum(x.nbytes for x in (*there, *made))
        return result

    def _take(self, name: str, made: list[Tensor]) -> None:
        kind = self._gpu.device.type
        if kind in _NO_FLOAT64 and any(x.dtype == torch.float64 for x in made):
            raise TypeError(f"{name} makes float64, which {kind} has not, at {_line()}")
        for each in made:
            self._gpu._tag(each)

    def _copied(self, name: str, operands: list[Tensor], result_there: bool) -> bool:
        """Whether the operator copies between host and device."""
        if name in _COPIES:
            return self._gpu.holds(operands[-1]) != result_there
        return name in _INDEXING and len({self._gpu.holds(x) for x in operands}) > 1

    def _waits(self, name: str, args: Any, kwargs: dict[str, Any], there: list[Tensor], copied: bool) -> bool:
        if name in _INDEXING and there:
            return copied or any(x.dtype in (torch.bool, torch.uint8) for x in args[1] if x is not None)
        if copied:
            asynchronous = kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,))
            source = args[1] if name == "copy_" else args[0]
            return not asynchronous or not (self._gpu.holds(source) or source.is_pinned())
        return name in _READ_BY_THE_HOST and bool(there)


class _PythonCalls(TorchFunctionMode):
    """Answers what Python asks about a tensor's device."""

    def __init__(self, gpu: SimulatedGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, gpu = kwargs or {}, self._gpu
        if getattr(func, "__name__", "") == "__get__":
            if func == Tensor.device.__get__:
                return gpu._device_of(args[0])
            if (asked := _DEVICE_GETTERS.get(func)) is not None:
                return gpu._device_of(args[0]).type == asked
        if func in (Tensor.numpy, Tensor.__array__) and gpu.holds(args[0]):
            raise TypeError(f"can't convert {gpu.device} device type tensor to numpy at {_line()}")
        if func is Tensor.tolist and gpu.holds(args[0]):
            gpu._wait("tolist")
        if func is Tensor.cpu:
            return self._to(args[0], _CPU)
        if func is Tensor.cuda:
            return self._to(args[0], gpu.device)
        if func is Tensor.to:
            return self._to(*args, **kwargs)
        if gpu._is_named_by(device := kwargs.get("device")):
            if func in (torch.tensor, torch.as_tensor, torch.asarray):
                return self._to(func(*args, **{**kwargs, "device": None}), device)
            kwargs = {**kwargs, "device": gpu.device}
        return func(*args, **kwargs)

    def _to(self, tensor: Tensor, *args: Any, memory_format: Any = None, copy: bool = False, **kwargs: Any) -> Tensor:
        gpu = self._gpu
        if args and isinstance(args[0], Tensor):
            args = (gpu._device_of(args[0]), args[0].dtype)
        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
        before = gpu._device_of(tensor)
        device = before if device is None else gpu.device if gpu._is_named_by(device) else device
        laid_out = memory_format in (None, torch.preserve_format) or tensor.is_contiguous(memory_format=memory_format)
        if device == before and dtype in (None, tensor.dtype) and laid_out and not copy:
            return tensor
        how = {"dtype": dtype, "device": device, "non_blocking": non_blocking, "memory_format": memory_format}
        gpu._python_asks = True
        try:
            result: Tensor = torch.ops.aten._to_copy.default(tensor, **how)
        finally:
            gpu._python_asks = False
        return result


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _among(storages: dict[int, StorageWeakRef], tensor: Tensor) -> bool:
    if tensor.layout is not torch.strided:  # oneDNN's packed weights have no storage
        return False
    reference = storages.get(tensor.untyped_storage()._cdata)
    return reference is not None and not reference.expired()


def _rounded_to_tf32(x: Any) -> Any:
    """A float32 tensor with 10 bits of mantissa instead of 23."""
    if not isinstance(x, Tensor) or x.dtype != torch.float32:
        return x
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


def _sums(pairs: Iterable[tuple[str, int]]) -> Counter[str]:
    sums = Counter[str]()
    for key, count in pairs:
        sums[key] += count
    return sums


def _line() -> str:
    """The innermost line of ours on the stack, with torch.optim's if it stands between."""
    frame, via = sys._getframe(1), ""
    while frame is not None:
        place = _place(frame.f_code.co_filename)
        if place is not None and place.startswith("via "):
            via = via or f" {place}:{frame.f_lineno}"
        elif place is not None:
            return f"{place}:{frame.f_lineno}{via}"
        frame = frame.f_back
    return via.strip() or "?"


@cache
def _place(file: str) -> str | None:
    if file.startswith(_OURS):
        return str(Path(file).relative_to(_ROOT))
    return f"via {Path(file).name}" if file.startswith(_OPTIM) else None
