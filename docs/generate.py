"""Write the pages of docs/reference from the code.

python docs/generate.py            # write them
python docs/generate.py --check    # exit status 1 and the difference if they are out of date
"""

from __future__ import annotations

import argparse
import difflib
import html
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from delta_tune.cli import commands, launch
from delta_tune.config import StudyConfig, TrialConfig, fields_of
from delta_tune.config.fields import Field
from delta_tune.config.given_settings import DEMO
from delta_tune.results.columns import Column, epoch_columns, trial_columns
from delta_tune.results.layout import FILES

REFERENCE = Path(__file__).parent / "reference"
ARCHITECTURES = Path(__file__).parents[1] / "benchmarks" / "architectures.jsonl"
_NO_TWIN = "has no network with the same layers"
SPECIAL = str.maketrans({"&": "&amp;", "<": "&lt;", "|": "&#124;", "*": "&#42;", "[": "&#91;"})
ARCHITECTURES_INTRODUCTION = """\
`benchmarks/architectures.py` has built {networks} networks of timm {timm} and torchvision {torchvision}, a small one of
each family, with random weights. {usable} can be used. Each of them trained one step by every method, and predicted
after it was saved and loaded; the losses of a few channels switched off were compared with those of a naive loop, and
exported files with the model. Larger members of a family have the same layers.

- **Hooked layers** are those of `--set layers=all`, each with its channels.
- **Attention**: with shortcuts it costs a part of a forward pass for each channel, else a whole one. Both are exact.
- **Not exported to**: formats that cannot hold the network. torchvision, timm and transformers hold their own networks,
  and those that both libraries have.
"""
HEADER = "<!-- Written by docs/generate.py; edit the code instead. -->\n"


