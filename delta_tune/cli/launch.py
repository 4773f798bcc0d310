"""The command line `launch.py`: flags to `tune`. Heavy imports wait until a study runs, so `--help` is fast."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from delta_tune.cli.signals import signals_like_ctrl_c
from delta_tune.config import SIZES, StudyConfig, UserError, fields_of, mask_secrets, parse_setting, visible
from delta_tune.config.fields import Field
from delta_tune.console.streams import tolerant_output

EXIT_FAULT, EXIT_MISTAKE, EXIT_INTERRUPTED = 1, 2, 130
EPILOG = """\
without arguments: a demo on handwritten digits, minutes on two cores, no download.
your own photos:   python launch.py --data PHOTOS --model timm:tf_efficientnet_lite0 --weights demo
                   (PHOTOS/<class>/*.jpg, or PHOTOS/{train,val,test}/<class>/*.jpg)
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """As argparse's, which repeats what was given."""
        super().error(mask_secrets(message))


def parser() -> argparse.ArgumentParser:
    """The parser: one flag per field of `StudyConfig`, and `--dry-run`."""
    p = _Parser(
        prog="launch.py",
        usage="launch.py [flags]",
        description=(
            "Find the best way to fine-tune a pretrained CNN: DELTA, L2-SP and L2, searched with Ray.\n"
            "Defaults are in parentheses."
        ),
        epilog=EPILOG + models_of_sizes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=False,
    )
    p.add_argument("-h", "--help", action="help", help="Show this message and stop")
    groups: dict[str, Any] = {}
    for field in fields_of(StudyConfig).values():
        if field.group not in groups:
            groups[field.group] = p.add_argument_group(field.group)
        groups[field.group].add_argument(field.flag, **_argument(field))
    groups["study"].add_argument("--dry-run", action="store_true", help="Print the plan and stop")
    return p


def models_of_sizes() -> str:
    """The lists that `--model` knows by size."""
    lists = [f"--model {size}:".ljust(19) + ("\n" + " " * 19).join(names) + "\n" for size, names in SIZES.items()]
    return "".join(lists)


def _argument(field: Field) -> dict[str, Any]:
    """What argparse needs for a field."""
    default = f" ({field.default_text})" if field.default_text else ""
    text = (field.help + default).replace("`", "").replace("%", "%%")
    if field.kind is bool:
        return {"action": "store_true", "help": text}
    if field.kind is not None:
        return {"type": partial(_number, field), "metavar": field.metavar, "help": text}
    if field.choices:
        return {"choices": field.choices, "help": text}
    repeated = {"action": "append"} if isinstance(field.default, Mapping) else {}
    return {"metavar": field.metavar, "help": text, **repeated}


def _number(field: Field, text: str) -> Any:
    """The value of a flag that takes a number, or one of its words."""
    if text in field.choices:
        return text
    try:
        return int(text) if field.kind is int else float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be {field.wanted}, but got {text!r}") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a study from the command line; the exit status is 2 for a user's mistake, 1 for a fault of ours.

    SIGTERM and SIGHUP are Ctrl-C.
    """
    started = time.monotonic()
    with tolerant_output(), signals_like_ctrl_c():
        flags: dict[str, Any] = vars(parser().parse_args(arguments))
        try:
            return _run(flags, started)
        except UserError as error:
            print(f"launch.py: {error}", file=sys.stderr)
            return EXIT_MISTAKE
        except KeyboardInterrupt as stop:  # before the trials or after them: in between, the study ends in order
            before = "; the same command continues" if flags.get("resume") else " before any trial started"
            print(f"launch.py: {str(stop) or f'interrupted{before}'}", file=sys.stderr)
            return EXIT_INTERRUPTED
        except Exception as error:  # what nobody expected: no traceback on the terminal, but one to report
            print(f"launch.py: {visible(mask_secrets(_crash(error)))}", file=sys.stderr)
            return EXIT_FAULT


def _run(flags: dict[str, Any], started: float) -> int:
    dry = flags.pop("dry_run", False)
    if "set" in flags:
        flags["set"] = dict(parse_setting(text) for text in flags["set"])
    from delta_tune.study.tune import dry_run, tune_since

    if dry:
        print("\n".join(map(visible, dry_run(**flags))))
        return 0
    result = tune_since(started, **flags)
    demo = flags.get("data", "demo") == "demo" and not flags.get("resume")
    if demo and flags.get("verbose", 1) and result.best_config is not None:
        print(
            "\nNext, your own photos (PHOTOS/<class>/*.jpg):\n"
            "  python launch.py --data PHOTOS --model timm:tf_efficientnet_lite0 --weights demo --num-trials 16"
        )
    return 0 if result.best_config is not None else 1


def _crash(error: Exception) -> str:
    """A sentence on an error that is a fault of the program, and where its traceback is."""
    from delta_tune.results.layout import LOG_FILE
    from delta_tune.results.log import error_in_short, log_traceback

    notes = [note for note in getattr(error, "__notes__", []) if LOG_FILE in note]
    if not notes:  # before there was a study's folder
        handle, file = tempfile.mkstemp(prefix="delta-tune-", suffix=".log")
        os.close(handle)
        notes = [log_traceback(Path(file), error)]
    return f"An unexpected error ended the program ({error_in_short(error)}). {' '.join(notes)}"
