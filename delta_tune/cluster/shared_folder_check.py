"""Whether every node of the cluster sees the results folder, where trials leave what they are continued from."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from pyarrow import fs
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from delta_tune.config import UserError
from delta_tune.filesystem.uris import is_uri, to_pyarrow_uri
from delta_tune.results.mirror import temporary_marker

PATIENCE_S = 60.0
"""A node that has not answered by then is named and not waited for: it may still be starting its first worker."""


def check_shared_folder(out: str | Path, say: Callable[[str], None]) -> None:
    """Ask every node for a file that is laid into `out` meanwhile. For a folder this one needs not be asked.

    Raises:
        UserError: a node does not see it, or may not write there.
    """
    remote = is_uri(out)
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    asked = {node: f"{name} ({node[:8]})" for node, name in nodes.items() if remote or node != here}
    if not asked:
        return
    with temporary_marker(str(out)) if remote else _marker(Path(out)) as marker:
        answers = {_look(node, to_pyarrow_uri(marker) if remote else marker): name for node, name in asked.items()}
        ready, silent = ray.wait(list(answers), num_returns=len(answers), timeout=PATIENCE_S)
        for answer in ready:
            try:
                fault = ray.get(answer)
            except RayError:  # the node is lost, or its worker was: trials will go elsewhere
                silent.append(answer)
                continue
            if fault and remote:
                raise UserError(
                    f"--out {out} cannot be used from node {answers[answer]} ({fault}), and trials there leave their "
                    f"checkpoints in it; give every node access, by its role or in the environment of `ray start`."
                )
            if fault:
                raise UserError(
                    f"--out {out} {fault} node {answers[answer]}, and trials there leave their checkpoints in it; give "
                    f"a folder that all {len(nodes)} nodes of the cluster share (NFS, EFS, Filestore …), or s3://…."
                )
    if silent:
        which = ", ".join(answers[answer] for answer in silent)
        say(f"Not known to see {out}, for want of an answer in {PATIENCE_S:.0f} s: node {which}.")


def _look(node: str, marker: str) -> Any:
    """A reference to what is wrong with `marker` on that node, `""` where nothing is."""

    def look(file: str) -> str:  # Ray sends the text of an inner function: the node needs nothing of ours for it
        if not os.path.exists(file):
            return "is not seen by"
        return "" if os.access(os.path.dirname(file), os.W_OK) else "cannot be written to from"

    def look_there(address: str) -> str:
        try:
            filesystem, path = fs.FileSystem.from_uri(address)
            with filesystem.open_input_file(path) as file, filesystem.open_output_stream(f"{path}-{node}") as copy:
                copy.write(file.read())
            filesystem.delete_file(f"{path}-{node}")
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    pinned = NodeAffinitySchedulingStrategy(node_id=node, soft=False)
    return (
        ray.remote(num_cpus=0, max_retries=0)(look_there if is_uri(marker) else look)
        .options(scheduling_strategy=pinned)
        .remote(marker)
    )


@contextmanager
def _marker(out: Path) -> Iterator[str]:
    """A file in `out` for a while; of folders that had to be made for it nothing stays."""
    new = [folder for folder in (out, *out.parents) if not folder.exists()]
    marker = out / f".marker-{uuid.uuid4().hex}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written to ({error.strerror}); give another --out.") from error
    try:
        yield str(marker)
    finally:
        marker.unlink(missing_ok=True)
        with suppress(OSError):  # another study has begun in it
            for folder in new:
                folder.rmdir()
