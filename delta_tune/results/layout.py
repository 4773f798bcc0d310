"""Names of the files and folders in a study's folder."""

from __future__ import annotations

from pathlib import Path

RESUME_FILE, BEST_FILE = "resume.json", "best.safetensors"
STUDY_FILE, TRIALS_FILE, EPOCHS_FILE = "study.json", "trials.parquet", "epochs.parquet"
JOURNAL_FILE = "journal.jsonl"
ATTENTION_FILE = Path("attention") / "attention.parquet"
REPORT_FILE = "report.html"
LOG_FILE = "study.log"
"""What Ray says while trials run, and tracebacks of what failed outside of trials."""
SHARED_CACHE = ".cache"
"""Beside the studies' folders: what several studies may use."""
LOCK, LOCKS = ".lock", ".locks"
"""Claims of the sessions that work on a study: in its folder, or at an address beside it under its name."""
WANDB = "wandb"
"""Files of Weights & Biases, if the study sends results there."""
CHECKPOINTS, RAY = "checkpoints", "ray"
"""Folders in a study's: what its trials are continued from, and Ray Tune's own files."""
ERROR_FILE = "error.txt"
"""The traceback of a trial that failed, in its checkpoint folder."""
HUNG_FILE = "hung.txt"
"""There too: where a trial's threads were when its process was ended because it hung."""
HUNG_BEFORE_FILE = "hung-before.txt"
"""There too: the same of the epoch that now runs for the second time; the machine may have stood still."""
BROKEN_FILE = "broken.txt"
"""There too: the error after which a process ended itself, because of a broken GPU or too little memory."""
BROKEN_BEFORE_FILE = "broken-before.txt"
"""There too: the same of the epoch that now runs for the second time."""


def trial_name(number: int) -> str:
    """The id of a trial in tables and folders."""
    return f"{number:05d}"


def traceback_file(number: int) -> str:
    """Where a failed trial's traceback lies, from the folder of its tables."""
    return f"{CHECKPOINTS}/{trial_name(number)}/{ERROR_FILE}"


FINAL = "final"
"""Begins the names of the final runs' folders among the checkpoints."""

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"


def weights_file(number: int) -> str:
    """The weights of a model's network, by its number from 1."""
    return WEIGHTS_FILE if number == 1 else f"model-{number}.safetensors"


CARD_FILE = "README.md"

CONFIRM = "confirm"

BEST = "best"
SERVED = "serve"
"""Folder in it: the ONNX file that is served."""

PICTURES_FILE = Path("report") / "feature_maps.parquet"

PREDICTIONS_FILE = Path("report") / "predictions.parquet"

HEAT_MAPS_FILE = Path("report") / "heat_maps.parquet"

HELD_OUT_FILE = "held_out.parquet"

EMBEDDINGS_FILE = "embeddings.safetensors"

FILES: dict[str, str] = {
    STUDY_FILE: "Settings as resolved, fingerprints of data and weights, versions, GPUs, command, every test scoring",
    TRIALS_FILE: "One row per trial",
    EPOCHS_FILE: "One row per trial and epoch",
    JOURNAL_FILE: "Events that the two tables do not have yet, one per line; only while the study runs",
    REPORT_FILE: "The report: one self-contained page, updated while the study runs",
    str(PREDICTIONS_FILE): "Predictions of the final model for the report",
    str(PICTURES_FILE): "Images of feature maps for the report",
    str(HEAT_MAPS_FILE): "Heat maps of a few images for the report",
    HELD_OUT_FILE: "What the final runs predict of the images that each was not trained on; labels that may be wrong",
    EMBEDDINGS_FILE: "Training images as the model sees them, with thumbnails; once `predict --explain` has shown some",
    f"{BEST}/{WEIGHTS_FILE}": "Weights of the model: the best so far, at the end the final one",
    f"{BEST}/model-K.safetensors": "Weights of its networks from the second on, if it averages several",
    f"{BEST}/{CONFIG_FILE}": "Configuration, backbone, classes, preprocessing and metrics of the final model",
    f"{BEST}/{CARD_FILE}": "Model card",
    f"{BEST}/{SERVED}/": "The ONNX file that `serve` made of the weights",
    str(ATTENTION_FILE): "Ablation losses, attention weights and their reliability, per hooked layer",
    f"{CHECKPOINTS}/NNNNN/{BEST_FILE}": "Weights of the best epoch of the trial that leads",
    f"{CHECKPOINTS}/NNNNN/{RESUME_FILE}": "Epochs of an unfinished trial up to the one it continues from",
    f"{CHECKPOINTS}/NNNNN/best-*.safetensors": "Weights of the best epoch so far of an unfinished trial",
    f"{CHECKPOINTS}/NNNNN/weights-*.safetensors": "Weights of an unfinished trial",
    f"{CHECKPOINTS}/NNNNN/average-*.safetensors": "Moving average of its weights, with `average_epochs`",
    f"{CHECKPOINTS}/NNNNN/optimizer-*.pt": "State of its optimizer",
    f"{CHECKPOINTS}/NNNNN/{ERROR_FILE}": "Traceback of a trial that failed",
    f"{CHECKPOINTS}/retrained-N/": "The same for the final training after `--confirm`, while it is unfinished",
    f"{CHECKPOINTS}/final-NNNNN-K/": "The same for a final run of a trial's configuration without fold K",
    f"{CONFIRM}/": "Tables, checkpoints and Ray's folder of the runs of `--confirm`, laid out as in the study",
    f"{RAY}/": "Ray Tune's own folder; TensorBoard reads it",
    LOG_FILE: "Messages of Ray Tune; tracebacks of what failed outside of trials",
    f"{LOCK}/": "Which process works on the study; only while one does",
}
"""Files and folders of a study: path → meaning."""
