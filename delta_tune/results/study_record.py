"""`study.json`: what a study is, how far it has come and what it found. Only this module reads and writes it."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from delta_tune.config import TRIAL_FIELDS, Metric, StudyConfig, TrialConfig, UserError
from delta_tune.filesystem.atomic import write_json
from delta_tune.filesystem.untrusted import read_json, refusing
from delta_tune.results.layout import STUDY_FILE
from delta_tune.results.scoring import Scoring
from delta_tune.results.screened import Screening
from delta_tune.results.study_identity import BackboneIdentity, StudyIdentity
from delta_tune.results.study_schema import StudyContent
from delta_tune.results.utilization import TimeUse

Ending = Literal["finished", "interrupted"]


@dataclass
class StudyRecord:
    """`study.json`, with a method for everything that a study writes into it.

    Its keys are those of all earlier versions. What an older version did not write reads as None or empty, so that its
    studies are resumed, reported and compared; keys that this version does not know are kept.

    Attributes:
        content: of the file; empty before `begin`.
    """

    content: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> StudyRecord:
        """The record of the study in `folder`.

        Raises:
            UserError: there is none, or it is damaged: names the field.
        """
        file = folder / STUDY_FILE
        if not file.exists():
            raise UserError(f"There is no study in {folder}; --name and --out must name one that was started.")
        with refusing(file, "start a new study"):
            return cls(read_json(file, StudyContent))

    def write(self, folder: Path) -> None:
        """Write `study.json`."""
        write_json(folder / STUDY_FILE, self.content)

    # What the study is

    def begin(
        self,
        identity: StudyIdentity,
        settings: Mapping[str, Any],
        *,
        versions: Mapping[str, str],
        git_commit: str | None,
        command: Sequence[str],
    ) -> None:
        """Begin a session. A resumed study keeps what its first session wrote, except for settings that may change."""
        what = dataclasses.asdict(identity)
        what["backbones"] = list(what["backbones"])
        what = {name: value for name, value in what.items() if value or name not in ("backbones", "layers")}
        begun = {
            **what,
            "versions": dict(versions),
            "git_commit": git_commit,
            "command": list(command),
            "started": _now(),
            "test_scorings": [],
        }
        if "started" not in self.content:
            defaults = dataclasses.asdict(self.trial_defaults)
            begun["trial_defaults"] = {name: value for name, value in defaults.items() if name != "backbone"}
        for how in ("finished", "interrupted"):
            self.content.pop(how, None)
        self.content = begun | self.content | {"settings": dict(settings)}

    @property
    def study_id(self) -> str | None:
        """An id that no other study has; None in early versions, and where it has another form."""
        found = self.content.get("id")
        return found if isinstance(found, str) and re.fullmatch("[0-9a-f]{32}", found) else None

    @study_id.setter
    def study_id(self, study_id: str) -> None:
        self.content["id"] = study_id

    @property
    def settings(self) -> Mapping[str, Any]:
        """The fields of `StudyConfig`; those that an earlier version did not know are what it did."""
        return {**dataclasses.asdict(StudyConfig()), "final_runs": 0, "resize": "crop", **self.content["settings"]}

    @property
    def settled(self) -> frozenset[str]:
        """Names of the settings in the file; those that are left to the time budget are not."""
        return frozenset(self.content.get("settings", ()))

    def settle(self, settings: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        """Note the settings that the time budget has decided.

        Args:
            settings: all that are decided.
            asked: those that the user wanted otherwise, as they were wanted.
        """
        self.content |= {"settings": dict(settings), "asked": dict(asked)}

    @property
    def asked(self) -> Mapping[str, Any]:
        """Settings as the user wanted them, where the time budget was too short for them."""
        return dict(self.content.get("asked", {}))

    @property
    def metric(self) -> Metric:
        """What trials are ranked by."""
        metric: Metric = self.settings["metric"]
        return metric

    @property
    def fingerprints(self) -> Mapping[str, str]:
        """Of the data and the weights."""
        return dict(self._written("fingerprints"))

    @property
    def backbone(self) -> str:
        """The model's name; early versions wrote only the one that the user gave."""
        return str(self.content.get("backbone", self.settings["model"]))

    @property
    def backbones(self) -> tuple[BackboneIdentity, ...]:
        """The networks that trials choose from, those that were screened better first; empty in a study of one."""
        names = [each.name for each in dataclasses.fields(BackboneIdentity)]
        found = self.content.get("backbones") or ()
        return tuple(BackboneIdentity(**{name: each[name] for name in names}) for each in found)

    def model_of(self, label: str | None) -> str:
        """The name of the model of the network with this label; in a study of one, of that."""
        return next((each.model for each in self.backbones if each.label == label), self.backbone)

    @property
    def layers(self) -> str:
        """The hooked layers in words, of networks whose channels are those of tokens; empty for others."""
        return str(self.content.get("layers", ""))

    @property
    def images(self) -> Mapping[str, int]:
        """Split → number of images; early versions did not write it."""
        return dict(self.content.get("images", {}))

    @property
    def num_val(self) -> int:
        """Images in the validation split."""
        return int(self._written("images", "val"))

    @property
    def space(self) -> str:
        """Source code of the search space."""
        return str(self._written("space"))

    @property
    def distributions(self) -> Mapping[str, Any]:
        """Hyperparameter → its distribution, as Optuna writes it in JSON."""
        return dict(self.content.get("distributions", {}))

    @property
    def trial_defaults(self) -> TrialConfig:
        """What a trial does where the space says nothing: as it was when the study was begun."""
        if "started" not in self.content:
            return TrialConfig()
        written = self.content.get("trial_defaults", {})  # studies of early versions lack it: theirs were others
        return TrialConfig.from_record({name: value for name, value in written.items() if name in TRIAL_FIELDS})

    @property
    def versions(self) -> Mapping[str, str]:
        """Package → version when the study was begun."""
        return dict(self._written("versions"))

    @property
    def git_commit(self) -> str | None:
        """Of the working directory when the study was begun; None outside a git checkout."""
        return self.content.get("git_commit")

    @property
    def command(self) -> tuple[str, ...]:
        """`sys.argv` when the study was begun."""
        return tuple(self._written("command"))

    @property
    def started(self) -> str:
        """When the study was begun, as ISO 8601."""
        return str(self._written("started"))

    @property
    def start_from(self) -> list[dict[str, Any]] | None:
        """Configurations of an earlier study that are tried first; None before they are looked up."""
        return self.content.get("start_from")

    @start_from.setter
    def start_from(self, configurations: list[dict[str, Any]]) -> None:
        self.content["start_from"] = configurations

    def _written(self, *path: str) -> Any:
        """A field that a report or a resume cannot do without.

        Raises:
            UserError: the study does not have it.
        """
        value: Any = self.content
        for name in path:
            if name not in value:
                raise UserError(f"{STUDY_FILE} has no {'.'.join(path)}, which every study writes; start a new study.")
            value = value[name]
        return value

    def set_accelerators(self, device: str, accelerators: Sequence[Mapping[str, Any]]) -> None:
        """Note the type of the device that this session's trials train on, and the GPUs, one of each kind."""
        self.content |= {"device": device, "accelerators": [dict(each) for each in accelerators]}

    @property
    def device(self) -> str | None:
        """Type of the device of the last session's trials; early versions did not write it."""
        return self.content.get("device")

    @property
    def accelerators(self) -> Sequence[Mapping[str, Any]]:
        """The fields of each `Accelerator` of the last session, one of each kind that was asked."""
        return list(self.content.get("accelerators", ()))

    # How far it has come

    def set_time(self, spent_seconds: float) -> None:
        """Note the wall clock of all sessions so far."""
        self.content |= {"spent_seconds": spent_seconds, "spent_seconds_at": time.time()}

    @property
    def spent_seconds(self) -> float | None:
        """Wall clock of all sessions, None before it was noted."""
        return self.content.get("spent_seconds")

    @property
    def spent_seconds_at(self) -> float | None:
        """When `spent_seconds` was noted, in seconds since 1970."""
        return self.content.get("spent_seconds_at")

    def set_attention(self, seconds: float, verdict: str) -> None:
        """Note how long all slots take to measure attention, the longest of all sessions, and what is to say of it."""
        self.content |= {"attention_seconds": max(seconds, self.attention_seconds), "attention_verdict": verdict}

    @property
    def attention_seconds(self) -> float:
        """The longest time that all slots would have taken for the attention that a session measured."""
        return float(self.content.get("attention_seconds", 0.0))

    @property
    def attention_verdict(self) -> str:
        """What the noise of the attention means, and what a time budget left out; empty if there is nothing to say."""
        return self.content.get("attention_verdict") or ""

    def add_attention_time(self, wall_seconds: float) -> None:
        """Note that attention was measured for so long, beside trials or not."""
        self.content["attention_wall_seconds"] = self.attention_wall_seconds + wall_seconds

    @property
    def attention_wall_seconds(self) -> float:
        """How long all sessions have measured attention."""
        return float(self.content.get("attention_wall_seconds", 0.0))

    def set_screening(self, screening: Screening) -> None:
        """Note what is known of the backbones that the study chose among."""
        self.content["screening"] = screening.content()

    @property
    def screening(self) -> Screening | None:
        """What is known of the backbones that the study chose among; None if there was no choice."""
        found = self.content.get("screening")
        return None if found is None else Screening.of_content(found)

    def set_sample(self, fraction: float | None) -> None:
        """Note that this part of the images stands for all, for which the budget is too short; None for all."""
        self.content["sample"] = fraction

    @property
    def sample(self) -> float | None:
        """The part of the images that stands for all when the source is measured; None for all."""
        return self.content.get("sample")

    def set_ready_seconds(self, seconds: float) -> None:
        """Note how long this session took until its first trials started."""
        self.content["ready_seconds"] = seconds

    @property
    def ready_seconds(self) -> float | None:
        """How long the last session took until its first trials started."""
        return self.content.get("ready_seconds")

    def set_reserved(self, reserve: Mapping[str, Any]) -> None:
        """Note what of the time budget is kept for the confirmation and the final model."""
        self.content["reserved"] = dict(reserve)

    def set_time_use(self, use: TimeUse) -> None:
        """Note where this session's search spent its time."""
        self.content["time_use"] = dataclasses.asdict(use)

    @property
    def time_use(self) -> TimeUse | None:
        """Where the last session's search spent its time."""
        use = self.content.get("time_use")
        return TimeUse(**{each.name: use[each.name] for each in dataclasses.fields(TimeUse)}) if use else None

    def end(self, how: Ending) -> None:
        """End a session."""
        self.content[how] = _now()

    @property
    def finished(self) -> bool:
        """Whether the last session came to its end."""
        return "finished" in self.content

    @property
    def interrupted(self) -> bool:
        """Whether the last session was interrupted and wrote down what it had."""
        return "interrupted" in self.content

    @property
    def running(self) -> bool:
        """Whether no session has ended, or another one has begun since."""
        return not self.finished and not self.interrupted

    @property
    def ended(self) -> str | None:
        """When the last session ended, as ISO 8601; None while one is running."""
        return self.content.get("interrupted", self.content.get("finished"))

    # What it found

    def set_confirmation(self, confirmation: Mapping[str, Any]) -> None:
        """Note the comparison of methods on fresh seeds and splits."""
        self.content["confirmation"] = dict(confirmation)

    @property
    def confirmation(self) -> Mapping[str, Any] | None:
        """The fields of `Confirmation`; None if methods were not compared on fresh seeds and splits."""
        return self.content.get("confirmation") or None

    def set_race(self, sentences: Sequence[str]) -> None:
        """Note what the race before the final model says of its rivals."""
        self.content["race"] = list(sentences)

    @property
    def race(self) -> Sequence[str]:
        """Sentences on the rivals of the final model's configuration."""
        return list(self.content.get("race", ()))

    def set_held_out(self, known: Mapping[str, Any]) -> None:
        """Note what the final runs predict of images that they were not trained on, as `HeldOutRecord` has it."""
        self.content["held_out"] = dict(known)

    @property
    def held_out(self) -> Mapping[str, Any] | None:
        """The fields of `HeldOutRecord`; None if the model is not that of final runs."""
        return self.content.get("held_out") if self.retrained else None

    def set_model(self, trial: int, model: str, epoch: int | None = None) -> None:
        """Note which trial the final model comes from, the model in words, and the epoch whose weights it has.

        What final runs said of the model before is forgotten.
        """
        self.content |= {"winner": trial, "model": model, "model_epoch": epoch}
        self.content.pop("held_out", None)

    @property
    def winner(self) -> int | None:
        """The trial that the final model comes from; None if there is no model."""
        return self.content.get("winner")

    @property
    def model(self) -> str | None:
        """The final model in words, such as "trial 3"; None if there is none."""
        return self.content.get("model")

    @property
    def model_epoch(self) -> int | None:
        """The epoch whose weights the model has; None for the trial's best, and if the model was retrained."""
        return self.content.get("model_epoch")

    @property
    def retrained(self) -> bool:
        """Whether the final model was trained anew after the search."""
        return " retrained " in (self.model or "")

    @property
    def has_seen_val(self) -> bool:
        """Whether the final model was trained on validation too."""
        return self.retrained or ", fitted to all " in (self.model or "")

    @property
    def confirmed(self) -> bool:
        """Whether the final model's configuration was among those compared on fresh seeds and splits."""
        return self.confirmation is not None and self.winner in self.confirmation["trials"].values()

    def add_scoring(self, scores: Mapping[str, Any]) -> None:
        """Note that the final model was scored on the test split: the more often, the less the scores mean."""
        self.content.setdefault("test_scorings", []).append({"trial": self.winner, "model": self.model, **scores})

    @property
    def scoring(self) -> Scoring | None:
        """The final model's first scoring of the test split; None if it has not been scored."""
        for index, content in enumerate(self.content.get("test_scorings", ())):
            if content["model"] == self.model:
                return Scoring(content, index, self.metric)
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
