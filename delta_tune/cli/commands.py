"""`python -m delta_tune`: commands that use a study or look at data. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_tune.cli import export, inspect, predict, serve
from delta_tune.cli.launch import EXIT_MISTAKE
from delta_tune.config import UserError, visible
from delta_tune.console.streams import tolerant_output

if TYPE_CHECKING:
    pass


def parser() -> argparse.ArgumentParser:
    """The commands and their flags."""
    p = argparse.ArgumentParser(
        prog="python -m delta_tune",
        description="Use a finished study, or look at data; `python launch.py` starts a study.",
        allow_abbrev=False,
    )
    commands = p.add_subparsers(title="commands", required=True, metavar="COMMAND")
    predict.add_flags(_command(commands, "predict", predict.run, "Classify images"))
    export.add_flags(_command(commands, "export", export.run, "Write the model for other programs"))
    serve.add_flags(_command(commands, "serve", serve.run, "Answer images with predictions over HTTP"))
    report = _command(commands, "report", _report, "Write report.html again from the tables")
    report.add_argument("folder", metavar="FOLDER", help="Folder of a study")
    compare = _command(commands, "compare", _compare, "Put studies side by side")
    compare.add_argument("folders", nargs="+", metavar="FOLDER", help="Folders of studies")
    compare.add_argument("--json", action="store_true", help="Print the comparison as JSON")
    inspect.add_flags(_command(commands, "inspect", inspect.run, "Look for what is wrong with a data set"))
    return p


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status is 2 for a user's mistake, else the command's."""
    with tolerant_output():
        given = parser().parse_args((sys.argv[1:] if arguments is None else arguments) or ["--help"])
        try:
            status: int | None = given.run(given)
        except UserError as error:
            print(f"delta_tune: {error}", file=sys.stderr)
            return EXIT_MISTAKE
        return status or 0


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], help: str) -> Any:
    command = commands.add_parser(name, help=help, description=f"{help}.", allow_abbrev=False)
    command.set_defaults(run=run)
    return command


def _local_folder(command: str, folder: str) -> str:
    from delta_tune.filesystem.uris import is_uri

    if is_uri(folder):
        raise UserError(f"{command} takes a folder on this machine, but got {folder}; copy it here first.")
    return folder


def _report(given: argparse.Namespace) -> None:
    from delta_tune.report.page import write_report

    print(visible(str(write_report(_local_folder("report", given.folder)))))


def _cells(row: dict[str, Any]) -> dict[str, str]:
    """A study's column of the table: name → cell."""
    from delta_tune.console.format import format_duration, format_score

    accuracy, interval = row["accuracy"], row["interval"]
    exact = " exact matches" if row["task"] == "multilabel" else ""
    return {
        "study": row["study"] + ("" if row["finished"] else " (unfinished)"),
        "data": Path(row["data"]).name,
        "images": ", ".join(f"{count} {split}" for split, count in row["images"].items()) or "–",
        "model": row["model"],
        "method": row["method"] or "–",
        "best": "–" if row["best"] is None else f"{row['metric']} {format_score(row['metric'], row['best'])}",
        "accuracy": "–" if accuracy is None else f"{row['accuracy_of']} {100 * accuracy:.1f} %{exact}",
        "95 % interval": "–" if interval is None else f"{100 * interval[0]:.1f} to {100 * interval[1]:.1f} %",
        "trials": ", ".join(f"{count} {state}" for state, count in row["trials"].items()),
        "epochs": str(row["epochs"]),
        "time": "–" if row["seconds"] is None else format_duration(row["seconds"]),
    }


def _compare(given: argparse.Namespace) -> None:
    from rich.console import Console
    from rich.table import Column, Table

    from delta_tune.results.comparison import comparability_notes, compare_studies

    rows = compare_studies([_local_folder("compare", folder) for folder in given.folders])
    if given.json:
        print(json.dumps(rows, indent=2))
        return
    columns = [_cells(row) for row in rows]
    first, *lines = ([name, *(visible(column[name]) for column in columns)] for name in columns[0])
    table = Table(
        *(Column(cell, overflow="fold") for cell in first)
    )  # one column per study: 80 characters hold two or three
    for line in lines:
        table.add_row(*line)
    console = Console(highlight=False, markup=False, emoji=False)
    console.print(table)
    for sentence in comparability_notes(rows):
        console.print(sentence)
