"""Check that every node of the cluster can write to the results folder, where trials save their checkpoints."""

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

ANSWER_TIMEOUT_S = 60.0
"""A node that has not answered by then is named, not waited for: it may still be starting its first worker."""


def check_shared_folder(out: str | Path, say: Callable[[str], None]) -> None:
    """Put a marker file into `out` and ask every node whether it sees it; this node is asked only for addresses.

    Raises:
        UserError: a node does not see `out`, or cannot write there.
    """
    remote = is_uri(out)
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    asked = {node: f"{name} ({node[:8]})" for node, name in nodes.items() if remote or node != here}
    if not asked:
        return
    with temporary_marker(str(out)) if remote else _marker(Path(out)) as marker:
        answers = {_look(node, to_pyarrow_uri(marker) if remote else marker): name for node, name in asked.items()}
        ready, silent = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_TIMEOUT_S)
        for answer in ready:
            try:
                fault = ray.get(answer)
            except RayError:  # the node or its worker is lost: trials will run elsewhere
                silent.append(answer)
                continue
            if fault and remote:
                raise UserError(
                    f"--out {out} cannot be used from node {answers[answer]} ({fault}), but trials there save their "
                    f"checkpoints in it; give every node access, by its role or in the environment of `ray start`."
                )
            if fault:
                raise UserError(
                    f"--out {out} {fault} node {answers[answer]}, but trials there save their checkpoints in it; give "
                    f"a folder that all {len(nodes)} nodes of the cluster share (NFS, EFS, Filestore …), or s3://…."
                )
    if silent:
        which = ", ".join(answers[answer] for answer in silent)
        say(f"No answer within {ANSWER_TIMEOUT_S:.0f} s: could not check that {out} is visible on node {which}.")


def _look(node: str, marker: str) -> Any:
    """An object reference to what is wrong with `marker` on `node`; `""` if nothing is."""

    def look(file: str) -> str:  # Ray pickles inner functions by value: the node needs no code of ours
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
    """A marker file in `out` while the block runs; folders created for it are removed again."""
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
        with suppress(OSError):  # another study has started in it
            for folder in new:
                folder.rmdir()
