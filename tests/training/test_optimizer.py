from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import timm
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from delta_tune.config import TrialConfig
from delta_tune.models.architectures import build_unfilled
from delta_tune.models.hooked_layers import find_layers
from delta_tune.training.optimizer import build_optimizer, parameter_groups, set_device, set_learning_rate

CPU = torch.device("cpu")
TORCHVISION = {"mobilenet_v2": 14, "resnet50": 15, "efficientnet_b0": 19, "densenet121": 32}
BLOCKS_OF_TORCHVISION = {"convnext_tiny": 18, "swin_t": 12, "vit_b_32": 12}
BUILT = {**TORCHVISION, **{name: 1 + blocks + 1 for name, blocks in BLOCKS_OF_TORCHVISION.items()}}


def names_of(model, groups):
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in groups]


def test_groups_without_layer_decay_are_the_backbone_and_the_head():
    model = timm.create_model("test_resnet", num_classes=3)
    groups = parameter_groups(model, "fc", TrialConfig(head_lr_multiplier=10))
    assert [group["multiplier"] for group in groups] == [1.0, 10.0]
    backbone, head = names_of(model, groups)
    assert head == ["fc.weight", "fc.bias"]
    assert backbone == [name for name, _ in model.named_parameters() if not name.startswith("fc.")]


def test_groups_of_a_network_of_timm_are_its_stem_its_blocks_and_the_head():
    """The stem, a block in each of the four stages, the head: five steps from the first to the last."""
    model = timm.create_model("test_resnet", num_classes=3)
    groups = parameter_groups(model, "fc", TrialConfig(layer_decay=0.5, head_lr_multiplier=3))
    starts = [("conv1.", "bn1."), "layer1.0.", "layer2.0.", "layer3.0.", "layer4.0.", "fc."]
    expected = [[name for name, _ in model.named_parameters() if name.startswith(start)] for start in starts]
    assert names_of(model, groups) == expected
    assert sum(map(len, expected)) == len(list(model.parameters()))
    assert [group["multiplier"] for group in groups] == [0.5**5, 0.5**4, 0.5**3, 0.5**2, 0.5, 3]


@pytest.mark.parametrize("model", BUILT)
def test_groups_of_a_network_of_torchvision_are_in_the_order_of_execution(model):
    network = build_unfilled(model, image_size=64).eval()
    head = find_layers(network, model, 64 if model == "vit_b_32" else 224).head
    groups = parameter_groups(network, head, TrialConfig(layer_decay=0.75))
    multipliers = [group["multiplier"] for group in groups]
    assert multipliers == [pytest.approx(0.75**k) for k in range(BUILT[model])][::-1]
    group_of = {id(p): number for number, group in enumerate(groups) for p in group["params"]}
    ran: list[int] = []
    for module in network.modules():
        if own := list(module.parameters(recurse=False)):
            module.register_forward_pre_hook(lambda _, __, own=own: ran.append(max(group_of[id(p)] for p in own)))
    network(torch.zeros(1, 3, 64, 64))
    assert ran == sorted(ran)
    assert set(ran) == set(range(len(groups)))


@pytest.mark.parametrize("model", BLOCKS_OF_TORCHVISION)
def test_each_block_of_a_transformer_of_torchvision_has_a_group(model):
    network = build_unfilled(model)
    groups = parameter_groups(network, network_head(network), TrialConfig(layer_decay=0.5))
    block = re.compile(r"encoder_layer_(\d+)\.|features\.([1357]\.\d+)\.")
    found = [
        {match[1] or match[2] for name in names if (match := block.search(name))} for names in names_of(network, groups)
    ]
    assert [len(blocks) for blocks in found] == [0] + [1] * BLOCKS_OF_TORCHVISION[model] + [0]


def network_head(network):
    """Path of the last Linear."""
    return [name for name, part in network.named_modules() if isinstance(part, nn.Linear)][-1]


DECAYED = ("vit_b_32", "swin_t", "convnext_tiny", "timm:test_vit", "timm:convnext_atto")


