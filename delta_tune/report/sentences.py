"""Sentences that sum up a study, for the terminal, the report and the model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from delta_tune.config import BASELINE, FIRST_MODEL, METRICS, Metric, visible
from delta_tune.console.escape import resume_command
from delta_tune.console.format import format_params, format_score
from delta_tune.results.layout import BEST, EPOCHS_FILE, HELD_OUT_FILE, REPORT_FILE, TRIALS_FILE
from delta_tune.results.statistics import wilson_interval
from delta_tune.results.study_record import StudyRecord
from delta_tune.results.tables import StudyTables


@dataclass(frozen=True, kw_only=True)
class BestTrial:
    """The best completed trial of some methods, or the one that is the model."""

    number: int
    method: str
    score: float
    epoch: int
    name: str
    """In words."""
    is_baseline: bool = False
    """Whether it is plain L2."""
    network: str | None = None
    """Label of its network, in a study of several."""

    @property
    def said(self) -> str:
        """The method, and the network in a study of several."""
        return self.method if self.network is None else f"{self.method} on {self.network}"

    @property
    def method_in_words(self) -> str:
        """The method beside plain L2."""
        with_terms = self.method == BASELINE and not self.is_baseline
        return f"{self.said} with terms of other methods" if with_terms else self.said


def model_row(tables: StudyTables, record: StudyRecord) -> dict[str, Any]:
    """The epoch whose weights the model has; the best one of its trial, if it was retrained."""
    assert record.winner is not None, "asked only then"
    rows, epoch = tables.epochs[record.winner], record.model_epoch
    if epoch is None or epoch > len(rows):
        return tables.best_row(record.winner)
    return rows[epoch - 1]


def delivered(tables: StudyTables, record: StudyRecord) -> BestTrial | None:
    """The trial whose weights or configuration the model has; the best completed one, if there is no model."""
    confirmed = record.retrained and record.held_out is None
    if record.winner is None or record.model is None or confirmed or not tables.epochs.get(record.winner):
        return best_trial(tables)
    row, method = model_row(tables, record), tables.trials[record.winner]["config.regularizer"]
    name = f"trial {record.winner}" if record.retrained else record.model
    return BestTrial(
        number=record.winner,
        method=method,
        score=row[tables.metric],
        epoch=row["epoch"],
        name=name,
        is_baseline=tables.is_baseline(record.winner),
        network=tables.backbone(record.winner),
    )


def best_trial(tables: StudyTables, *, baseline: bool | None = None) -> BestTrial | None:
    """The best completed trial of all, of plain L2, or of all others; None if there is none."""
    for number in tables.ranked():
        is_baseline = tables.is_baseline(number)
        if baseline is None or is_baseline == baseline:
            row = tables.best_row(number)
            return BestTrial(
                number=number,
                method=tables.trials[number]["config.regularizer"],
                score=row[tables.metric],
                epoch=row["epoch"],
                name=f"trial {number}",
                is_baseline=is_baseline,
                network=tables.backbone(number),
            )
    return None


def study_summary(
    tables: StudyTables,
    folder: Path,
    record: StudyRecord,
    remarks: Sequence[str],
    *,
    out: str,
) -> list[str]:
    """The last lines of a study.

    Args:
        tables: the search's tables.
        folder: the study's folder.
        record: the study's record.
        remarks: further sentences, of the confirmation and on attention.
        out: the folder's parent as the user named it.
    """
    metric, best = tables.metric, delivered(tables, record)
    lines = []
    if tables.leader is None:
        states = [str(row["state"]) for row in tables.trials.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in sorted(set(states)))
        lines.append(f"No trial was completed: {counts}." if states else "No trial has started.")
    if best is not None:
        score, params = format_score(metric, best.score), format_params(tables.params(best.number))
        chosen = best.number in tables.ranked() and best.number != tables.leader
        lines.append(
            f"{'Chosen' if chosen else 'Best'}: {best.said}{f' with {params}' if params else ''}: {metric} {score} "
            f"after epoch {best.epoch} ({best.name})."
        )
        if best.method == FIRST_MODEL and record.has_seen_val and record.held_out is None:
            lines.append(
                "That is a linear classifier on the frozen network, scored before it was fitted to validation too: no "
                "trial of the search was better by more than those images are worth."
            )
        elif best.method == FIRST_MODEL:
            lines.append("That is a linear classifier on the frozen network: no completed trial of the search beat it.")
        lines += _why_chosen(tables, record) if chosen and record.held_out is not None else _against_plain(tables, best)
        lines += network_sentences(tables, best)
    lines += final_model_sentences(record, folder / HELD_OUT_FILE)
    lines += remarks
    if record.model is not None:
        if record.scoring is not None:
            lines.append(f"Test: {record.scoring.said}.")
        lines.append(f"Model: {folder / BEST} ({record.model})")
    lines.append(f"Tables: {folder / TRIALS_FILE} and {EPOCHS_FILE}")
    if (folder / REPORT_FILE).exists():
        lines.append(f"Report: {folder / REPORT_FILE}")
    if record.interrupted:
        lines.append(f"Interrupted. Carry on with: {resume_command(folder.name, out)}")
    return [visible(line) for line in lines]


def network_sentences(tables: StudyTables, best: BestTrial) -> list[str]:
    """The best trial with each other network of the study, in a sentence each; empty in a study of one."""
    labels = dict.fromkeys(tables.backbone(number) for number in sorted(tables.trials))
    found = []
    for label in labels:
        if label in (None, best.network):
            continue
        number = next((each for each in tables.ranked() if tables.backbone(each) == label), None)
        if number is None:
            found.append(f"No trial with {label} was completed.")
            continue
        score = format_score(tables.metric, tables.best_row(number)[tables.metric])
        method = tables.trials[number]["config.regularizer"]
        found.append(f"The best with {label} is {method} with {score} (trial {number}).")
    return found


def _why_chosen(tables: StudyTables, record: StudyRecord) -> list[str]:
    """Why the final runs are of another trial than the best one."""
    assert tables.leader is not None, "asked only then"
    row = tables.best_row(tables.leader)
    best = f"trial {tables.leader} has {format_score(tables.metric, row[tables.metric])} after epoch {row['epoch']}"
    if record.race:
        return [f"The race of the final runs decided for it; {best}."]
    return [f"Validation cannot tell its last epoch from the best one, and its loss is lower; {best}."]


def _against_plain(tables: StudyTables, best: BestTrial) -> list[str]:
    """Compare the winner with the best plain L2 trial, or plain L2 with the best other trial if it won."""
    metric = tables.metric
    if best.is_baseline:
        other = best_trial(tables, baseline=False)
        if other is None:
            return []
        return [
            f"That is the plain L2 recipe; the best of the other methods is {other.method_in_words} with "
            f"{format_score(metric, other.score)} (trial {other.number})."
        ]
    if not any(map(tables.is_baseline, tables.trials)):
        return []
    plain = best_trial(tables, baseline=True)
    if plain is None:
        return ["No trial of plain L2 fine-tuning was completed, so there is nothing to compare with."]
    ahead = best.score - plain.score
    by = f"{100 * ahead:+.1f} points" if METRICS[metric] == "max" else f"{ahead:+.4f}"
    return [
        f"Plain L2: {format_score(metric, plain.score)} at its best (trial {plain.number}"
        f"{'' if plain.network == best.network else f', on {plain.network}'}), so {best.method_in_words} "
        f"is {by} on the validation split it was chosen on."
    ]


def final_model_sentences(record: StudyRecord, held_out_file: Path) -> list[str]:
    """What is known of a model that final runs made; empty if they did not."""
    known = record.held_out
    if known is None:
        return []
    low, high = known["interval"]
    one = " retrained once " in (record.model or "")
    made = "one of these runs" if one else "made of these runs and usually better than one of them"
    lines = [
        f"The {known['runs']} final runs of trial {record.winner}: {_held_out_score(record)} on "
        f"{known['images']} images, each predicted by a run that was not trained on it (95 % interval {100 * low:.1f} "
        f"to {100 * high:.1f} %). "
        f"The model is {made}."
    ]
    if (shift := known.get("shift")) is not None:
        lines.append(
            f"The model names rare classes more readily than its runs: {shift['strength']:g} times the log of a class's"
            f" share is taken off its logit. On these images, by which that was chosen, {_in_words(record.metric)} is "
            f"{100 * shift['after']:.1f} % instead of {100 * shift['before']:.1f} %."
        )
    lines += record.race
    if known["suspects"]:
        these = "1 of these images has a label that is" if known["suspects"] == 1 else "labels that are"
        what = these if known["suspects"] == 1 else f"{known['suspects']} of these images have {these}"
        lines.append(f"{what} probably wrong: see the column suspect of {held_out_file}.")
    return lines


def _held_out_score(record: StudyRecord) -> str:
    """The score of the final runs; an interval that follows is that of the share which stands last."""
    known = record.held_out
    assert known is not None, "asked only then"
    share = f"{100 * known['accuracy']:.1f} %"
    if (precision := known.get("mean_average_precision")) is not None:
        return (
            f"mean average precision {100 * precision:.1f} %, macro F1 {100 * known['macro_f1']:.1f} %, exact matches "
            f"{share}"
        )
    if known.get("score") is not None:
        return f"{_in_words(record.metric)} {100 * known['score']:.1f} %, accuracy {share}"
    return f"accuracy {share}"


def _in_words(metric: Metric) -> str:
    return metric.removeprefix("val_").replace("_", " ").replace("f1", "F1")


def calibration_sentence(record: StudyRecord) -> str | None:
    """How far the model's probabilities can be trusted; None if it is not known."""
    known = record.held_out
    if known is None:
        return None
    before, after = 100 * known["calibration_error"], 100 * known["calibrated_error"]
    told = (
        f"Probabilities are calibrated with a temperature of {known['temperature']:.2f}, fitted to the held-out "
        f"images: their expected calibration error there is {after:.1f} points instead of {before:.1f}."
    )
    if unsure := known.get("unsure"):
        told += (
            f" With --min-confidence auto, predict is unsure below {100 * unsure['below']:.0f} %: of "
            f"{100 * unsure['refused']:.0f} % of the images; of the others the runs are right "
            f"for {100 * unsure['accuracy']:.1f} %."
        )
    if thresholds := known.get("thresholds"):
        told += (
            f" Labels have thresholds of their own, from {100 * min(thresholds):.0f} to {100 * max(thresholds):.0f} %, "
            f"chosen for a high F1 on these images: from its threshold on a label counts as there."
        )
    return told