def flags_page() -> str:
    """The flags of `launch.py` and of `python -m delta_tune`."""
    fields = fields_of(StudyConfig).values()
    parts = [
        "# Command line\n",
        "## `python launch.py`\n",
        "Starts a study. In Python, `delta_tune.tune` takes the same settings as keywords, with underscores: "
        "`--num-trials 8` is `num_trials=8`; `space` may also be the function itself.\n",
    ]
    for group in dict.fromkeys(field.group for field in fields):
        parts.append(f"### {group[0].upper()}{group[1:]}\n")
        rows = [
            (code(_usage(field)), _allowed(field), _default(field) if field.default_text else "", prose(field.help))
            for field in fields
            if field.group == group
        ]
        parts.append(table(("flag", "allowed", "default", "meaning"), rows))
    settings = {field.flag for field in fields}
    others = [action for action in launch.parser()._actions if not settings & set(action.option_strings)]
    parts += ["### Other\n", table(("flag", "meaning"), [_argument_row(action) for action in others])]
    demo = [(code(fields_of(StudyConfig)[name].flag), code(str(value))) for name, value in DEMO.items()]
    parts += [
        "### Defaults of the demo\n",
        "Without `--model`, and with `--data demo` or none, these defaults apply:\n",
        table(("flag", "default"), demo),
        "## `python -m delta_tune`\n",
        "Uses a study and its model: the final one, or the best so far while the study runs.\n",
    ]
    (subparsers,) = (a for a in commands.parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in subparsers.choices.items():
        arguments = [action for action in parser._actions if action.dest != "help"]
        parts += [f"### `{name}`\n", f"{parser.description}\n"]
        parts.append(table(("argument", "meaning"), [_argument_row(action) for action in arguments]))
    return page(parts)


def trial_config_page() -> str:
    """The fields of `TrialConfig`."""
    methods = fields_of(TrialConfig)["regularizer"].choices
    # A record has None for what does not apply to its method; fields whose default is None are given
    given = {"max_grad_norm": 1.0, "backbone": "NAME"}
    records = {m: TrialConfig.from_record({"regularizer": m, **given}).record() for m in methods}
    rows = []
    for name, field in fields_of(TrialConfig).items():
        users = [method for method in methods if records[method][name] is not None]
        others = [method for method in methods if method not in users]
        all_but = " but ".join(["all", *map(code, others)])
        used_by = all_but if len(others) < 2 else ", ".join(map(code, users))
        rows.append((code(name), code(_type(field)), _allowed(field), _default(field), used_by, prose(field.help)))
    return page(
        [
            "# `TrialConfig`\n",
            "`delta_tune.TrialConfig` is the configuration of one fine-tuning run. A search space suggests values for "
            "its fields, `--set NAME=VALUE` fixes one, and `trials.parquet` has a column `config.NAME` for each. "
            "Fields that the method does not use are accepted and stored as null.\n",
            table(("field", "type", "allowed", "default", "used by", "meaning"), rows),
        ]
    )


def files_page() -> str:
    """The files of a study and the columns of its tables."""
    return page(
        [
            "# Files of a study\n",
            "A study writes these files to `OUT/NAME`. Those of Ray aside, each appears whole or not at all and can be "
            "read while the study runs.\n",
            table(("path", "content"), [(code(path), prose(meaning)) for path, meaning in FILES.items()]),
            "## Columns of `trials.parquet`\n",
            "One row per trial. A helper of the search space adds a column `param._NAME` of the type of its values.\n",
            _columns(trial_columns()),
            "## Columns of `epochs.parquet`\n",
            "One row per trial and epoch.\n",
            _columns(epoch_columns()),
        ]
    )


def architectures_page() -> str:
    """What benchmarks/architectures.py has found of each architecture."""
    found = sorted(map(json.loads, ARCHITECTURES.read_text().splitlines()), key=lambda row: row["model"])
    built = [row for row in found if not row["refused"]]
    refused = [row for row in found if row["refused"]]
    versions = found[0]["versions"]
    return page(
        [
            "# Architectures\n",
            ARCHITECTURES_INTRODUCTION.format(networks=len(found), usable=len(built), **versions),
            table(
                ("network", "family", "million parameters", "head", "hooked layers", "attention", "not exported to"),
                map(_architecture_row, built),
            ),
            "## What does not work\n",
            table(("network", "what", "why"), [line for row in built for line in _faults(row)]),
            "## What is refused\n",
            table(("network", "sentence"), [(code(row["model"]), prose(row["refused"])) for row in refused]),
        ]
    )


def _architecture_row(row: dict[str, Any]) -> tuple[str, ...]:
    layers = "<br>".join(f"{code(layer)} {channels}" for layer, channels in row["layers"].items())
    slow = [layer for layer, reason in row.get("full_passes", {}).items() if reason]
    attention = "whole passes" if len(slow) == len(row["layers"]) else "shortcuts"
    if 0 < len(slow) < len(row["layers"]):
        attention = f"shortcuts but for {', '.join(map(code, slow))}"
    formats = ", ".join(name for name, reason in row.get("exports", {}).items() if reason)
    size, million = row["image_size"], row["parameters"]
    return (
        code(row["model"]),
        f"{row['family']}, {size} px",
        f"{million:g}",
        code(row["head"]),
        layers,
        attention,
        formats,
    )


def _faults(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """What does not work with a network that can be used; formats of libraries that lack it go without saying."""
    faults = {f"`{name}`": reason for name, reason in row["methods"].items() if reason}
    faults |= {what: row[what] for what in ("attention", "predict") if row[what]}
    exports = row.get("exports", {})
    faults |= {f"export to `{name}`": reason for name, reason in exports.items() if reason and _NO_TWIN not in reason}
    return [(code(row["model"]), what, prose(why)) for what, why in faults.items()]


PAGES: dict[str, Callable[[], str]] = {
    "architectures.md": architectures_page,
    "flags.md": flags_page,
    "trial-config.md": trial_config_page,
    "files.md": files_page,
}


def page(parts: Iterable[str]) -> str:
    """A page of these paragraphs."""
    return "\n".join((HEADER, *parts))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def code(text: str) -> str:
    """Literal text as code, safe in a cell: renderers disagree about `|` in backticks."""
    return f"<code>{html.escape(text, quote=False).replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def prose(text: str) -> str:
    """Text with code in backticks, safe in a cell."""
    parts = text.split("`")
    parts[::2] = [part.translate(SPECIAL) for part in parts[::2]]
    parts[1::2] = [code(part) for part in parts[1::2]]
    return "".join(parts)


def _usage(field: Field) -> str:
    return field.flag if field.metavar is None else f"{field.flag} {field.metavar}"


def _type(field: Field) -> str:
    if field.kind is not None:
        name = field.kind.__name__
    else:
        name = "str" if field.choices else str(getattr(field.hint, "__name__", field.hint))
    return f"{name} | None" if field.optional else name


def _allowed(field: Field) -> str:
    choices = ", ".join(map(code, field.choices))
    if field.kind is None or field.kind is bool:
        return choices
    number = {int: "whole number", float: "number"}[field.kind] + (f" {field.range}" if field.range else "")
    return f"{prose(number)}, or {choices}" if choices else prose(number)


def _default(field: Field) -> str:
    return prose(field.default_text) if field.default is None else code(field.default_text or str(field.default))


def _argument_row(action: argparse.Action) -> tuple[str, str]:
    """An argument of a parser: how it is written, and its meaning."""
    metavar = action.metavar or "|".join(map(str, action.choices or ()))
    repeated = "…" if action.nargs == "+" else ""
    return code(f"{', '.join(action.option_strings)} {metavar}{repeated}".strip()), prose(action.help or "")


def _columns(columns: Iterable[Column]) -> str:
    rows = [(code(column.name), code(str(column.type)), prose(column.meaning)) for column in columns]
    return table(("column", "type", "meaning"), rows)


def main(arguments: Sequence[str] | None = None, folder: Path = REFERENCE) -> int:
    """Write the pages to `folder`, or compare them with what is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    check, status = parser.parse_args(arguments).check, 0
    for name, make in PAGES.items():
        file, text = folder / name, make()
        if not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
            continue
        old = file.read_text() if file.exists() else ""
        if difference := list(
            difflib.unified_diff(old.splitlines(), text.splitlines(), str(file), "code", lineterm="")
        ):
            print(*difference, f"{file} is out of date; run python docs/generate.py.", sep="\n")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