@pytest.mark.parametrize("model", DECAYED)
@pytest.mark.parametrize("layer_decay", [1.0, 0.75])
def test_adamw_decays_the_weights_of_layers_alone(model, layer_decay):
    network = build_unfilled(model)
    config = TrialConfig(regularizer="l2", optimizer="adamw", weight_decay=0.05, layer_decay=layer_decay)
    groups = parameter_groups(network, network_head(network), config)
    optimizer = build_optimizer(groups, config, CPU)
    names = names_of(network, optimizer.param_groups)
    decay = {name: group["weight_decay"] for group, own in zip(groups, names, strict=True) for name in own}
    layers = {name for name, part in network.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    assert decay.keys() == dict(network.named_parameters()).keys()
    for name, value in decay.items():
        module, _, last = name.rpartition(".")
        is_weight = last == "in_proj_weight" or (module in layers and last == "weight")
        assert value == (0.05 if is_weight else 0.0), name


def test_adamw_decays_what_timm_decays():
    network = timm.create_model("swin_tiny_patch4_window7_224")
    config = TrialConfig(regularizer="l2", optimizer="adamw", weight_decay=0.05)
    groups = parameter_groups(network, "head.fc", config)
    build_optimizer(groups, config, CPU)
    expected = param_groups_weight_decay(network, 0.05, no_weight_decay_list=network.no_weight_decay())
    assert decay_of(groups) == decay_of(expected)


def decay_of(groups):
    """Identity of each parameter → its weight decay."""
    return {id(p): group["weight_decay"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("model", ["timm:test_resnet", "timm:test_vit"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_all_parameters_decay_with_sgd_and_in_networks_of_batch_norms(model, optimizer):
    network = build_unfilled(model)
    groups = parameter_groups(network, network_head(network), TrialConfig(regularizer="l2", optimizer=optimizer))
    assert (len(groups) == 2) == (optimizer == "sgd" or model == "timm:test_resnet")


def test_groups_leave_out_what_is_not_trained():
    model = timm.create_model("test_resnet", num_classes=3).requires_grad_(False)
    model.fc.requires_grad_(True)
    for layer_decay in (1.0, 0.5):
        groups = parameter_groups(model, "fc", TrialConfig(regularizer="l2_fe", layer_decay=layer_decay))
        assert names_of(model, groups) == [["fc.weight", "fc.bias"]]


def one_group(weights, config, multiplier=1.0):
    return build_optimizer([{"params": [weights], "multiplier": multiplier}], config, CPU)


def test_adamw_is_the_formula():
    """Loshchilov and Hutter, arXiv 1711.05101, algorithm 2, in float64."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=5)
    weights = nn.Parameter(torch.tensor(w))
    optimizer = one_group(weights, TrialConfig(optimizer="adamw", weight_decay=0.3), multiplier=2.0)
    m = v = np.zeros(5)
    for step, lr in enumerate((0.1, 0.05, 0.02), start=1):
        gradient = rng.normal(size=5)
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        adam = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-8)
        w = w - 2 * lr * (adam + 0.3 * w)
        set_learning_rate(optimizer, lr)
        weights.grad = torch.tensor(gradient)
        optimizer.step()
        np.testing.assert_allclose(weights.detach().numpy(), w, rtol=1e-12)


def test_adamw_decays_by_the_default_of_the_method():
    for method, decay in (("l2", 1e-4), ("delta", 0.0)):
        optimizer = one_group(nn.Parameter(torch.ones(1)), TrialConfig(regularizer=method, optimizer="adamw"))
        assert optimizer.param_groups[0]["weight_decay"] == decay


def test_sgd_without_momentum_has_no_nesterov():
    group = one_group(nn.Parameter(torch.ones(1)), TrialConfig(momentum=0.0)).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.0, False)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_state_saved_on_another_kind_of_device_is_used_on_this_one(optimizer):
    config = TrialConfig(optimizer=optimizer)
    weights = nn.Parameter(torch.ones(3))
    ours = one_group(weights, config)
    saved = ours.state_dict()
    saved["param_groups"][0]["fused"] = True  # as on a GPU
    ours.load_state_dict(saved)
    set_device(ours, CPU)
    assert not ours.param_groups[0]["fused"]
    weights.grad = torch.ones(3)
    ours.step()
    assert (weights < 1).all()


def test_momentum_has_no_effect_on_adamw_and_is_not_recorded():
    config = TrialConfig(optimizer="adamw", momentum=0.5, nesterov=False)
    record = config.record()
    assert (record["momentum"], record["nesterov"]) == (None, None)
    assert dataclasses.replace(config, momentum=0.9).same_as(record)
    assert TrialConfig.from_record(record).record() == record
