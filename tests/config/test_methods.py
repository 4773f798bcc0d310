"""The table of methods: what holds for every row of it."""

import dataclasses
import re
from typing import get_args

import pytest

from delta_tune.config import BASELINE, HEAVIEST, LOSS_PARTS, METHODS, TRIAL_FIELDS, Method, Regularizer, TrialConfig

FROZEN_FEATURES = METHODS["l2_fe"]


def test_methods_are_the_choices_that_type_checkers_see():
    assert set(METHODS) == set(get_args(Regularizer))


@pytest.mark.parametrize("name", METHODS)
def test_method_is_found_by_its_name(name):
    assert METHODS[name].name == name
    assert TrialConfig(regularizer=name).method is METHODS[name]


@pytest.mark.parametrize("name", METHODS)
def test_method_names_fields_of_a_trial_alone(name):
    assert METHODS[name].fields <= set(TRIAL_FIELDS)


@pytest.mark.parametrize("name", METHODS)
def test_method_uses_alpha_if_it_has_a_penalty(name):
    assert ("alpha" in METHODS[name].fields) == (METHODS[name].penalty is not None)


@pytest.mark.parametrize("name", METHODS)
def test_method_that_compares_feature_maps_trains_the_backbone_on_them(name):
    method = METHODS[name]
    assert ("layers" in method.fields) == ("behavior_scale" in method.fields) == method.uses_behavior
    assert method.trains_backbone == ("augmentation" in method.fields)
    assert method.uses_behavior or not method.uses_attention
    assert ("attention_temperature" in method.fields) == method.uses_attention


def test_methods_have_colours_of_their_own():
    colours = [method.colour for method in METHODS.values()]
    assert len(set(colours)) == len(colours)
    assert all(re.fullmatch(r"#[0-9a-f]{6}", colour) for colour in colours)


def test_loss_parts_are_in_the_order_that_saved_tables_have():
    assert tuple(LOSS_PARTS) == ("cross_entropy", "behavior", "weight_l2_sp", "head_l2", "co_tuning", "contrast")


def test_baseline_is_weight_decay_alone():
    method = METHODS[BASELINE]
    assert (method.penalty, method.penalizes_head, method.trains_backbone) == (None, False, True)
    assert method.weight_decay > 0


def test_heaviest_runs_both_networks_and_needs_no_attention():
    assert METHODS[HEAVIEST].uses_behavior
    assert not METHODS[HEAVIEST].uses_attention


def test_field_that_only_a_sixth_method_uses_is_null_for_the_others(monkeypatch):
    sixth = Method(name="sixth", colour="#000000", penalty=None, fields=FROZEN_FEATURES.fields | {"seed"})
    monkeypatch.setitem(METHODS, "sixth", sixth)
    assert sixth.unused_fields == FROZEN_FEATURES.unused_fields - {"seed"}
    assert TrialConfig(regularizer="l2", seed=3).record()["seed"] is None


def test_methods_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        FROZEN_FEATURES.colour = "#000000"
