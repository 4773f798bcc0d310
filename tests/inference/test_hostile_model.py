"""A folder `best/` that a stranger changed: a model that predicts, or one sentence."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.fuzz import cases
from helpers.hostile import MISSING, VALUES, changed, paths
from hypothesis import given
from hypothesis import strategies as st

from delta_tune.config import UserError
from delta_tune.inference.model import load
from delta_tune.inference.model_config import read_config

IMAGE = np.zeros((80, 80, 3), dtype=np.uint8)


@pytest.fixture
def copy(best, tmp_path):
    return shutil.copytree(best, tmp_path / "best")


def write(folder, config):
    (folder / "config.json").write_text(json.dumps(config))


@cases(25)
@given(st.data())
def test_any_field_of_its_config_may_be_changed(best, copy, data):
    config = json.loads((best / "config.json").read_text())
    place = data.draw(st.sampled_from(sorted(paths(config), key=str)))
    write(copy, changed(config, place, data.draw(st.sampled_from((*VALUES, MISSING)))))
    try:
        load(copy).predict(IMAGE)
    except UserError as error:
        said = str(error)
        assert said.startswith(f"There is no model in {copy} (")
        assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("classes",), ["a", "a", "b"], "classes: a class stands twice"),
        (("classes",), [{}, 1, 2], "classes.0"),
        (("classes",), ["a"], "instead of"),
        (("backbone",), None, "backbone: it should be"),
        (("backbone", "model"), "timm:hf-hub:evil/model", "is unknown"),
        (("backbone", "model"), "vgg19", "does not fit|has"),
        (("backbone", "head"), "", "backbone.head: it is empty"),
        (("backbone", "head"), "nope", "no head 'nope'"),
        (("backbone", "head"), "layer1", "no head 'layer1'"),
        (("preprocessing", "stored_size"), 100_000, "preprocessing.stored_size"),
        (("preprocessing", "stored_size"), 10, "stored_size 10 is not 1 to 4 times"),
        (("preprocessing", "std"), [0.0, 1.0, 1.0], "preprocessing.std.0"),
        (("preprocessing", "interpolation"), "x", "preprocessing.interpolation"),
        (("preprocessing", "evil"), 1, "preprocessing.evil"),
    ],
)
def test_load_names_the_field(best, copy, place, value, said):
    write(copy, changed(json.loads((best / "config.json").read_text()), place, value))
    with pytest.raises(UserError, match=f"There is no model in .*({said})"):
        load(copy)


def with_weights(folder, **tensors):
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    safetensors.torch.save_file(weights | tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"fc.bias": torch.tensor([1.0, float("nan"), 0.0])}, "fc.bias in model.safetensors is not finite"),
        ({"fc.bias": torch.zeros(4)}, r"fc.bias in model.safetensors is torch.float32 \(4,\) instead of"),
        ({"fc.bias": torch.zeros(3, dtype=torch.complex64)}, "is torch.complex64"),
        ({"evil": torch.zeros(1)}, "1 tensors such as evil"),
        ({"fc.bias": torch.full((3,), 3e38), "fc.weight": torch.full((3, 96), 3e38)}, "is not|finite"),
        ({"evil": torch.zeros(6_000_000)}, "more than"),
    ],
)
def test_load_refuses_weights_of_another_network(copy, tensors, said):
    with_weights(copy, **tensors)
    with pytest.raises(UserError, match=f"There is no model in .*({said})"):
        load(copy)


def test_config_of_an_own_model_is_checked_too(copy):
    write(copy, {"classes": 5})
    with pytest.raises(UserError, match=r"config.json is damaged \(backbone: "):
        read_config(copy)
