"""Feature maps of named layers, and the network cut at its head."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.models.feature_maps import feature_maps, head_function, head_inputs
from delta_tune.models.hooked_layers import find_layers

FAMILIES = [
    "resnet18",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "squeezenet1_1",
    "densenet121",
    "shufflenet_v2_x0_5",
    "googlenet",
    "alexnet",
    "timm:tf_efficientnet_lite0",
    "timm:ghostnet_100",
    "timm:dpn68",
    "timm:convnext_atto",
]


def random_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm:"):
        return timm.create_model(name.removeprefix("timm:")).eval()
    options = {"init_weights": False, "aux_logits": False} if name == "googlenet" else {}
    return torchvision.models.get_model(name, **options).eval()


def random_images(size: int = 96) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


class Chain(nn.Module):
    """Everything behind its convolutions writes in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(4, 4, 3, padding=1)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.relu(self.first(images))
        out = self.second(x)
        out += x
        return self.head(out.mul_(2).mean((2, 3)))


@pytest.fixture
def chain() -> Chain:
    torch.manual_seed(0)
    return Chain()


def test_feature_maps_are_raw_outputs_despite_in_place_operations(chain: Chain) -> None:
    images = random_images()
    first = chain.first(images)
    second = chain.second(first.relu())
    with feature_maps(chain, ("first", "second")) as maps:
        logits = chain(images)
    assert torch.equal(maps["first"], first)
    assert torch.equal(maps["second"], second)
    assert torch.equal(logits, chain(images))


@pytest.mark.parametrize("name", FAMILIES)
def test_feature_maps_are_what_each_family_makes_at_that_moment(name: str) -> None:
    model = random_model(name)
    layers = find_layers(model, name).layers
    seen = {}
    handles = [
        model.get_submodule(layer).register_forward_hook(
            lambda module, args, output, layer=layer: seen.update({layer: output.clone()})
        )
        for layer in layers
    ]
    with torch.no_grad(), feature_maps(model, layers) as maps:
        model(random_images())
    for handle in handles:
        handle.remove()
    assert tuple(maps) == layers
    for layer in layers:
        assert torch.equal(maps[layer], seen[layer])


def test_feature_maps_are_copied_only_where_something_writes_into_them(chain: Chain) -> None:
    into = {}
    chain.relu.register_forward_pre_hook(lambda module, args: into.update(first=args[0]))
    images = random_images(8)
    with feature_maps(chain, ("first", "head")) as maps:
        for _ in range(3):
            logits = chain(images)
    assert into["first"] is not maps["first"], "an in-place ReLU follows"
    assert torch.equal(maps["first"], chain.first(images))
    assert logits is maps["head"]


def test_feature_maps_refuse_a_network_that_writes_into_them_later(chain: Chain) -> None:
    chain.relu.inplace = False
    with feature_maps(chain, ("first",)):
        chain(random_images(8))
        chain(random_images(8))
        chain.relu.inplace = True
        chain(random_images(8))
        with pytest.raises(AssertionError, match="first"):
            chain(random_images(8))


def test_feature_maps_are_filled_anew_at_each_forward(chain: Chain) -> None:
    with feature_maps(chain, ("second",)) as maps:
        chain(random_images(8))
        before = maps["second"]
        chain(random_images(12))
        assert before.shape[-1] == 8
        assert maps["second"].shape[-1] == 12


def test_feature_maps_carry_gradients_under_the_callers_mode(chain: Chain) -> None:
    with feature_maps(chain, ("second",)) as maps:
        chain(random_images(8))
        maps["second"].square().sum().backward()
        assert chain.first.weight.grad is not None
        assert chain.head.weight.grad is None
        with torch.inference_mode():
            chain(random_images(8))
        assert not maps["second"].requires_grad


def test_stop_computes_nothing_behind_the_last_layer(chain: Chain) -> None:
    ran = []
    chain.second.register_forward_pre_hook(lambda module, args: ran.append("second"))
    with feature_maps(chain, ("relu", "first"), stop=True) as maps:
        found = dict(maps.run(random_images(8)))
    assert not ran
    assert torch.equal(found["relu"], found["first"].relu())


def test_run_without_stop_goes_to_the_end(chain: Chain) -> None:
    ran = []
    chain.head.register_forward_pre_hook(lambda module, args: ran.append("head"))
    with feature_maps(chain, ("first",)) as maps:
        maps.run(random_images(8))
    assert ran == ["head"]


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_hooks_are_removed_after_an_exception(chain: Chain) -> None:
    def fail() -> None:
        with feature_maps(chain, ("first", "second")):
            assert hooks(chain) == 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert hooks(chain) == 0


def test_hooks_are_removed_where_a_layer_is_unknown(chain: Chain) -> None:
    with pytest.raises(AttributeError), feature_maps(chain, ("first", "third")):
        pass
    assert hooks(chain) == 0


def test_head_inputs_leave_no_hook_after_an_exception(chain: Chain) -> None:
    with pytest.raises(RuntimeError):
        head_inputs(chain, "head", torch.zeros(1, 7, 8, 8))
    assert hooks(chain) == 0


@pytest.mark.parametrize("name", FAMILIES)
def test_tail_of_head_inputs_is_the_model(name: str) -> None:
    model = random_model(name)
    head = find_layers(model, name).head
    images = random_images()
    with torch.no_grad():
        inputs = head_inputs(model, head, images)
        logits = head_function(model, head)(inputs)
        torch.testing.assert_close(logits, model(images), rtol=0, atol=1e-6)


def test_tail_follows_the_heads_parameters(chain: Chain) -> None:
    logits = head_function(chain, "head", image_size=8)
    nn.init.ones_(chain.head.weight)
    nn.init.zeros_(chain.head.bias)
    assert torch.equal(logits(torch.ones(2, 4)), torch.full((2, 5), 4.0))


def test_tail_leaves_modes_and_statistics_alone() -> None:
    model = random_model("timm:lcnet_050").train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    head_function(model, "classifier")
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Doubled(nn.Module):
    """What follows the head depends on its values, so no tracer can cut it out."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, 5, 1)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.head(images)
        return scores.mean((2, 3)) if scores.sum() > 0 else scores.amax((2, 3))


def test_tail_that_cannot_be_cut_out_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be cut out"):
        head_function(Doubled(), "head", image_size=8)