def study_verdict(tables: StudyTables, record: StudyRecord) -> str:
    """The study's result in one sentence."""
    if record.confirmation:
        confirmed = next((s for s in record.confirmation["sentences"] if s.startswith("Confirmed: ")), None)
        if confirmed is not None:
            return str(confirmed)
    best, plain = delivered(tables, record), best_trial(tables, baseline=True)
    if best is None:
        return "No trial is completed yet." if record.running else "No trial was completed."
    metric = tables.metric
    if (known := record.held_out) is not None:
        low, high = known["interval"]
        return (
            f"{best.said} ({best.name}) in {known['runs']} final runs: {_held_out_score(record)} "
            f"[{100 * low:.1f}, {100 * high:.1f}] on {known['images']} images that they were not trained on."
        )
    result = f"{best.said}: {metric} {format_score(metric, best.score)} on {record.num_val} images"
    if tables.trials[best.number]["state"] != "completed":
        than = "better than every completed trial" if tables.ranked() else "no trial was completed"
        return f"{result} ({best.name}): {than}, not confirmed."
    if best.number != tables.leader:
        return f"{result} ({best.name}), not confirmed."
    if plain is None or plain.number == best.number:
        return f"{result}: the best of {len(tables.ranked())} completed trials, not confirmed."
    return f"{result}, plain l2 {format_score(metric, plain.score)}: the best trial of each, not confirmed."


