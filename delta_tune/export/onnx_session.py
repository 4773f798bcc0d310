"""Open an ONNX file. Without onnx: who has no such package is told so in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def open_session(source: Path | bytes, threads: int = 0, *, as_written: bool = False) -> Any:
    """An onnxruntime.InferenceSession of a file, or of one in memory, on the CPU.

    Args:
        source: the file, or its content.
        threads: that compute; 0 is one a core.
        as_written: whether each operator runs as the file has it; an optimised graph does not have all tensors.

    Raises:
        RuntimeError: onnxruntime cannot run it. Its own exceptions have no public name.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors: an onnxruntime newer than the file warns of what it does not use
    options.intra_op_num_threads = threads
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = str(source) if isinstance(source, Path) else source
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # see above
        raise RuntimeError(f"onnxruntime cannot run it: {error}") from error
