"""Which learning rate, and how much more for the head? What the defaults and the shipped starting points rest on.

    python benchmarks/learning_rate.py [--quick] [--json FILE] [--seeds N]

Every pair of `lr` and `head_lr_multiplier` in full for L2 and uniform DELTA (relative scale, alpha 1, frozen batch
norm), one after the other in this process: best validation accuracy over the epochs, mean over the seeds (of head, data
order and augmentation; the split stays). MobileNetV2 at 129 pixels and EfficientNet-Lite0 at 96 on 10 photos a class of
Flowers-17 if DELTA_TUNE_TEST_DATA names a folder that has them, else the demo's digits. `--quick`: one net, one seed,
six epochs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
from pathlib import Path

import torch
from development_data import DATA, WEIGHTS

from delta_tune import Task, TrialConfig, prepare, run_trial

RATES, MULTIPLIERS, METHODS = (0.001, 0.003, 0.01), (1.0, 10.0), ("l2", "delta_uniform")


def tasks(quick: bool) -> dict[str, Task]:
    """Name → task, the smaller net first."""
    flowers = DATA / "flowers17"
    if not flowers.exists():
        return {"digits, EfficientNet-Lite0, 64 px": prepare("demo", image_size=64)}
    lite0 = prepare(flowers, "timm:tf_efficientnet_lite0", "demo", image_size=96, train_per_class=10)
    found = {"flowers, EfficientNet-Lite0, 96 px": lite0}
    if not quick:
        weights = str(WEIGHTS / "mobilenet_v2.pth")
        found["flowers, MobileNetV2, 129 px"] = prepare(
            flowers, "mobilenet_v2", weights, image_size=129, train_per_class=10
        )
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one net, one seed, six epochs")
    parser.add_argument("--seeds", type=int, default=2, help="(2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    options = parser.parse_args()
    seeds, epochs = (1, 6) if options.quick else (options.seeds, 12)
    rows = []
    for name, task in tasks(options.quick).items():
        size = f"train {len(task.dataset.train)}, val {len(task.dataset.val)}"
        print(f"\n{name}: {size}, {epochs} epochs, {seeds} seeds, {torch.get_num_threads()} threads")
        print(f"{'method':>14} {'lr':>7} {'head ×':>7} {'best val accuracy by seed':>28} {'mean':>7}")
        for method, lr, multiplier in itertools.product(METHODS, RATES, MULTIPLIERS):
            scores = []
            for seed in range(seeds):
                config = TrialConfig(
                    regularizer=method, lr=lr, head_lr_multiplier=multiplier, max_epochs=epochs, seed=seed
                )
                scores.append(run_trial(task, config).best_metrics.get("val_accuracy", 0.0))  # 0: diverged at once
            mean = statistics.mean(scores)
            listed = " ".join(f"{100 * s:.1f}" for s in scores)
            print(f"{method:>14} {lr:>7g} {multiplier:>7g} {listed:>28} {100 * mean:>7.1f}", flush=True)
            rows.append(
                {"task": name, "method": method, "lr": lr, "head_lr_multiplier": multiplier, "val_accuracy": scores}
            )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
