from __future__ import annotations

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import get_model, get_model_weights, list_models

from delta_tune.config import SIZES, Candidate, UserError, candidates_of, labels_of

GIGA_MACS = {"small": 1.3, "medium": 6, "large": 24}
"""Size → thousand million multiply-adds that an image takes, at most, as docs/how-to/choose-backbone.md says."""
LISTED = [(size, name) for size, names in SIZES.items() for name in names]


def names(model, weights=None):
    return [(candidate.model, candidate.weights) for candidate in candidates_of(model, weights)]


def test_one_model_is_one_candidate():
    assert candidates_of("resnet18", "a.pth") == (Candidate("resnet18", "a.pth"),)


def test_without_a_model_the_only_candidate_is_the_demos():
    assert candidates_of(None, None) == (Candidate(None, None),)


def test_one_for_all_weights():
    assert names("resnet18, vgg11", "default") == [("resnet18", "default"), ("vgg11", "default")]


def test_one_each_weights():
    assert names("resnet18,vgg11", "a.pth, default") == [("resnet18", "a.pth"), ("vgg11", "default")]


def test_file_with_a_comma_in_its_name_is_one_file(tmp_path):
    file = tmp_path / "a,b.pth"
    file.touch()
    assert names("resnet18", str(file)) == [("resnet18", str(file))]
    assert names("resnet18,vgg11", str(file)) == [("resnet18", str(file)), ("vgg11", str(file))]


@pytest.mark.parametrize("size", SIZES)
def test_size_stands_for_its_list(size):
    found = candidates_of(size, None)
    assert [candidate.model for candidate in found] == list(SIZES[size])
    assert all(candidate.listed for candidate in found)


def test_size_may_stand_beside_names():
    assert [candidate.listed for candidate in candidates_of("vgg11,small", None)] == [
        False,
        *[True] * len(SIZES["small"]),
    ]


@pytest.mark.parametrize(
    ("model", "weights", "sentence"),
    [
        ("resnet18", "a.pth,b.pth", "--weights names 2 weights .* for one --model; name one model for each"),
        ("resnet18,vgg11", "a,b,c", r"--weights a,b,c names 3 weights for 2 models; .* \(resnet18,vgg11\)\."),
        ("resnet18,vgg11,alexnet", "a,b", "names 2 weights for 3 models"),
        ("resnet18,vgg11", "a,", "names 1 weights for 2 models"),
        ("resnet18,,vgg11", None, "has an empty name"),
        ("resnet18,", None, "has an empty name"),
        ("resnet18,resnet18", None, "has resnet18 twice with the same weights; name it once"),
        ("resnet18,resnet18", "default,default", "has resnet18 twice"),
        ("small,mobilenet_v3_large", None, "has mobilenet_v3_large twice"),
        ("small", "a.pth", "--weights a.pth cannot be given with --model small, whose networks come with their own"),
    ],
)
def test_mistakes_are_told_in_a_sentence(model, weights, sentence):
    with pytest.raises(UserError, match=sentence) as error:
        candidates_of(model, weights)
    assert str(error.value).count(". ") == 0


def test_label_is_the_models_name():
    assert labels_of(candidates_of("resnet18,vgg11", None)) == ["resnet18", "vgg11"]


def test_labels_of_one_model_tell_the_weights_apart():
    found = candidates_of("resnet18,resnet18,vgg11", "x/a.pth,x/b.pth,default")
    assert labels_of(found) == ["resnet18 (a.pth)", "resnet18 (b.pth)", "vgg11"]
    found = candidates_of("resnet18,resnet18", "x/a.pth,y/a.pth")
    assert labels_of(found) == ["resnet18 (x/a.pth)", "resnet18 (y/a.pth)"]


@pytest.mark.parametrize("name", [name for _, name in LISTED])
def test_listed_models_have_weights(name):
    if name.startswith("timm:"):
        assert timm.models.is_model_pretrained(name.removeprefix("timm:"))
    else:
        assert name in list_models()
        assert get_model_weights(name).DEFAULT


@pytest.mark.slow
@pytest.mark.parametrize(("size", "name"), LISTED)
def test_listed_models_take_as_many_operations_as_their_size_says(size, name):
    own = name.removeprefix("timm:")
    side = timm.get_pretrained_cfg(own).input_size[-1] if own != name else 224
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = timm.create_model(own) if own != name else get_model(name)
        network.eval()(torch.zeros(1, 3, side, side))
    assert counter.get_total_flops() / 2e9 <= GIGA_MACS[size]
