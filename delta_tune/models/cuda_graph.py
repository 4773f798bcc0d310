"""A frozen network's forward pass as one CUDA graph: one launch instead of hundreds."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

Forward = Callable[[Tensor], Mapping[str, Tensor]]

_log = logging.getLogger(__name__)
_TOLERANCE = 1e-2
"""Largest distance of a replay from the plain pass, as a fraction of the result: some roundings of bfloat16."""


class Captured(NamedTuple):
    """A captured forward pass: fill `images`, call `replay`, read `maps`."""

    images: Tensor
    replay: Callable[[], None]
    maps: Mapping[str, Tensor]


class GraphedForward:
    """One forward pass, given at each call, that is replayed as a CUDA graph for batches of the first one's shape.

    The second such batch captures it; other numbers of images and other devices run the plain pass. Images of another
    height or width begin anew. So does everything if the
    network cannot be captured, or if the first replay differs from the plain pass. What is returned lies in the graph's
    memory: the next call overwrites it.
    """

    def __init__(self) -> None:
        self._shape: torch.Size | None = None
        self._captured: Captured | None = None
        self._refused = False

    def __call__(self, forward: Forward, images: Tensor) -> Mapping[str, Tensor]:
        """The maps of the images (B, 3, H, W).

        `forward` must compute the same at each call. The caller sets the grad mode, which must be off, and autocast.
        """
        if self._shape is not None and self._shape[2:] != images.shape[2:]:
            self._shape = self._captured = None
        if self._refused or images.device.type != "cuda" or self._shape not in (None, images.shape):
            return forward(images)
        if self._shape is None:
            self._shape = images.shape
            return forward(images)
        if self._captured is None:
            return self._captured_now(forward, images)
        self._captured.images.copy_(images)
        self._captured.replay()
        return self._captured.maps

    def _captured_now(self, forward: Forward, images: Tensor) -> Mapping[str, Tensor]:
        expected = forward(images)
        try:
            captured = capture_graph(forward, images)
            captured.replay()
            same = all(_close(captured.maps[layer], expected[layer]) for layer in expected)
            reason = None if same else "the first replay differs from the plain forward pass"
        except RuntimeError as error:  # a network that waits for the GPU, one that does not fit into memory twice, …
            reason = str(error).partition("\n")[0]
        if reason is None:
            self._captured = captured
        else:
            self._refused = True
            _log.warning("The source's forward pass runs without a CUDA graph: %s.", reason.rstrip("."))
        return expected


def capture_graph(forward: Forward, images: Tensor) -> Captured:
    """Capture the forward pass of these images on the current CUDA device.

    Raises:
        RuntimeError: it cannot be captured.
    """
    stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
    fixed = images.clone()
    stream.wait_stream(torch.cuda.current_stream(images.device))
    with torch.cuda.stream(stream):  # libraries set themselves up at the first call on a stream
        forward(fixed)
    torch.cuda.current_stream(images.device).wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # thread_local: the thread that reads batches pins memory meanwhile, which other modes forbid
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        maps = forward(fixed)
    return Captured(fixed, graph.replay, maps)


def _close(found: Tensor, expected: Tensor) -> bool:
    difference, scale = (found.float() - expected.float()).norm(), expected.float().norm()
    return bool(difference <= _TOLERANCE * scale)  # False for NaN
