"""Names of the files and folders in a study's folder."""

from __future__ import annotations

from pathlib import Path

RESUME_FILE, BEST_FILE = "resume.json", "best.safetensors"
STUDY_FILE, TRIALS_FILE, EPOCHS_FILE = "study.json", "trials.parquet", "epochs.parquet"
JOURNAL_FILE = "journal.jsonl"
ATTENTION_FILE = Path("attention") / "attention.parquet"
REPORT_FILE = "report.html"
LOG_FILE = "study.log"
"""What Ray says while trials run."""
SHARED_CACHE = ".cache"
"""Beside the studies' folders: what several studies may use."""
CHECKPOINTS, RAY = "checkpoints", "ray"
"""Folders in a study's: what its trials are continued from, and Ray Tune's own files."""
ERROR_FILE = "error.txt"
"""The traceback of a trial that failed, in its checkpoint folder."""


def trial_name(number: int) -> str:
    """The id of a trial in tables and folders."""
    return f"{number:05d}"


def traceback_file(number: int) -> str:
    """Where a failed trial's traceback lies, from the folder of its tables."""
    return f"{CHECKPOINTS}/{trial_name(number)}/{ERROR_FILE}"


CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"

CARD_FILE = "README.md"

CONFIRM = "confirm"

BEST = "best"

PICTURES_FILE = Path("report") / "feature_maps.parquet"

PREDICTIONS_FILE = Path("report") / "predictions.parquet"
