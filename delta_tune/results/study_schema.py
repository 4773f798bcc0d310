"""What may stand in `study.json`: the type and the range of each field, checked when it is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field

from delta_tune.config import TRIAL_FIELDS, Metric, StudyConfig, TrialConfig, fields_of
from delta_tune.filesystem.untrusted import Amount, Count, MeanOfShares, Number, Scalar, Share, Text

MAX_TRIALS = 100_000
"""Numbers of trials are below it."""
TrialNumber = Annotated[int, Field(ge=0, lt=MAX_TRIALS)]
Images = Annotated[int, Field(ge=1, le=2**40)]


def _check_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Refuse a setting of this version whose value no study can have."""
    fields = fields_of(StudyConfig)
    known = {name: value for name, value in settings.items() if name in fields}
    for name, value in known.items():
        if fields[name].kind is None and not fields[name].choices:
            _check_free_setting(name, value)
    StudyConfig(**known)
    return settings


def _check_trial_defaults(defaults: dict[str, Any]) -> dict[str, Any]:
    """Refuse a field of this version whose value no trial can have."""
    TrialConfig.from_record({name: value for name, value in defaults.items() if name in TRIAL_FIELDS})
    return defaults


def _check_free_setting(name: str, value: Any) -> None:
    """Check the type of a setting for which `StudyConfig` has neither a range nor choices."""
    if name == "set":
        allowed = isinstance(value, dict) and all(
            part is None or isinstance(part, bool | int | float | str) for v in value.values() for part in _parts(v)
        )
    else:
        numbers = (int, float) if name == "time_budget" else ()
        optional = name == "space" or fields_of(StudyConfig)[name].optional  # networks have spaces of their own
        allowed = isinstance(value, (str, *numbers)) or (value is None and optional)
    if not allowed:
        raise ValueError(f"{name} must be {'an object of values' if name == 'set' else 'text'}, but got {value!r:.60}")


def _parts(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class Fingerprints(BaseModel):
    """Of the data, the weights, and the source's own head where trials train it along."""

    data: Text
    weights: Text
    source_head: Text = ""


class BackboneRecord(BaseModel):
    """The fields of `BackboneIdentity`."""

    label: Text
    model: Text
    weights: Text
    fingerprints: Fingerprints


class DistributionRange(BaseModel):
    """The attributes of a distribution."""

    low: Number = 0
    high: Number = 0
    log: bool = False
    step: Number | None = None
    choices: list[Scalar] = []


class Distribution(BaseModel):
    """A hyperparameter's distribution, as Optuna writes it."""

    name: Literal["FloatDistribution", "IntDistribution", "CategoricalDistribution"]
    attributes: DistributionRange = DistributionRange()


class StartingPoint(BaseModel):
    """A configuration of another study."""

    __pydantic_extra__: dict[str, Scalar]
    model_config = {"extra": "allow"}

    regularizer: Text
    lr: Number


class AcceleratorRecord(BaseModel):
    """The fields of `Accelerator`."""

    device: Text
    name: Text
    memory: Count
    capability: Text = ""
    torch: Text = ""
    runtime: Text = ""


class TimeUseRecord(BaseModel):
    """The fields of `TimeUse`."""

    total: Annotated[float, Field(gt=0, le=1e11)]
    training: Annotated[float, Field(gt=0, le=1e11)]
    validation: Amount
    inside: Number
    between: Number
    tail: Number


class ConfirmationRecord(BaseModel):
    """The fields of `Confirmation`."""

    metric: Metric
    scores: dict[Text, list[MeanOfShares]]
    trials: dict[Text, TrialNumber]
    sentences: list[Text]


class UnsureRecord(BaseModel):
    """Below which probability a model says that it is unsure."""

    below: Share
    refused: Share
    accuracy: Share
    images: Images


class ShiftRecord(BaseModel):
    """The fields of `LogitShift`."""

    strength: Annotated[float, Field(ge=0, le=10)]
    before: Share
    after: Share


class HeldOutRecord(BaseModel):
    """What final runs predict of images that they were not trained on."""

    images: Images
    runs: Count
    asked: Annotated[list[Count], Field(min_length=2, max_length=2)]
    """Final runs and members, as the settings had them."""
    trials: Count
    suspects: Count
    accuracy: Share
    interval: Annotated[list[Share], Field(min_length=2, max_length=2)]
    temperature: Annotated[float, Field(gt=0, le=100)]
    calibration_error: Share
    calibrated_error: Share
    unsure: UnsureRecord | None = None
    mean_average_precision: MeanOfShares | None = None
    """It, `macro_f1` and `thresholds` are there with several labels an image."""
    macro_f1: MeanOfShares | None = None
    thresholds: list[Share] = []
    score: Share | None = None
    """The study's metric, if all classes count alike in it."""
    shift: ShiftRecord | None = None


class ScoringRecord(BaseModel):
    """One scoring of the test split."""

    model: Text
    images: Images
    test_accuracy: Share
    test_mean_average_precision: MeanOfShares | None = None
    test_macro_f1: MeanOfShares = 0.0
    test_balanced_accuracy: MeanOfShares | None = None
    test_accuracy_interval: Annotated[list[Share], Field(min_length=2, max_length=2)]


class ScreenedRecord(BaseModel):
    """The fields of `ScreenedNetwork`."""

    label: Text
    model: Text
    weights: Text | None
    kept: bool
    verdict: Text
    image_size: Images | None = None
    parameters: Count | None = None
    forward_s: Amount | None = None
    training_s: Amount | None = None
    trial_s: Amount | None = None
    likelihood: Number | None = None
    error: Amount | None = None
    accuracy: Share | None = None


class ScreeningRecord(BaseModel):
    """The fields of `Screening`."""

    networks: Annotated[list[ScreenedRecord], Field(min_length=1, max_length=1000)]
    images: Count
    of: Count
    epochs: Count
    device: Text
    notes: list[Text] = []


class StudyContent(BaseModel):
    """`study.json`. A field with a default may be missing: an early version, or a young study, does not have it."""

    settings: Annotated[dict[str, Any], AfterValidator(_check_settings)]
    asked: dict[Literal["max_epochs", "grace_period"], Count] = {}
    fingerprints: Fingerprints = Fingerprints(data="", weights="")
    space: Text = ""
    trial_defaults: Annotated[dict[str, Any], AfterValidator(_check_trial_defaults)] = {}
    versions: dict[Text, Text] = {}
    command: list[Text] = []
    started: Text = ""
    backbone: Text = ""
    images: dict[Text, Images] = {}
    backbones: list[BackboneRecord] = []
    layers: Text = ""
    distributions: dict[Text, Distribution] = {}
    git_commit: Text | None = None
    device: Text | None = None
    accelerators: list[AcceleratorRecord] = []
    start_from: list[StartingPoint] | None = None
    spent_seconds: Amount | None = None
    spent_seconds_at: Amount | None = None
    attention_seconds: Amount = 0.0
    attention_wall_seconds: Amount = 0.0
    attention_verdict: Text | None = None
    sample: Annotated[float, Field(gt=0, lt=1)] | None = None
    screening: ScreeningRecord | None = None
    ready_seconds: Amount | None = None
    time_use: TimeUseRecord | None = None
    finished: Text = ""
    interrupted: Text = ""
    confirmation: ConfirmationRecord | None = None
    winner: TrialNumber | None = None
    model: Text | None = None
    model_epoch: Count | None = None
    race: list[Text] = []
    held_out: HeldOutRecord | None = None
    test_scorings: list[ScoringRecord] = []
    id: Text | None = None
