"""What a user can ask for: a trial's configuration, a study's settings, the methods. Standard library only."""

from delta_tune.config.addresses import refuse_secret
from delta_tune.config.candidates import SIZES, Candidate, candidates_of, labels_of, names_several
from delta_tune.config.errors import UserError, did_you_mean
from delta_tune.config.fields import fields_of
from delta_tune.config.given_settings import DATA_OPTIONS, study_config
from delta_tune.config.image_settings import Augmentation, ImageSettings, Sampling
from delta_tune.config.masking import mask_secrets
from delta_tune.config.methods import BASELINE, FIRST_MODEL, HEAVIEST, LOSS_PARTS, METHODS, Method, Regularizer
from delta_tune.config.study import MULTILABEL_METRIC, Sampler, StudyConfig, TaskName
from delta_tune.config.text import as_utf8, visible
from delta_tune.config.trial import (
    FIXED_BY_STUDY,
    LAYER_CHOICES,
    METRICS,
    TRIAL_FIELDS,
    AttentionEstimator,
    BatchNorm,
    BehaviorScale,
    Metric,
    Mode,
    Schedule,
    TrialConfig,
    check_names,
    parse_layers,
    parse_setting,
)

__all__ = [
    "BASELINE",
    "DATA_OPTIONS",
    "FIRST_MODEL",
    "FIXED_BY_STUDY",
    "HEAVIEST",
    "LAYER_CHOICES",
    "LOSS_PARTS",
    "METHODS",
    "METRICS",
    "MULTILABEL_METRIC",
    "SIZES",
    "TRIAL_FIELDS",
    "AttentionEstimator",
    "Augmentation",
    "BatchNorm",
    "BehaviorScale",
    "Candidate",
    "ImageSettings",
    "Method",
    "Metric",
    "Mode",
    "Regularizer",
    "Sampler",
    "Sampling",
    "Schedule",
    "StudyConfig",
    "TaskName",
    "TrialConfig",
    "UserError",
    "as_utf8",
    "candidates_of",
    "check_names",
    "did_you_mean",
    "fields_of",
    "labels_of",
    "mask_secrets",
    "names_several",
    "parse_layers",
    "parse_setting",
    "refuse_secret",
    "study_config",
    "visible",
]
