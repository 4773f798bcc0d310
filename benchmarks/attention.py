"""What attention costs: how fast and exact the ablation engine is, and how good its weights are for the time.

    python benchmarks/attention.py [--quick] [--json FILE] [--nets mobilenet_v2 tf_efficientnet_lite0 resnet50]

First table: `ablation_speed.py`, one batch of 32 images. Second: `attention_quality.py`, whole schemes, which needs the
photos in the folder that DELTA_TUNE_TEST_DATA names. `--quick`, about 3 minutes on two cores, samples the first and
shrinks the second to one net at 65 px and 289 photos. OMP_NUM_THREADS=1 gives the steadier ratios on a machine that
others use too.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import ablation_speed
import attention_quality
import torch
from development_data import DATA, MISSING


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--json", type=Path, help="write the same figures here")
    parser.add_argument("--nets", nargs="+", choices=ablation_speed.LAYERS, default=list(ablation_speed.LAYERS))
    arguments = parser.parse_args()

    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}")
    speed = {}
    for name in arguments.nets:
        speed[name] = ablation_speed.measure(name, arguments.quick)
        print(ablation_speed.HEADER, *(row.line for row in speed[name]), sep="\n", flush=True)

    quality = []
    nets = [name for name in arguments.nets if name in attention_quality.NETS]
    for name in nets[:1] if arguments.quick else nets:
        if not (DATA / "flowers17").exists():
            print(f"The second table is left out: {MISSING}.")
            break
        rows, lines = attention_quality.measure(name, quick=arguments.quick)
        print(attention_quality.HEADER, *lines, sep="\n", flush=True)
        quality += rows
    adaptive = [row for row in quality if row.scheme == "adaptive"]
    if adaptive and "resnet50" in speed:
        print(resnet_line(speed["resnet50"][-1], max(max(row.images) for row in adaptive)))

    if arguments.json:
        figures = {"torch": torch.__version__, "threads": torch.get_num_threads(), "quick": arguments.quick}
        figures["speed"] = [asdict(row) for rows in speed.values() for row in rows]
        figures["quality"] = [asdict(row) for row in quality]
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def resnet_line(total: ablation_speed.Row, images: float) -> str:
    """Times alone, at the largest mean number of images that a layer of the other nets took."""
    ours = total.engine * images / ablation_speed.BATCH
    batches = attention_quality.REFERENCE_IMAGES / ablation_speed.BATCH
    graph, no_grad = total.reference * batches, total.no_grad * batches
    return (
        f"resnet50: {images:.0f} images in {ours:.0f} s; the reference's 128 in {graph:.0f} s with graphs "
        f"({graph / ours:.1f}x) and {no_grad:.0f} s without ({no_grad / ours:.1f}x)"
    )


if __name__ == "__main__":
    main()
