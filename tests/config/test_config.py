"""One run's and one study's settings: what is allowed, what is stored, what is said of a mistake."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest

from delta_tune.config import (
    METRICS,
    TRIAL_FIELDS,
    ImageSettings,
    StudyConfig,
    TrialConfig,
    UserError,
    did_you_mean,
    fields_of,
    parse_setting,
    study_config,
)
from delta_tune.config.fields import Range
from delta_tune.config.trial import BEFORE

METHODS = ("l2", "l2_sp", "l2_fe", "delta_uniform", "delta")

# Fields without effect on a method, by the objective of each (l2_fe trains a head on features computed once).
WITHOUT_EFFECT = {
    "l2": {"behavior_scale", "layers", "attention_estimator", "attention_temperature", "alpha", "beta"},
    "l2_sp": {"behavior_scale", "layers", "attention_estimator", "attention_temperature"},
    "l2_fe": {
        *("behavior_scale", "layers", "attention_estimator", "attention_temperature"),
        *("alpha", "batch_norm", "augmentation", "average_epochs", "layer_decay", "drop_path", "random_erasing"),
        *("mixup", "cutmix", "early_size", "co_tuning", "contrast"),
    },
    "delta_uniform": {"attention_estimator", "attention_temperature"},
    "delta": set(),
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("regularizer", "L2"),
        ("regularizer", None),
        ("behavior_scale", "absolute"),
        ("alpha", -0.1),
        ("alpha", float("nan")),
        ("alpha", float("inf")),
        ("alpha", "1"),
        ("beta", -1),
        ("layers", ""),
        ("layers", ()),
        ("layers", 3),
        ("layers", ["layer4", 4]),
        ("attention_temperature", 0),
        ("lr", 0),
        ("lr", None),
        ("lr", True),
        ("head_lr_multiplier", 0),
        ("momentum", 1),
        ("nesterov", 1),
        ("weight_decay", -1e-4),
        ("batch_size", 0),
        ("batch_size", 32.5),
        ("schedule", "linear"),
        ("warmup_epochs", -1),
        ("label_smoothing", 1.0),
        ("max_grad_norm", 0),
        ("augmentation", "mixup"),
        ("max_epochs", 0),
        ("max_epochs", float("inf")),
        ("seed", -1),
    ],
)
def test_trial_config_refuses_a_value_that_is_not_allowed(name, value):
    with pytest.raises(UserError, match=rf"^{name} must be .*got") as error:
        TrialConfig(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("alpha", 0), ("beta", 0), ("momentum", 0), ("weight_decay", 0), ("label_smoothing", 0)),
        *(("warmup_epochs", 0), ("max_grad_norm", None), ("weight_decay", None), ("seed", 0)),
        *(("batch_size", 1), ("max_epochs", 1)),
    ],
)
def test_trial_config_takes_the_ends_of_its_ranges(name, value):
    assert getattr(TrialConfig(**{name: value}), name) == value


@pytest.mark.parametrize("mixing", [{"mixup": 0.2}, {"cutmix": 1.0}])
@pytest.mark.parametrize("contrast", [{"contrast": 0.5}, {"regularizer": "bi_tuning"}])
def test_trial_config_refuses_to_contrast_mixed_images(contrast, mixing):
    with pytest.raises(UserError, match=r"^contrast must be 0 with mixup or cutmix, .* but .* has (0\.5|1)\.$"):
        TrialConfig(**contrast, **mixing)


@pytest.mark.parametrize(
    "others", [{"regularizer": "bi_tuning", "contrast": 0}, {"regularizer": "l2_fe", "contrast": 1}, {"co_tuning": 1}]
)
def test_trial_config_mixes_images_where_nothing_is_contrasted(others):
    assert TrialConfig(mixup=0.2, **others).mixup == 0.2


def test_image_settings_are_those_of_the_epoch():
    config = TrialConfig(augmentation="trivial", random_erasing=0.1, mixup=0.2, early_size=0.7, max_epochs=5)
    early, late = config.image_settings(2), config.image_settings(3)
    assert early == ImageSettings(augmentation="trivial", random_erasing=0.1, mixup=0.2, relative_size=0.7)
    assert late == dataclasses.replace(early, relative_size=1.0)


def test_trial_config_converts_numbers_where_nothing_is_lost():
    config = TrialConfig(lr=1, batch_size=16.0, max_epochs=4.0)
    assert [(type(v), v) for v in (config.lr, config.batch_size, config.max_epochs)] == [
        (float, 1.0),
        (int, 16),
        (int, 4),
    ]


@pytest.mark.parametrize("given", ["b.1, a.2", ["b.1", "a.2"], ("b.1", "a.2")])
def test_trial_config_takes_layer_names_as_text_or_sequence(given):
    assert TrialConfig(layers=given).layers == ("b.1", "a.2")


@pytest.mark.parametrize("config", [TrialConfig, StudyConfig])
def test_configurations_document_each_field_in_one_line(config):
    assert tuple(fields_of(config)) == tuple(f.name for f in dataclasses.fields(config))
    for declared in fields_of(config).values():
        assert re.fullmatch(r"\S.*[^.\s]", declared.help), declared.name


@pytest.mark.parametrize("config", [TrialConfig, StudyConfig])
def test_configurations_take_their_own_defaults_as_described(config):
    for name, declared in fields_of(config).items():
        assert declared.checked(declared.default) == declared.default == getattr(config(), name)


@pytest.mark.parametrize(
    ("config", "name", "words"),
    [
        (TrialConfig, "lr", "must be > 0, but got 0"),
        (TrialConfig, "momentum", "must be ≥ 0 and < 1, but got 1"),
        (StudyConfig, "train_fraction", "must be > 0 and ≤ 1, but got 1.5"),
        (StudyConfig, "seed", "must be ≥ 0 and ≤ 2147483648, but got -1"),
        (StudyConfig, "skip_damaged", "must be True or False, but got 1"),
        (StudyConfig, "num_trials", "must be a whole number, but got 2.5"),
        (StudyConfig, "image_size", "must be a whole number or None, but got 'big'"),
        (StudyConfig, "gpus_per_trial", "must be a number or auto or None, but got 'all'"),
        (StudyConfig, "mode", "must be one of max, min or None, but got 'up'"),
    ],
)
def test_configurations_say_what_is_allowed(config, name, words):
    given = words.partition(" but got ")[2]
    with pytest.raises(UserError, match=rf"^{re.escape(f'{name} {words}')}\.$"):
        config(**{name: ast.literal_eval(given)})


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_range_holds_finite_numbers_only(value):
    assert value not in Range(0)
    assert 10**400 in Range(0)


@pytest.mark.parametrize("method", METHODS)
def test_trial_config_record_nulls_what_has_no_effect_on_the_method(method):
    record = TrialConfig(regularizer=method, max_grad_norm=1.0, drop_path=0.1).record()
    assert {name for name, value in record.items() if value is None} == WITHOUT_EFFECT[method]


@pytest.mark.parametrize("method", METHODS)
def test_trial_config_from_record_gives_the_same_record(method):
    config = TrialConfig(regularizer=method, layers=("a", "b.c"), alpha=0.3, beta=0.2, weight_decay=0.0, lr=0.5)
    assert TrialConfig.from_record(config.record()).record() == config.record()


def test_trial_config_from_record_of_delta_is_the_same_configuration():
    config = TrialConfig(
        **{"alpha": 0.3, "layers": ("a", "b.c"), "attention_temperature": 2.0, "weight_decay": 0.01},
        **{"max_grad_norm": 3.0, "co_tuning": 0.5, "contrast": 0.0},
    )
    assert TrialConfig.from_record(config.record()) == config


@pytest.mark.parametrize(
    ("settings", "co_tuning", "contrast"),
    [
        ({"regularizer": "co_tuning"}, 1.0, 0.0),
        ({"regularizer": "bi_tuning"}, 0.0, 1.0),
        ({"regularizer": "bi_tuning", "contrast": 0.0, "co_tuning": 2.0}, 2.0, 0.0),
        ({"regularizer": "delta", "co_tuning": 0.5, "contrast": 0.1}, 0.5, 0.1),
        ({"regularizer": "l2"}, 0.0, 0.0),
        ({"regularizer": "l2_fe", "co_tuning": 1.0, "contrast": 1.0}, 0.0, 0.0),
    ],
)
def test_trial_config_strengths_default_by_method_and_survive_the_record(settings, co_tuning, contrast):
    config = TrialConfig(**settings)
    for each in (config, TrialConfig.from_record(config.record())):
        assert (each.effective_co_tuning, each.effective_contrast) == (co_tuning, contrast)


@pytest.mark.parametrize("method", METHODS)
def test_trial_config_is_the_same_as_its_record_read_from_a_file(method):
    config = TrialConfig(regularizer=method, layers=("a", "b.c"), alpha=0.1, lr=1 / 3, max_grad_norm=1, seed=2**40)
    read = json.loads(json.dumps(config.record()))
    assert config.same_as(read)
    assert TrialConfig.from_record(read).same_as(read)
    assert not dataclasses.replace(config, lr=0.3).same_as(read)


def test_trial_config_is_the_same_as_a_record_whatever_does_not_apply():
    assert TrialConfig(regularizer="l2", alpha=3.0).same_as(TrialConfig(regularizer="l2", alpha=0.1).record())


@pytest.mark.parametrize("method", METHODS)
def test_trial_config_is_the_same_as_a_record_from_before_some_fields(method):
    record = {name: value for name, value in TrialConfig(regularizer=method).record().items() if name not in BEFORE}
    config = TrialConfig.from_record(record)
    assert config.same_as(record)
    assert not dataclasses.replace(config, optimizer="adamw").same_as(record)


def test_trial_config_record_is_plain_values_by_field_name():
    record = TrialConfig(layers=("a", "b"), backbone="net").record()
    assert tuple(record) == TRIAL_FIELDS
    assert record["layers"] == "a,b"
    assert all(value is None or isinstance(value, bool | int | float | str) for value in record.values())


def test_trial_config_record_says_nothing_of_the_backbone_in_a_study_of_one():
    config = TrialConfig(regularizer="l2")
    assert "backbone" not in config.record()
    assert config.same_as(config.record())
    assert config.same_as(config.record() | {"backbone": None}), "the column of a table has it for all rows"
    assert not dataclasses.replace(config, backbone="net").same_as(config.record())


@pytest.mark.parametrize("backbone", ["", 3, ("net",)])
def test_trial_config_refuses_a_backbone_that_is_no_name(backbone):
    with pytest.raises(UserError, match="backbone must be the name of one of the study's networks"):
        TrialConfig(backbone=backbone)


@pytest.mark.parametrize(("method", "decay"), [("l2", 1e-4), ("l2_sp", 0.0), ("delta", 0.0), ("l2_fe", 0.0)])
def test_trial_config_weight_decay_defaults_by_method(method, decay):
    assert TrialConfig(regularizer=method).record()["weight_decay"] == decay


def test_trial_config_weight_decay_given_is_kept():
    assert TrialConfig(regularizer="l2", weight_decay=0.0).effective_weight_decay == 0.0


def test_trial_config_from_record_refuses_an_unknown_name():
    with pytest.raises(UserError, match=r"'learning_rate' in the configuration is no hyperparameter"):
        TrialConfig.from_record({"learning_rate": 0.1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("val_fraction", 0),
        ("val_fraction", 1.1),
        ("test_fraction", -0.1),
        ("train_fraction", 0),
        ("train_fraction", 1.5),
        ("train_per_class", 0),
        ("image_size", 0),
        ("image_size", 64.5),
        ("num_trials", 0),
        ("num_trials", 2.5),
        ("num_trials", None),
        ("num_trials", "16"),
        ("num_trials", True),
        ("num_trials", float("inf")),
        ("max_epochs", 0),
        *(("max_steps", 0), ("max_steps", 1.5), ("max_steps", 1_000_001)),
        ("grace_period", 0),
        ("grace_period", 1.5),
        ("reduction_factor", 1),
        ("reduction_factor", float("nan")),
        ("cpus_per_trial", 0),
        ("gpus_per_trial", -1),
        ("max_concurrent_trials", 0),
        ("metric", "accuracy"),
        ("sampler", "bayes"),
        ("seed", -1),
        ("verbose", 3),
        ("skip_damaged", "no"),
        ("time_budget", "soon"),
        *(("final_runs", -1), ("final_runs", 11), ("final_runs", 1), ("members", 0), ("members", 11)),
        ("name", "a/b"),
        ("name", ".."),
        ("name", ""),
    ],
)
def test_study_config_refuses_a_value_that_is_not_allowed(name, value):
    with pytest.raises(UserError, match=rf"^{name} must be .*got") as error:
        StudyConfig(**{name: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("test_fraction", 0), ("train_fraction", 1), ("gpus_per_trial", 0), ("gpus_per_trial", 0.25)),
        *(("cpus_per_trial", 0.5), ("reduction_factor", 1.5), ("verbose", 0), ("num_trials", 1)),
        *(("final_runs", 0), ("final_runs", 2), ("final_runs", 10), ("members", 1), ("members", 5)),
        *(("max_steps", 1), ("max_steps", 1_000_000), ("max_steps", None)),
    ],
)
def test_study_config_takes_the_ends_of_its_ranges(name, value):
    assert getattr(StudyConfig(**{name: value}), name) == value


@pytest.mark.parametrize(
    ("gpus", "reason"),
    [
        (2, "--gpus-per-trial 2 is not possible, because one trial trains on one GPU; give 1, a fraction of 1 "),
        (1.5, "--gpus-per-trial 1.5 is not possible, because one trial trains on one GPU"),
        (0.00001, "--gpus-per-trial 1e-05 is less than Ray can share out; give 1, a fraction of 1 from 0.0001, auto"),
    ],
)
def test_study_config_refuses_gpus_that_a_trial_cannot_have(gpus, reason):
    with pytest.raises(UserError, match=f"^{re.escape(reason)}"):
        study_config({"gpus_per_trial": gpus})


def test_study_of_an_early_version_with_two_gpus_is_still_read():
    assert StudyConfig(gpus_per_trial=2).gpus_per_trial == 2


def test_cpus_below_rays_unit_are_refused():
    with pytest.raises(UserError, match=r"^cpus_per_trial must be ≥ 0\.0001, but got 1e-05"):
        StudyConfig(cpus_per_trial=0.00001)


@pytest.mark.parametrize("metric", METRICS)
def test_study_config_refuses_the_mode_that_contradicts_the_metric(metric):
    wrong = {"max": "min", "min": "max"}[METRICS[metric]]
    with pytest.raises(UserError, match=f"mode must be {METRICS[metric]} for {metric}, but got '{wrong}'"):
        StudyConfig(metric=metric, mode=wrong)


@pytest.mark.parametrize("metric", METRICS)
def test_study_config_takes_the_mode_of_the_metric(metric):
    assert StudyConfig(metric=metric, mode=METRICS[metric]).mode == METRICS[metric]


def test_study_config_refuses_a_grace_period_over_max_epochs():
    with pytest.raises(UserError, match=r"grace_period must not exceed max_epochs, but got 5 and 4"):
        StudyConfig(grace_period=5, max_epochs=4)


def test_study_config_leaves_a_grace_period_of_epochs_that_are_not_known_yet():
    assert StudyConfig(grace_period=20, max_steps=1000).grace_period == 20


@pytest.mark.parametrize(("runs", "members"), [(0, 2), (2, 3), (5, 6)])
def test_study_config_refuses_more_networks_than_are_trained(runs, members):
    with pytest.raises(UserError, match=rf"^members must be at most final_runs, .* got {members} and {runs}; give "):
        StudyConfig(final_runs=runs, members=members)


@pytest.mark.parametrize("small", [{"train_fraction": 0.5}, {"train_per_class": 5}])
def test_study_config_refuses_several_networks_where_there_are_no_final_runs(small):
    with pytest.raises(UserError, match=r"^members must be 1 with train_fraction or train_per_class, .* got 2\.$"):
        StudyConfig(members=2, **small)
    assert StudyConfig(final_runs=5, **small).members == 1


@pytest.mark.parametrize("small", [{"train_fraction": 0.5}, {"train_per_class": 5}])
def test_study_config_refuses_folds_of_part_of_the_images(small):
    with pytest.raises(UserError, match=r"^confirm_splits must be random with train_fraction or train_per_class"):
        StudyConfig(confirm=2, confirm_splits="folds", **small)


def test_study_config_refuses_two_sizes_of_the_training_split():
    with pytest.raises(UserError, match=r"train_fraction and train_per_class exclude each other"):
        StudyConfig(train_fraction=0.5, train_per_class=5)


def test_study_config_refuses_an_unknown_fixed_hyperparameter():
    with pytest.raises(UserError, match=r"'learning_rate' in the set is no hyperparameter"):
        StudyConfig(set={"learning_rate": 0.1})


def test_study_config_takes_a_fixed_helper():
    assert StudyConfig(set={"_recipe": "long"}).set == {"_recipe": "long"}


@pytest.mark.parametrize(("name", "flag"), [("max_epochs", "--max-epochs"), ("seed", "--seed")])
def test_study_config_refuses_to_fix_what_is_the_study_s_own(name, flag):
    with pytest.raises(UserError, match=f"leave {name} to {flag}"):
        StudyConfig(set={name: 3})


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *((90, 90), (0.5, 0.5), ("90", 90), ("90s", 90), ("45m", 2700), ("2h", 7200), ("1.5h", 5400), ("1d", 86400)),
        *((" 2 h ", 7200), (None, None)),
    ],
)
def test_study_config_time_budget_in_seconds(text, seconds):
    assert StudyConfig(time_budget=text).time_budget_s == seconds


@pytest.mark.parametrize("text", ["", "h", "2 hours", "-5m", "0", 0, -1, "1h30m", "nan", True])
def test_study_config_refuses_what_is_no_duration(text):
    with pytest.raises(UserError, match=r"time_budget must be like 90s, 45m or 2h, but got"):
        StudyConfig(time_budget=text)


def test_study_config_refuses_an_unknown_setting_and_names_the_nearest():
    with pytest.raises(UserError, match=r"'num_trial' is no setting of a study \(did you mean num_trials"):
        study_config({"num_trial": 3})


def test_study_config_without_data_or_model_is_the_demo():
    assert (study_config({}).space, study_config({}).image_size) == ("search_spaces/demo.py", 64)


def test_study_config_of_the_demo_takes_what_is_given():
    config = study_config({"max_epochs": 3, "space": "search_spaces/delta.py"})
    assert (config.max_epochs, config.space) == (3, "search_spaces/delta.py")


@pytest.mark.parametrize("given", [{"data": "DIR"}, {"model": "resnet18"}])
def test_study_config_of_own_data_or_model_has_the_general_defaults(given):
    assert study_config(given) == StudyConfig(**given)


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("lr=0.01", ("lr", 0.01)),
        ("lr=1", ("lr", 1.0)),
        ("batch_size=64", ("batch_size", 64)),
        ("nesterov=false", ("nesterov", False)),
        ("weight_decay=none", ("weight_decay", None)),
        ("weight_decay=1e-4", ("weight_decay", 1e-4)),
        ("regularizer=l2_sp", ("regularizer", "l2_sp")),
        ("augmentation=none", ("augmentation", "none")),
        ("layers=all", ("layers", "all")),
        ("layers=a.1,b", ("layers", ("a.1", "b"))),
        (" lr = 0.5 ", ("lr", 0.5)),
        ("_recipe=long", ("_recipe", "long")),
        ("_steps=3", ("_steps", 3)),
        ("_long=true", ("_long", True)),
    ],
)
def test_parse_setting_reads_a_value_of_the_field_s_type(text, setting):
    assert parse_setting(text) == setting
    assert type(parse_setting(text)[1]) is type(setting[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr", "--set takes key=value, but got 'lr'"),
        ("=1", "--set takes key=value, but got '=1'"),
        ("lr=fast", "lr must be a number, but got 'fast'"),
        ("lr=-1", "lr must be > 0"),
        ("nesterov=1", "nesterov must be True or False"),
        ("regularizer=l3", "regularizer must be one of"),
        ("layers=", "layers must be one of"),
        ("learning_rate=1", "'learning_rate' in the --set is no hyperparameter"),
        ("momentun=0.5", "did you mean momentum"),
    ],
)
def test_parse_setting_refuses_a_mistake(text, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_setting(text)


def test_nearest_names_what_comes_near():
    assert did_you_mean("regulariser", ["regularizer", "lr"]) == " (did you mean regularizer?)"


def test_nearest_says_nothing_where_nothing_comes_near():
    assert did_you_mean("qqq", ["regularizer", "lr"]) == ""


def test_study_config_refuses_an_address_that_was_made_a_path():
    with pytest.raises(UserError, match=r"out must be text where it is an address, but got the path 's3:/bucket/x'"):
        StudyConfig(out=Path("s3://bucket/x"))
