"""Networks for images of other channels than RGB, against timm's own adaptation and against the network for RGB."""

import numpy as np
import pytest
import timm
import torch
import torchvision

from delta_tune.config import UserError
from delta_tune.data.augmentation import center_crop
from delta_tune.models import architectures
from delta_tune.models.backbones import build_source, build_source_head, build_target, load_backbone
from delta_tune.models.network_state import rebuild, state_arrays

LITE = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Model → a file of random weights."""
    place = tmp_path_factory.mktemp("weights")

    def save(model):
        file = place / f"{model}.pth"
        if not file.exists():
            torch.manual_seed(0)
            known = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
            module = timm.create_model(model) if model == LITE else torchvision.models.get_model(model, **known)
            torch.save(module.state_dict(), file)
        return str(file)

    return save


@pytest.mark.parametrize("channels", [1, 2, 4, 5])
def test_the_first_convolution_is_adapted_as_timm_does(weights, channels):
    overlay = {"file": weights(LITE)}
    expected = timm.create_model(LITE, pretrained=True, in_chans=channels, pretrained_cfg_overlay=overlay)
    found = load_backbone(f"timm:{LITE}", weights(LITE), 64, channels)
    for name, value in expected.state_dict().items():
        if not name.startswith("classifier"):
            assert np.array_equal(found.state[name], value.numpy()), name


@pytest.mark.parametrize("model", ["resnet18", "googlenet", "mobilenet_v3_small", "densenet121", "squeezenet1_1"])
def test_an_rgb_image_twice_is_the_rgb_image(weights, model):
    rgb, twice = (load_backbone(model, weights(model), 64, channels) for channels in (3, 6))
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3), dtype=np.uint8))
    images = center_crop(pixels, rgb.preprocessing)
    both = center_crop(pixels.repeat(1, 1, 1, 2), twice.preprocessing)
    assert both.shape == (2, 6, 64, 64)
    with torch.no_grad():
        expected, found = build_source(rgb)(images), build_source(twice)(both)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert rgb.fingerprint != twice.fingerprint


def test_a_grey_image_is_the_rgb_image_with_equal_channels(weights):
    rgb, grey = (load_backbone(f"timm:{LITE}", weights(LITE), 64, channels) for channels in (3, 1))
    assert grey.preprocessing.mean == (sum(rgb.preprocessing.mean) / 3,)
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 80, 80, 1), dtype=np.uint8))
    with torch.no_grad():
        expected = build_source(rgb)(center_crop(pixels.expand(-1, -1, -1, 3), rgb.preprocessing))
        found = build_source(grey)(center_crop(pixels, grey.preprocessing))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def test_source_target_and_what_is_rebuilt_have_the_same_first_convolution(weights):
    backbone = load_backbone("resnet18", weights("resnet18"), 64, 5)
    target = build_target(backbone, 4, torch.Generator().manual_seed(0))
    again = rebuild(backbone, state_arrays(target), torch.device("cpu"))
    source = build_source(backbone)
    for network in (target, again, source):
        assert network.conv1.weight.shape == (64, 5, 7, 7)
        assert torch.equal(network.conv1.weight, source.conv1.weight)
    assert backbone.head_fault == ""
    _, logits = build_source_head(backbone, torch.device("cpu"))
    assert logits(torch.zeros(2, 512)).shape == (2, 1000)


def test_weights_that_have_the_channels_are_taken_as_they_are(weights, tmp_path):
    module = torchvision.models.resnet18()
    module.conv1 = torch.nn.Conv2d(5, 64, 7, 2, 3, bias=False)
    torch.save(module.state_dict(), tmp_path / "five.pth")
    found = load_backbone("resnet18", str(tmp_path / "five.pth"), 64, 5)
    assert np.array_equal(found.state["conv1.weight"], module.conv1.weight.detach().numpy())
    with pytest.raises(UserError, match=r"conv1.weight \(64, 5, 7, 7\) instead of \(64, 3, 7, 7\)"):
        load_backbone("resnet18", str(tmp_path / "five.pth"), 64, 4)


def test_a_note_tells_how_the_weights_are_adapted(weights):
    one, five = (load_backbone("resnet18", weights("resnet18"), 64, channels).notes[-1] for channels in (1, 5))
    assert one.startswith(
        "The input has 1 channel: the weights of the first convolution for red, green and blue are added."
    )
    assert "repeated in turn and scaled by 3/5" in five
    assert load_backbone("resnet18", weights("resnet18"), 64).notes == ()


def test_a_network_without_a_convolution_of_rgb_is_refused(monkeypatch):
    monkeypatch.setattr(architectures, "input_convolution", lambda module: "")
    with pytest.raises(UserError, match="takes RGB images only"):
        architectures.build_unfilled("resnet18", channels=4)