def study_remarks(tables: StudyTables, record: StudyRecord) -> list[str]:
    """Further sentences needed to judge the result."""
    lines, best = list[str](), delivered(tables, record)
    lines += network_sentences(tables, best) if best is not None else []
    lines += final_model_sentences(record, Path(HELD_OUT_FILE))
    if (calibrated := calibration_sentence(record)) is not None:
        lines.append(calibrated)
    if record.scoring is not None:
        said = record.scoring.said
        before = "Test accuracy of" if said.startswith("accuracy ") else "Test score of"
        lines.append(f"{before} the final model ({record.model}): {said.removeprefix('accuracy ')}.")
    if record.confirmation:
        lines += [sentence for sentence in record.confirmation["sentences"] if not sentence.startswith("Confirmed: ")]
    elif best is not None and record.held_out is None:
        count = record.num_val
        accuracy = tables.epochs[best.number][best.epoch - 1]["val_accuracy"]
        low, high = wilson_interval(accuracy, count)
        share = "a share of exact matches" if record.settings["task"] == "multilabel" else "an accuracy"
        lines.append(
            f"The validation score is the one the trial was chosen by, so it is optimistic; with {count} images the "
            f"95 % interval of {share} of {100 * accuracy:.1f} % is {100 * low:.1f} to {100 * high:.1f} %. "
            f"--confirm 5 compares the methods with new seeds and splits."
        )
    return [*lines, *([record.attention_verdict] if record.attention_verdict else [])]
