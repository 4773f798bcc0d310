"""`python -m delta_tune inspect`: what is in a data set, and what is wrong with it."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from delta_tune.cli.progress_bar import bar_on_stderr
from delta_tune.config import StudyConfig, UserError, fields_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from delta_tune.inspection.labels import LabelReport, Suspect

FLAGS = ("val_fraction", "test_fraction", "label_map", "white", "channels", "seed")
"""As of a study."""
EXIT_FOUND = 1
"""With --strict, if something serious was found."""
DESCRIPTION = (
    "Look for what is wrong with a data set before a study learns from it: damaged images, copies of one picture "
    "within and across splits, one picture in two classes, sizes, formats and counts; with --model or --study also "
    "labels that are probably wrong and classes that look alike. Every image is read once."
)


def add_flags(command: argparse.ArgumentParser) -> None:
    """The flags of the command."""
    fields = fields_of(StudyConfig)
    command.description = DESCRIPTION
    command.add_argument("data", nargs="?", metavar="DATA", help=fields["data"].help)
    command.add_argument("--study", metavar="FOLDER", help="A finished study, whose list of suspect labels is shown")
    command.add_argument("--model", metavar="NAME", help="Judge the labels by this pretrained network, as for a study")
    command.add_argument("--weights", metavar="FILE", help=f"{fields['weights'].help}, with --model")
    command.add_argument("--image-size", type=int, metavar="PIXELS", help="Side of the network's input, with --model")
    for name in FLAGS:
        field = fields[name]
        kind = field.kind or str
        text = f"{field.help} ({field.default_text})".replace("`", "").replace("%", "%%")
        command.add_argument(field.flag, type=kind, default=field.default, metavar=field.metavar, help=text)
    command.add_argument("--csv", type=Path, metavar="FILE", help="Write the suspect labels here")
    command.add_argument("--json", action="store_true", help="Print all that was found as JSON")
    command.add_argument("--strict", action="store_true", help="Exit with status 1 if something serious was found")


def run(given: argparse.Namespace) -> int:
    """Run the command; the exit status is 1 with --strict if something serious was found."""
    _check(given)
    study = given.study or (None if given.model else _study_of(given.data))
    if given.csv is not None and study is None and given.model is None:
        raise UserError("--csv lists suspect labels, which a network or a study finds; give --model NAME or --study.")
    from delta_tune.inspection.findings import findings
    from delta_tune.inspection.inspection import inspect_data
    from delta_tune.inspection.text import as_json, print_inspection

    console, content, serious = _console(), dict[str, Any](), False
    suspects: Sequence[Suspect] | None = None
    if given.data is not None:
        inspection = inspect_data(
            given.data,
            **{name: getattr(given, name) for name in FLAGS},
            backbone=_backbone(given),
            progress=bar_on_stderr(),
        )
        found = findings(inspection)
        serious = any(each.level == "serious" for each in found)
        content |= as_json(inspection, found)
        if inspection.labels is not None:
            suspects = inspection.labels.suspects
        if not given.json:
            print_inspection(inspection, found, console)
    if study is not None:
        report = _study_report(study)
        suspects = report.suspects
        content["study"] = _study_json(study, report)
        if not given.json:
            _print_study(report, study, console)
    if given.csv is not None:
        assert suspects is not None, "checked before"
        _write_csv(suspects, given.csv)
        if not given.json:
            from delta_tune.inspection.text import print_line

            print_line(console, "CSV", f"{given.csv}: {len(suspects)} images, the most suspect first")
    if given.json:
        print(json.dumps(content, indent=2))
    return EXIT_FOUND if given.strict and serious else 0


def _check(given: argparse.Namespace) -> None:
    """Refuse flags that do not go together, before anything is read.

    Raises:
        UserError: names the flag.
    """
    if given.data is None and given.study is None:
        raise UserError("inspect needs DATA (as --data of a study), --study FOLDER, or both; give one.")
    for name in (*FLAGS, "image_size"):
        fields_of(StudyConfig)[name].checked(getattr(given, name))
    if given.data is None and given.model is not None:
        raise UserError(f"--model {given.model} judges the labels of DATA, which is not given; give it.")
    for name in ("weights", "image_size"):
        if given.model is None and getattr(given, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} goes with --model, which is not given; give --model NAME.")
    if given.csv is not None and (given.csv.is_dir() or not given.csv.absolute().parent.is_dir()):
        raise UserError(f"--csv {given.csv} cannot be written there; give a file in a folder that exists.")


def _backbone(given: argparse.Namespace) -> Any:
    if given.model is None:
        return None
    from delta_tune.models.backbones import load_backbone

    return load_backbone(given.model, given.weights, given.image_size, given.channels)


def _study_report(folder: str) -> LabelReport:
    """What a study says of the labels.

    Raises:
        UserError: there is no study, or it has no such list.
    """
    from delta_tune.filesystem.uris import is_uri
    from delta_tune.inspection.labels import label_report_of_study
    from delta_tune.results.layout import HELD_OUT_FILE
    from delta_tune.results.study_folder import read_study

    if is_uri(folder):
        raise UserError(f"inspect takes a study on this machine, but got {folder}; copy it here first.")
    record, _ = read_study(Path(folder))
    file = Path(folder) / HELD_OUT_FILE
    if record.held_out is None or not file.exists():
        raise UserError(
            f"{folder} has no {HELD_OUT_FILE}, which final runs write: finish the study (--final-runs 2 or more), or "
            f"give DATA and --model."
        )
    return label_report_of_study(file)


def _study_of(data: str) -> str | None:
    """The newest finished study of this data in the usual folder that has a list of suspect labels."""
    from delta_tune.results.layout import HELD_OUT_FILE
    from delta_tune.results.study_record import StudyRecord

    for file in sorted(StudyConfig().out.glob(f"*/{HELD_OUT_FILE}"), key=lambda file: -file.stat().st_mtime):
        try:
            record = StudyRecord.read(file.parent)
        except UserError:  # damaged, or of a later version
            continue
        same = os.path.realpath(str(record.settings["data"])) == os.path.realpath(data)
        if same and record.held_out is not None:
            return str(file.parent)
    return None


def _study_json(folder: str, report: LabelReport) -> dict[str, Any]:
    import dataclasses

    return {"folder": folder, "labels": dataclasses.asdict(report)}


def _print_study(report: LabelReport, folder: str, console: Console) -> None:
    from delta_tune.inspection.text import print_label_report, print_line
    from delta_tune.results.layout import REPORT_FILE

    print_label_report(report, folder, console)
    if report.suspects:
        print_line(
            console, "", f"{Path(folder) / REPORT_FILE} shows the first of them as pictures, under Labels to check."
        )


def _write_csv(suspects: Sequence[Suspect], file: Path) -> None:
    from delta_tune.inspection.labels import write_suspects

    try:
        write_suspects(suspects, file)
    except OSError as error:
        raise UserError(f"--csv {file} cannot be written ({error.strerror}); give another file.") from error


def _console() -> Console:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    if not console.is_terminal:  # a file or a pipe has no 80 columns
        console.width = 132
    return console
