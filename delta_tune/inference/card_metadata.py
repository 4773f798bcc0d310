"""The metadata of a model card: the YAML head of README.md that the Hugging Face Hub reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PureWindowsPath
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from delta_tune.config import visible
from delta_tune.console.escape import yaml_block
from delta_tune.results.study_record import StudyRecord

TASK = "image-classification"
DATASET = "imagefolder"
"""What the Hub calls a data set that is not on it, but of images in folders."""
_METRICS = (
    ("test_accuracy", "accuracy", "Accuracy"),
    ("test_balanced_accuracy", "balanced_accuracy", "Balanced accuracy"),
    ("test_macro_f1", "f1", "Macro F1"),
    ("test_mean_average_precision", "mAP", "Mean average precision"),
)
"""Score of the test split, the Hub's id of the metric, and its name for people."""


def card_metadata(
    library: str, name: str, tags: Sequence[str], *, several: bool, record: StudyRecord | None = None
) -> str:
    """The head of a model card, with the lines `---` around it.

    A licence, data sets and languages are left out, for nobody has said which they are.

    Args:
        library: by whose code the model is loaded.
        name: of the model.
        tags: of the model, besides its task.
        several: whether an image has several labels.
        record: of the study that trained it, whose scores of the test split are told; None if it is not known.
    """
    results = _results(record, several=several) if record is not None else []
    data = ModelCardData(
        library_name=library,
        pipeline_tag=TASK,
        tags=[TASK, *tags],
        metrics=["accuracy"],
        base_model=base_model(record) if record is not None else None,
        model_name=visible(name) if results else None,
        eval_results=results or None,
    )
    told: dict[str, Any] = data.to_dict()  # type: ignore[no-untyped-call]
    return f"---\n{yaml_block(told)}---\n"


def base_model(record: StudyRecord) -> str | None:
    """Id on the Hub of the pretrained weights that the study began with; None if they were not from there."""
    model = record.backbone
    if record.settings["weights"] not in (None, "default") or not model.startswith("timm:"):
        return None
    import timm

    told = timm.get_pretrained_cfg(model.removeprefix("timm:"), allow_unregistered=True)
    return None if told is None else told.hf_hub_id


def data_name(record: StudyRecord) -> str:
    """The last part of the data's path or address: the rest is nobody's business on the Hub."""
    data = str(record.settings["data"])
    return visible(PureWindowsPath(data).name or data)  # which knows / too


def _results(record: StudyRecord, *, several: bool) -> list[EvalResult]:
    if record.scoring is None:
        return []
    scores: Mapping[str, Any] = record.scoring.content
    told = [(score, kind, name) for score, kind, name in _METRICS if scores.get(score) is not None]
    return [
        EvalResult(
            task_type=TASK,
            task_name="Image classification",
            dataset_type=DATASET,
            dataset_name=data_name(record),
            dataset_split="test",
            metric_type=kind,
            metric_name="Exact matches" if several and score == "test_accuracy" else name,
            metric_value=float(scores[score]),
        )
        for score, kind, name in told
    ]
