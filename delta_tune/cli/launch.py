"""The command line: flags → `tune`. Nothing heavy is imported before a study is to run, so `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from delta_tune.config import METRICS, StudyConfig, UserError, parse_setting

EXIT_MISTAKE, EXIT_INTERRUPTED = 2, 130
EPILOG = """\
without arguments: a demo on handwritten digits, minutes on two cores, no download.
your own photos:   python launch.py --data PHOTOS --model timm:tf_efficientnet_lite0 --weights demo
                   (PHOTOS/<class>/*.jpg, or PHOTOS/{train,val,test}/<class>/*.jpg)
"""


def parser() -> argparse.ArgumentParser:
    """The flags; their defaults are `StudyConfig`'s."""
    defaults = StudyConfig()
    p = argparse.ArgumentParser(
        prog="launch.py",
        usage="launch.py [flags]",
        description=(
            "Find the best way to fine-tune a pretrained CNN: DELTA, L2-SP and L2, searched with Ray.\n"
            "In brackets: what holds where the flag is not given."
        ),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    data = p.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="DIR|FILE|NAME",
        help="image folder, Parquet file or folder, here or at s3://… or gs://…, torchvision:NAME, or demo (demo)",
    )
    data.add_argument(
        "--val-fraction", type=float, metavar="F", help="validation part of train where there is no such split (0.2)"
    )
    data.add_argument("--test-fraction", type=float, metavar="F", help="test part of train, likewise (0)")
    data.add_argument("--train-fraction", type=float, metavar="F", help="train on this part of what is left (all)")
    data.add_argument("--train-per-class", type=int, metavar="N", help="train on this many images a class (all)")
    data.add_argument("--skip-damaged", action="store_true", help="leave unreadable images out and count them")
    data.add_argument(
        "--drop-duplicates", action="store_true", help="take images that also stand in another split out of train"
    )
    model = p.add_argument_group("model")
    model.add_argument(
        "--model", metavar="NAME", help="NAME of torchvision.models, or timm:NAME (the demo's EfficientNet-Lite0)"
    )
    model.add_argument(
        "--weights", metavar="FILE", help="default (the library's own), a local .pth or .safetensors, or demo"
    )
    model.add_argument("--image-size", type=int, metavar="PIXELS", help="side of the square input (the weights' own)")
    search = p.add_argument_group("search")
    search.add_argument("--space", metavar="FILE", help=f"search space, a Python file ({defaults.space})")
    search.add_argument("--set", action="append", metavar="KEY=VALUE", help="fix a hyperparameter; may be repeated")
    search.add_argument("--num-trials", type=int, metavar="N", help=f"trials ({defaults.num_trials})")
    search.add_argument("--max-epochs", type=int, metavar="N", help=f"epochs of a full trial ({defaults.max_epochs})")
    search.add_argument("--time-budget", metavar="TIME", help="wall clock of the search, such as 45m or 2h (none)")
    search.add_argument("--metric", choices=list(METRICS), help=f"what is optimised ({defaults.metric})")
    search.add_argument(
        "--mode", choices=["max", "min"], help="whether that is to be large or small (as the metric has it)"
    )
    search.add_argument(
        "--sampler", choices=["tpe", "gp", "random", "cmaes", "grid"], help=f"how trials are drawn ({defaults.sampler})"
    )
    search.add_argument(
        "--grace-period", type=int, metavar="N", help=f"ASHA's first rung in epochs ({defaults.grace_period})"
    )
    search.add_argument(
        "--reduction-factor",
        type=float,
        metavar="R",
        help=f"one trial in R passes a rung ({defaults.reduction_factor:g})",
    )
    search.add_argument(
        "--confirm", type=int, metavar="N", help="then compare the methods on N fresh seeds and splits (0)"
    )
    ray = p.add_argument_group("resources")
    ray.add_argument(
        "--cpus-per-trial", type=float, metavar="N", help=f"CPUs of one trial ({defaults.cpus_per_trial:g})"
    )
    ray.add_argument(
        "--gpus-per-trial",
        type=lambda text: text if text == "auto" else float(text),
        metavar="N|auto",
        help="GPUs of one trial: fractions share one, auto measures how many can (0, or 1 where there are GPUs)",
    )
    ray.add_argument(
        "--max-concurrent-trials", type=int, metavar="N", help="most trials at a time (what the cluster holds)"
    )
    ray.add_argument(
        "--address", metavar="ADDRESS", help="Ray: local, auto or host:port (local; RAY_ADDRESS is honoured)"
    )
    study = p.add_argument_group("study")
    study.add_argument("--out", metavar="DIR|s3://…", help=f"results folder, or an address ({defaults.out})")
    study.add_argument("--name", metavar="NAME", help="name of the study (data-model-date-time)")
    study.add_argument(
        "--cache",
        metavar="DIR|s3://…",
        help="where studies share attention (.cache in the results folder)",
    )
    study.add_argument(
        "--start-from", metavar="DIR|NAME", help="try the best configurations of that earlier study first (none)"
    )
    study.add_argument("--resume", action="store_true", help="carry on the interrupted study of that name")
    study.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    study.add_argument("--seed", type=int, metavar="N", help=f"of splits, trials and sampler ({defaults.seed})")
    study.add_argument("--verbose", type=int, metavar="0-2", help="0 quiet, 1 trials, 2 epochs too (1)")
    tools = p.add_argument_group("tools that follow a study")
    tools.add_argument(
        "--storage",
        metavar="URL|FILE",
        help="Optuna storage for optuna-dashboard, such as sqlite:///s.db (none)",
    )
    tools.add_argument(
        "--mlflow", metavar="URL", help="send trials there too: http://host:5000 or sqlite:///mlflow.db (none)"
    )
    tools.add_argument("--wandb", metavar="PROJECT", help="send trials to this Weights & Biases project too (none)")
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study from the command line; the exit status is 2 for a mistake in what was asked for."""
    flags: dict[str, Any] = vars(parser().parse_args(arguments))
    dry = flags.pop("dry_run", False)
    try:
        if "set" in flags:
            flags["set"] = dict(parse_setting(text) for text in flags["set"])
        from delta_tune.study.tune import dry_run, tune

        if dry:
            print("\n".join(dry_run(**flags)))
            return 0
        result = tune(**flags)
    except UserError as error:
        print(f"launch.py: {error}", file=sys.stderr)
        return EXIT_MISTAKE
    except KeyboardInterrupt:  # before the trials: Tune takes it from there on
        print("launch.py: interrupted before any trial started", file=sys.stderr)
        return EXIT_INTERRUPTED
    demo = flags.get("data", "demo") == "demo" and not flags.get("resume")
    if demo and flags.get("verbose", 1) and result.best_config is not None:
        print(
            "\nNext, your own photos (PHOTOS/<class>/*.jpg):\n"
            "  python launch.py --data PHOTOS --model timm:tf_efficientnet_lite0 --weights demo --num-trials 16"
        )
    return 0 if result.best_config is not None else 1
