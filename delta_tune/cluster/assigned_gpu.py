"""The GPU that Ray gave to this process: which it is, and that torch uses it."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

import ray
import torch

NOSET = {
    "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "CUDA_VISIBLE_DEVICES",
    "RAY_EXPERIMENTAL_NOSET_HIP_VISIBLE_DEVICES": "HIP_VISIBLE_DEVICES",
    "RAY_EXPERIMENTAL_NOSET_ZE_AFFINITY_MASK": "ZE_AFFINITY_MASK",
}
"""Variables with which Ray leaves it to its workers to choose their GPUs → the one that chooses."""


def gpus_of_process() -> list[str]:
    """Ray's ids of the GPUs that this worker has; none outside of a worker."""
    return list(map(str, ray.get_gpu_ids())) if ray.is_initialized() else []


def place_in_words() -> str:
    """The node of this process and, if it has a GPU, which."""
    node = f"node {socket.gethostname()}"
    if not (ids := gpus_of_process()):
        return node
    unique = ""
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        with suppress(RuntimeError, AttributeError):
            unique = f" (GPU-{torch.cuda.get_device_properties(0).uuid})"
    return f"GPU {', '.join(ids)}{unique} of {node}"


def use_assigned_gpu() -> None:
    """Make torch use this worker's GPU, repeatably; to be called before anything else is done on it.

    Ray shows a worker its own GPUs alone, except with the variables in `NOSET`: then all workers would use the first.
    """
    torch.backends.cudnn.deterministic = True
    for asked, chooses in NOSET.items():
        if os.environ.get(asked, "").lower() in ("1", "true") and (ids := gpus_of_process()):
            os.environ[chooses] = ",".join(ids)
