"""How fast the server answers beside a bare loop, and whether bad requests harm it.

    python benchmarks/serve_load.py FILE.onnx PHOTOS [--seconds 5] [--rounds 5] [--clients 16] [--threads 2]
    python benchmarks/serve_load.py FILE.onnx PHOTOS --bad 1000

FILE is what `python -m delta_tune export FOLDER --format onnx` wrote, PHOTOS a folder of image files, which are held in
memory. In each round, one after the other so that a busy machine slows all alike, for some seconds each:

- `loop`: one process decodes photos with Pillow as the server does, in T threads, and runs onnxruntime with T threads
  on batches of 8; the faster of two ways: a batch at a time, or each thread a batch of its own from files on.
- `run`: onnxruntime alone on squares that are decoded before, batches of 8.
- `served`: `python -m delta_tune serve` with T threads, asked over loopback by clients in a process of their own, each
  with a connection that is kept, one photo a request, as the body. Requests a second, and the 50th and 99th percentile
  of the time between the first byte sent and the last one received; and the same of one client alone.

The figure is the median over rounds of served / loop; the clients' process works on the same CPUs. Where other programs
take part of them, threads that are many get a larger share; so CPU time an image is told too: the loop's beside the
server's and clients' together.

With `--bad`, bad requests of every kind of `serve_parts/bad.py`, drawn with a fixed seed, by eight clients at once, and
a good request after every tenth, whose answer must be the first one's. It ends with status 1 if the server ends, does
not answer a good one rightly, or its memory grows by more than 256 MiB between the first fifth and the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from serve_parts.bad import send_bad_requests
from serve_parts.bare import bare_rates
from serve_parts.clients import load_in_own_process
from serve_parts.process import running

PHOTOS = 256
"""At most; the clients take turns with them."""


def photos_in(folder: Path) -> list[bytes]:
    """Up to 256 files, spread over the whole folder."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not files:
        raise SystemExit(f"There are no photos in {folder}.")
    return [file.read_bytes() for file in files[:: max(1, len(files) // PHOTOS)][:PHOTOS]]


def compare(given: argparse.Namespace, photos: list[bytes]) -> list[dict[str, float]]:
    """A row a round."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(given.rounds):
            row: dict[str, float] = bare_rates(given.file, photos, given.threads, given.seconds)
            flags = ["--threads", str(given.threads), *given.flag]
            with running(given.file, flags, Path(folder) / "log") as server:
                for clients, prefix in ((given.clients, "served"), (1, "alone")):
                    used = server.cpu_s()
                    load = load_in_own_process(server.port, photos, clients, given.seconds)
                    load["cpu_ms"] = 1000 * (server.cpu_s() - used) / load["requests"]
                    row |= {f"{prefix}_{name}": value for name, value in load.items()}
                row["memory_mib"] = server.memory_mib()
            row["of_loop"] = row["served_rate"] / row["loop_rate"]
            row["of_loop_cpu"] = row["loop_cpu_ms"] / (row["served_cpu_ms"] + row["served_client_cpu_ms"])
            row["of_run"] = row["served_rate"] / row["run_rate"]
            rows.append(row)
            print(f"round {number + 1}: " + ", ".join(f"{name} {value:.4g}" for name, value in row.items()), flush=True)
    return rows


def show(rows: list[dict[str, float]]) -> dict[str, float]:
    """Print and return the medians."""
    found = {name: statistics.median(row[name] for row in rows) for name in rows[0]}
    print(
        f"\nmedian of {len(rows)} rounds\n"
        f"served         {found['served_rate']:7.1f} images/s, p50 {found['served_p50_ms']:.1f} ms, "
        f"p99 {found['served_p99_ms']:.1f} ms\n"
        f"one client     {found['alone_rate']:7.1f} images/s, p50 {found['alone_p50_ms']:.1f} ms, "
        f"p99 {found['alone_p99_ms']:.1f} ms\n"
        f"bare loop      {found['loop_rate']:7.1f} images/s; served is {100 * found['of_loop']:.0f} % of it\n"
        f"CPU an image   {found['served_cpu_ms']:.2f} ms server + {found['served_client_cpu_ms']:.2f} ms clients, "
        f"{found['loop_cpu_ms']:.2f} ms loop: {100 * found['of_loop_cpu']:.0f} %\n"
        f"run alone      {found['run_rate']:7.1f} images/s; served is {100 * found['of_run']:.0f} % of it\n"
        f"memory         {found['memory_mib']:7.0f} MiB"
    )
    return found


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bad", type=int, metavar="N")
    parser.add_argument("--flag", action="append", default=[], help="one more word for the server's command")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    photos = photos_in(given.photos)
    content: Any
    if given.bad is not None:
        with tempfile.TemporaryDirectory() as folder:
            flags = ["--timeout", "3", "--threads", str(given.threads), "--quiet", *given.flag]
            with running(given.file, flags, Path(folder) / "log") as server:
                content = send_bad_requests(server, photos[0], given.bad)
        faults = content["faults"]
    else:
        rows = compare(given, photos)
        content, faults = {"rounds": rows, "median": show(rows)}, []
    if given.json:
        given.json.write_text(json.dumps(content, indent=2) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
