"""`report.html`: one self-contained page per study, made from the study's folder alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io
from plotly.offline import get_plotlyjs

from delta_tune.attention.layer_attention import read_attention
from delta_tune.background import TimeShare
from delta_tune.config import DATA_OPTIONS, TRIAL_FIELDS, StudyConfig
from delta_tune.console.escape import flag, plotly_text, shell_command
from delta_tune.console.format import format_duration, format_score
from delta_tune.console.screening_table import screening_summary, screening_table
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.report import figures, hyperparameter_figures
from delta_tune.report.feature_map_images import read_feature_map_images
from delta_tune.report.heat_map_drawing import legend_css
from delta_tune.report.heat_map_images import read_heat_map_images
from delta_tune.report.held_out import read_suspects
from delta_tune.report.label_predictions import LabelPredictions
from delta_tune.report.predictions import Predictions, read_predictions
from delta_tune.report.sentences import study_remarks, study_verdict
from delta_tune.report.templates import page_templates
from delta_tune.results.layout import (
    ATTENTION_FILE,
    HEAT_MAPS_FILE,
    HELD_OUT_FILE,
    LOG_FILE,
    PICTURES_FILE,
    PREDICTIONS_FILE,
    REPORT_FILE,
)
from delta_tune.results.log import error_in_short, log_traceback
from delta_tune.results.study_folder import read_study
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables
from delta_tune.search.asha import rung_epochs
from delta_tune.spaces.validation import BACKBONE

TEMPLATE = "report.html.jinja"
INTERVAL_S = 10.0
SHARE = 0.02
"""Share of wall-clock time for the report of a running study."""
MOST_CLASSES = 120
"""With more classes a confusion matrix is unreadable."""
MOST_RUNGS = 50
"""More rungs are more lines than a figure shows."""
ATTENTION_CAPTION = "At 1, the dotted line, a channel has the weight it has without attention (delta_uniform)."
DATA_FLAGS = ("data", *DATA_OPTIONS, "model", "weights", "image_size", "channels", "metric", "max_epochs", "seed")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure and its caption."""

    figure: str
    """JSON that is safe inside a script element."""
    caption: str

    @classmethod
    def of(cls, figure: go.Figure | None, caption: str) -> Plot | None:
        """The plot of a figure; None if there is nothing to draw."""
        return None if figure is None else cls(figure=figure_json(figure), caption=caption)


def write_report(folder: str | Path) -> Path:
    """Write the report of a study, finished or not, from its folder.

    Args:
        folder: the study's folder.

    Raises:
        UserError: there is no study, or its tables are damaged.
    """
    folder = Path(folder)
    record, tables = read_study(folder)
    text = page_templates().get_template(TEMPLATE).render(report_context(folder, record, tables))
    with atomic_write(folder / REPORT_FILE) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    return folder / REPORT_FILE


