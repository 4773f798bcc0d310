"""The layer of heat maps."""

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

from delta_tune.config import UserError
from delta_tune.models.hooked_layers import HEAT_MAP_SIDE, find_layers, heat_map_layer
from delta_tune.models.map_layout import MapLayout

FAMILIES = ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121", "alexnet", "timm:convnext_atto"]


def random_model(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name.startswith("timm:"):
        return timm.create_model(name.removeprefix("timm:")).eval()
    return torchvision.models.get_model(name).eval()


def random_images(size: int) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def map_side(network, layer, size):
    sides = []
    handle = network.get_submodule(layer).register_forward_hook(lambda module, args, output: sides.append(output.shape))
    with torch.no_grad():
        network(random_images(size))
    handle.remove()
    assert sides[0][2] == sides[0][3]
    return sides[0][3]


@pytest.mark.parametrize("family", FAMILIES)
def test_heat_map_layer_is_one_that_all_evidence_goes_through(family):
    network = random_model(family)
    layer = heat_map_layer(network, find_layers(network, family).head, 96)
    assert layer.side == map_side(network, layer.name, 96) >= HEAT_MAP_SIDE
    network.get_submodule(layer.name).register_forward_hook(lambda module, args, output: torch.zeros_like(output))
    with torch.no_grad():
        first, second = network(random_images(96))
    torch.testing.assert_close(first, second)  # of two images: nothing went past the layer


@pytest.mark.parametrize(("size", "side"), [(96, 12), (160, 10), (224, 14), (320, 10)])
def test_heat_map_layer_is_the_last_with_ten_positions_a_side(size, side):
    network = random_model("resnet18")
    assert heat_map_layer(network, "fc", size).side == side


def test_of_blocks_of_as_many_tokens_it_is_the_last_but_two():
    network = random_model("timm:test_vit")
    layer = heat_map_layer(network, "head", 160)
    assert layer == ("blocks.3", 10, MapLayout(channels_last=True, prefix_tokens=1))


def test_tokens_that_a_class_token_no_longer_sees_have_no_heat_map():
    """PiT pools its tokens between stages; at this size the last stage has enough of them, but answers without them."""
    network = timm.create_model("pit_ti_224", img_size=352).eval()
    layer = heat_map_layer(network, "head", 352)
    assert layer.name == "transformers.2.blocks.2"
    assert layer.side >= HEAT_MAP_SIDE


def test_of_a_small_image_the_finest_block_counts():
    assert heat_map_layer(random_model("resnet18"), "fc", 32)[:2] == ("layer1.1", 8)


def test_pooling_that_enlarges_does_not_count():
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(20), nn.Flatten(), nn.Linear(1600, 2)).eval()
    assert heat_map_layer(network, "3", 64)[:2] == ("0", 8)


def test_channels_other_than_rgb_are_known():
    network = nn.Sequential(nn.Conv2d(5, 4, 4, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    assert heat_map_layer(network, "3", 64, channels=5)[:2] == ("0", 16)


def test_network_without_positions_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Linear(4, 2)).eval()
    with pytest.raises(UserError, match="At 8 pixels every feature map of this Sequential has a single position"):
        heat_map_layer(network, "2", 8)
