"""What a study found, in sentences: for the terminal, the report and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from delta_tune.config import METRICS
from delta_tune.console.format import format_params, format_score
from delta_tune.results.layout import BEST, EPOCHS_FILE, REPORT_FILE, TRIALS_FILE
from delta_tune.results.statistics import wilson_interval
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables


def study_summary(
    tables: StudyTables,
    folder: Path,
    record: StudyRecord,
    remarks: Sequence[str],
    *,
    out: str,
) -> list[str]:
    """What a study found, in sentences.

    Args:
        tables: of the search.
        folder: of the study.
        record: of the study.
        remarks: what else there is to say: the confirmation's verdict, and attention's.
        out: what holds the folder, as the user knows it.
    """
    metric = tables.metric
    ranked = tables.ranked()
    said = []
    if not ranked:
        states = [str(row["state"]) for row in tables.trials.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        said.append(f"No trial came to its full budget: {counts}.")
    else:
        winner = ranked[0]
        method = tables.trials[winner]["config.regularizer"]
        score = tables.best_row(winner)[metric]
        said.append(
            f"Best: {method} with {format_params(tables, winner)}: {metric} {format_score(metric, score)} "
            f"after epoch {tables.best_row(winner)['epoch']} (trial {winner})."
        )
        said += _against_plain(tables, method, score)
    said += remarks
    if ranked:
        if record.scoring is not None:
            said.append(f"Test: accuracy {record.scoring}.")
        said.append(f"Model: {folder / BEST} ({record.model})")
    said.append(f"Tables: {folder / TRIALS_FILE} and {EPOCHS_FILE}")
    if (folder / REPORT_FILE).exists():
        said.append(f"Report: {folder / REPORT_FILE}")
    if record.interrupted:
        said.append(f"Interrupted. Carry on with: python launch.py --resume --name {folder.name} --out {out}")
    return said


def _against_plain(tables: StudyTables, method: str, score: float) -> list[str]:
    """How far the winner is from the best of plain L2, or plain L2 from the best of the rest where it won."""
    if method == "l2":
        rest = [n for n in tables.ranked() if tables.trials[n]["config.regularizer"] != "l2"]
        if not rest:
            return []
        runner_up, other = tables.trials[rest[0]]["config.regularizer"], tables.best_row(rest[0])[tables.metric]
        return [
            f"That is the plain L2 recipe; the best of the other methods is {runner_up} with "
            f"{format_score(tables.metric, other)} (trial {rest[0]})."
        ]
    if not any(row["config.regularizer"] == "l2" for row in tables.trials.values()):
        return []
    plain = tables.ranked("l2")
    if not plain:
        return ["Plain L2 fine-tuning had no trial of full budget, so there is nothing to compare with."]
    other = tables.best_row(plain[0])[tables.metric]
    by = f"{100 * (score - other):+.1f} points" if METRICS[tables.metric] == "max" else f"{score - other:+.4f}"
    return [
        f"Plain L2: {format_score(tables.metric, other)} at its best (trial {plain[0]}), so {method} is {by} on the "
        f"validation split it was chosen on."
    ]


def study_verdict(tables: StudyTables, record: StudyRecord) -> str:
    """What the study found, in a sentence."""
    if record.confirmation:
        found = next((s for s in record.confirmation["sentences"] if s.startswith("Confirmed: ")), None)
        if found is not None:
            return str(found)
    ranked = tables.ranked()
    if not ranked:
        return "No trial has come to its full budget" + (" yet." if record.running else ".")
    metric, winner = tables.metric, ranked[0]
    method, score = tables.trials[winner]["config.regularizer"], tables.best_row(winner)[tables.metric]
    said = f"{method}: {metric} {format_score(metric, score)} on {record.images['val']} images"
    plain = tables.ranked("l2")
    if method == "l2" or not plain:
        return f"{said}: the best of {len(ranked)} trials of full budget, not confirmed."
    other = tables.best_row(plain[0])[metric]
    return f"{said}, plain l2 {format_score(metric, other)}: the best trial of each, not confirmed."


def study_remarks(tables: StudyTables, record: StudyRecord) -> list[str]:
    """What else one has to know to believe the verdict, or not."""
    said = []
    if record.scoring is not None:
        said.append(f"Test accuracy of the final model ({record.model}): {record.scoring}.")
    if record.confirmation:
        said += [sentence for sentence in record.confirmation["sentences"] if not sentence.startswith("Confirmed: ")]
    elif tables.leader is not None:
        count = record.images["val"]
        accuracy = tables.best_row(tables.leader)["val_accuracy"]
        low, high = wilson_interval(accuracy, count)
        said.append(
            f"The validation score is the one the trial was chosen by, so it flatters; {count} images alone know an "
            f"accuracy of {100 * accuracy:.1f} % to between {100 * low:.1f} and {100 * high:.1f} %. --confirm 5 "
            f"compares the methods on fresh seeds and splits."
        )
    return [*said, *([record.attention_verdict] if record.attention_verdict else [])]