class ReportWriter:
    """Updates the report while a study runs, without ever failing the study.

    Args:
        folder: the study's folder.
        say: prints one sentence if the report cannot be written; the tables have all results.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        self._share = TimeShare(SHARE)
        self._told = False

    def now_and_then(self) -> None:
        """Write the report if its time share allows it."""
        if self._share.free:
            with self._share.taken():
                self.write()

    def write(self) -> Path | None:
        """Write the report; None if that failed."""
        try:
            return write_report(self._folder)
        except Exception as error:  # whatever Plotly, Optuna or the disk raise: the search matters more than its report
            if not self._told:
                self._told = True
                again = shell_command(["python", "-m", "delta_tune", "report", str(self._folder)])
                where = log_traceback(self._folder / LOG_FILE, error)
                self._say(
                    f"{self._folder / REPORT_FILE} cannot be written ({error_in_short(error)}); {again} tries it "
                    f"again. {where}"
                )
            return None


def report_context(folder: Path, record: StudyRecord, tables: StudyTables) -> dict[str, Any]:
    """The variables of the template."""
    parameters = hyperparameter_figures.read_parameters(record.distributions, tables)
    attention = read_attention(folder / ATTENTION_FILE)
    predictions = read_predictions(folder / PREDICTIONS_FILE)
    plots = (
        result_plots(tables, record)
        | hyperparameter_plots(tables, parameters, thorough=not record.running)
        | {"attention": Plot.of(figures.attention(attention), ATTENTION_CAPTION)}
        | {"confusion": confusion_plot(predictions)}
    )
    winner = tables.leader if record.running or record.winner is None else record.winner
    return {
        "name": folder.name,
        "record": record,
        "settings": record.settings,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "plotly": get_plotlyjs(),
        "verdict": study_verdict(tables, record),
        "remarks": study_remarks(tables, record),
        "started_with": shell_command(["python", *record.command]),
        "facts": study_facts(tables, record),
        "command": training_command(tables, record, winner) if winner in tables.searched else None,
        "python": None if winner is None else training_call(tables, winner),
        "winner": winner,
        "plots": {name: plot for name, plot in plots.items() if plot is not None},
        "attention": attention,
        "several": any(row.get(BACKBONE) for row in attention),
        "screening": record.screening,
        "screening_table": screening_table,
        "screening_summary": screening_summary,
        "pictures": read_feature_map_images(folder / PICTURES_FILE),
        "predictions": predictions,
        "heat_maps": read_heat_map_images(folder / HEAT_MAPS_FILE) if predictions else {},
        "legend": legend_css(),
        "label_scores": predictions.scores if isinstance(predictions, LabelPredictions) else (),
        "suspects": read_suspects(folder / HELD_OUT_FILE) if record.held_out is not None else (),
        "columns": list(parameters),
        "trials": trial_rows(tables, parameters),
        "time_use": record.time_use.sentence() if record.time_use else None,
        "shown": lambda value: format_score(tables.metric, value),
    }


def result_plots(tables: StudyTables, record: StudyRecord) -> dict[str, Plot | None]:
    """The plots of scores and of time."""
    settings, confirmation, num_val = record.settings, record.confirmation, record.num_val
    rungs = rung_epochs(settings["max_epochs"], settings["grace_period"], settings["reduction_factor"])
    rungs = rungs if len(rungs) <= MOST_RUNGS else []
    return {
        "methods": Plot.of(
            figures.methods(tables, confirmation, num_val), methods_caption(tables, confirmation, num_val)
        ),
        "curves": Plot.of(figures.learning_curves(tables, rungs), f"{_rungs(rungs)}Click a name to hide its curves."),
        "timeline": Plot.of(
            figures.timeline(tables), "When each trial ran; trials that ran at the same time have a row each."
        ),
    }


def hyperparameter_plots(
    tables: StudyTables, parameters: hyperparameter_figures.Parameters, *, thorough: bool
) -> dict[str, Plot | None]:
    """The plots of what the space samples; `thorough` takes the importances' slower evaluators too."""
    return {
        "pairs": Plot.of(
            hyperparameter_figures.pairs(tables, parameters),
            "The menus choose the axes. A trial that lacks one of the two hyperparameters is not shown.",
        ),
        "parallel": Plot.of(
            hyperparameter_figures.parallel(tables, parameters),
            "The method of the best trial: one line per completed trial, the best one thick; a lighter line is better.",
        ),
        "importances": Plot.of(
            hyperparameter_figures.importances(tables, parameters, thorough=thorough),
            "Computed from the completed trials, which ASHA selected: a hyperparameter whose bad values ASHA stopped "
            "early looks less important than it is. Where the evaluators disagree, trust none of them.",
        ),
    }


def confusion_plot(predictions: Predictions | LabelPredictions | None) -> Plot | None:
    """The confusion matrix on the validation images, unless the classes are too many to be read."""
    if not isinstance(predictions, Predictions) or len(predictions.classes) > MOST_CLASSES:
        return None
    return Plot.of(
        figures.confusion(predictions.confusion.toarray(), predictions.classes),
        "Shares of the true class. Point at a cell to see its images.",
    )


