"""Whether every node of the cluster sees the results folder, where trials leave what they are continued from."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from delta_tune.config import UserError

PATIENCE_S = 60.0
"""A node that has not answered by then is named and not waited for: it may still be starting its first worker."""


def refuse_unseen(out: Path, say: Callable[[str], None]) -> None:
    """Ask every other node for a file that is laid into `out` meanwhile. A study on one node has nothing to ask.

    Raises:
        UserError: a node does not see it, or may not write there.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    asked = {node: f"{name} ({node[:8]})" for node, name in nodes.items() if node != here}
    if not asked:
        return
    with _marker(out) as marker:
        answers = {_look(node, marker): name for node, name in asked.items()}
        ready, silent = ray.wait(list(answers), num_returns=len(answers), timeout=PATIENCE_S)
        for answer in ready:
            try:
                fault = ray.get(answer)
            except RayError:  # the node is lost, or its worker was: trials will go elsewhere
                silent.append(answer)
                continue
            if fault:
                raise UserError(
                    f"--out {out} {fault} node {answers[answer]}, and trials there leave their checkpoints in it; give "
                    f"a folder that all {len(nodes)} nodes of the cluster share (NFS, EFS, Filestore …)."
                )
    if silent:
        which = ", ".join(answers[answer] for answer in silent)
        say(f"Not known to see {out}, for want of an answer in {PATIENCE_S:.0f} s: node {which}.")


def _look(node: str, marker: Path) -> Any:
    """A reference to what is wrong with `marker` on that node, `""` where nothing is."""

    def look(file: str) -> str:  # Ray sends the text of an inner function: the node needs nothing of ours for it
        if not os.path.exists(file):
            return "is not seen by"
        return "" if os.access(os.path.dirname(file), os.W_OK) else "cannot be written to from"

    pinned = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return ray.remote(num_cpus=0, max_retries=0)(look).options(scheduling_strategy=pinned).remote(str(marker))


@contextmanager
def _marker(out: Path) -> Iterator[Path]:
    """A file in `out` for a while; of folders that had to be made for it nothing stays."""
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    marker = out / f".marker-{uuid.uuid4().hex}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to ({error.strerror}); give another --out.") from error
    try:
        yield marker
    finally:
        marker.unlink(missing_ok=True)
        with suppress(OSError):  # another study has begun in it
            for folder in new:
                folder.rmdir()
