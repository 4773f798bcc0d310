from __future__ import annotations

from types import SimpleNamespace

import pytest

from delta_tune.config import TrialConfig
from delta_tune.models.architectures import build_unfilled
from delta_tune.models.normalisation import normalises_images
from delta_tune.spaces.default_space import default_space, default_space_note
from delta_tune.spaces.space import find_space, load_space
from delta_tune.spaces.validation import check_space

OF_ADAMW = ("timm:test_vit", "timm:convnext_atto", "swin_t", "timm:mixer_s32_224", "timm:resmlp_12_224")
OF_SGD = ("timm:test_resnet", "resnet18", "squeezenet1_1", "timm:mobilevit_xxs", "timm:levit_128s")


@pytest.mark.parametrize("model", [*OF_ADAMW, *OF_SGD])
def test_networks_with_layer_norms_and_no_batch_norms_prefer_adamw(model):
    assert normalises_images(build_unfilled(model)) == (model in OF_ADAMW)


@pytest.mark.parametrize(("prefers", "name"), [(True, "transformer.py"), (False, "delta.py")])
def test_default_space_is_shipped_and_told_if_it_is_not_the_usual_one(prefers, name):
    backbone = SimpleNamespace(prefers_adamw=prefers)
    assert find_space(default_space(backbone)).name == name
    assert (name in default_space_note(backbone)) == prefers


def test_space_for_transformers_draws_recipes_with_adamw():
    checked = check_space(load_space("search_spaces/transformer.py", TrialConfig(), {}), 0)
    assert not checked.notes
    for config in checked.configs:
        assert (config.optimizer, config.warmup_epochs) == ("adamw", 0.5)
        assert config.effective_weight_decay == (0.05 if config.regularizer == "l2" else 0)