def study_facts(tables: StudyTables, record: StudyRecord) -> dict[str, str]:
    """Key figures of the study."""
    states = [row["state"] for row in tables.searched.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    settings = record.settings
    of = f" (of {settings['num_trials']})" if "num_trials" in record.settled else ""
    full = settings["max_epochs"] * sum(state in ("completed", "pruned") for state in states)
    bought = sum(row["epochs"] for row in tables.searched.values() if row["state"] in ("completed", "pruned"))
    saved = f", {100 * (1 - bought / full):.0f} % fewer than without ASHA" if full and bought < full else ""
    return {
        "data": f"{settings['data']}: {', '.join(f'{n} {name}' for name, n in record.images.items())} images",
        "model": models_in_words(record),
        "trials": f"{counts or 'none yet'}{of}",
        "epochs": f"{sum(len(rows) for rows in tables.epochs.values())}{saved}",
        "time": format_duration(record.spent_seconds or 0.0),
    }


def network_of(record: StudyRecord) -> dict[str, Any]:
    """`--model` and `--weights` of the one network, or of the best of several by screening."""
    if (screening := record.screening) is None or not screening.kept:
        return {name: record.settings[name] for name in ("model", "weights")}
    best = screening.kept[0]
    return {"model": best.model, "weights": best.weights}


def models_in_words(record: StudyRecord) -> str:
    """The networks and their weights."""
    if not record.backbones:
        return f"{record.backbone}, weights {network_of(record)['weights'] or 'the default'}"
    return "; ".join(f"{each.model}, weights {each.weights}" for each in record.backbones)


def methods_caption(tables: StudyTables, confirmation: Mapping[str, Any] | None, num_val: int) -> str:
    """Caption of the methods figure."""
    if confirmation:
        return "A point is a run on a fresh seed and split; the diamond is their mean, the bar a standard deviation."
    interval = f"; the bar is the 95 % interval of {num_val} images" if tables.metric == "val_accuracy" else ""
    return f"A point is a completed trial on the one validation split; the diamond is the best{interval}."


def training_command(tables: StudyTables, record: StudyRecord, number: int) -> str:
    """The command that fine-tunes once with a trial's configuration."""
    settings, defaults = record.settings, StudyConfig()
    words = ["python", "launch.py"]
    own = next((each for each in record.backbones if each.label == tables.backbone(number)), None)
    chosen = BACKBONE in tables.params(number)  # by the user's own space, which names several
    network = {"model": own.model, "weights": own.weights} if own is not None else network_of(record)
    network = {} if chosen else network
    for name in DATA_FLAGS:
        value = network.get(name, settings[name])
        if value == getattr(defaults, name):
            continue
        given = f"--{name.replace('_', '-')}"
        words += [given] if value is True else flag(given, str(value))
    words += flag("--space", str(settings["space"])) if settings["space"] is not None else []
    words += ["--num-trials", "1", "--final-runs", "0"]
    row = tables.trials[number]
    # Without its attention a trial has another method than was proposed
    fixed = {**settings["set"], **tables.params(number), "regularizer": row["config.regularizer"]}
    for name, value in fixed.items():
        words += flag("--set", f"{name}={value}")
    return shell_command(words)


def training_call(tables: StudyTables, number: int) -> str:
    """The same configuration in full, as a call."""
    row = tables.trials[number]  # and not its `TrialConfig`: it may have a method that only a later version knows
    config = {name: row.get(f"config.{name}") for name in TRIAL_FIELDS}
    inner = "".join(f"    {name}={value!r},\n" for name, value in config.items() if value is not None)
    return f"delta_tune.TrialConfig(\n{inner})"


def trial_rows(tables: StudyTables, parameters: hyperparameter_figures.Parameters) -> list[dict[str, Any]]:
    """Rows of the table of trials: completed ones first, best first, then the others by epochs."""
    place = {number: rank for rank, number in enumerate(tables.ranked())}
    order = sorted(tables.trials, key=lambda n: (place.get(n, len(place)), -tables.trials[n]["epochs"], n))
    best = f"best_{tables.metric}"
    return [
        {
            "number": number,
            "row": tables.trials[number],
            "best": tables.trials[number].get(best),
            "params": dict.fromkeys(parameters) | tables.params(number) | {BACKBONE: tables.backbone(number)},
        }
        for number in order
    ]


def figure_json(figure: go.Figure) -> str:
    """A figure as JSON, escaped for a script element; names in it are shown as they are."""
    return str(plotly.io.to_json(plotly_text(figure.to_dict()), validate=False)).replace("<", "\\u003c")


def _rungs(epochs: Sequence[int]) -> str:
    if not epochs:
        return ""
    after = ", ".join(map(str, epochs))
    return f"Dotted lines are ASHA's rungs (after epoch {after}): a trial among the lower ones of its rung ends there. "
