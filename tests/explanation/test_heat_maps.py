"""Heat maps against their definition, and of networks whose answer is known."""

import importlib.util

import numpy as np
import pytest
import torch
from torch import nn

from delta_tune.config import UserError
from delta_tune.explanation import heat_maps as module
from delta_tune.explanation.heat_maps import check_package, heat_maps
from delta_tune.inference.ensemble import combine, members_of
from delta_tune.labels.one_label import ONE_LABEL
from delta_tune.labels.several_labels import SEVERAL_LABELS
from delta_tune.models.hooked_layers import MapLayer
from delta_tune.models.map_layout import MapLayout

SIZE, SIDE, CLASSES = 16, 4, 3
LAYER = MapLayer("maps", SIDE)


class Corners(nn.Module):
    """Class 0 is how bright the upper left quarter is, class 1 the lower right one; no place speaks for class 2."""

    def __init__(self):
        super().__init__()
        self.maps = nn.AvgPool2d(SIZE // SIDE)

    def forward(self, images):
        maps = self.maps(images)
        upper, lower = maps[:, :, :2, :2].mean((1, 2, 3)), maps[:, :, 2:, 2:].mean((1, 2, 3))
        return torch.stack([upper, lower, -maps.mean((1, 2, 3))], 1)


class Small(nn.Module):
    """Maps of either sign, and logits that are no linear function of them."""

    def __init__(self, seed):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.maps = nn.Conv2d(3, 5, 4, 4)
            self.batch_norm = nn.BatchNorm2d(5)
            self.head = nn.Linear(5 * SIDE * SIDE, CLASSES)

    def forward(self, images):
        return self.head(self.batch_norm(self.maps(images)).tanh().flatten(1))


class Tokens(nn.Module):
    """Tokens of either sign behind `prefix` tokens, which an attention layer mixes; the first one is answered by."""

    def __init__(self, prefix):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(prefix)
            self.patches = nn.Conv2d(3, 8, 4, 4)
            self.prefix = nn.Parameter(torch.randn(1, prefix, 8))
            self.maps = nn.Linear(8, 8)
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, CLASSES)

    def forward(self, images):
        patches = self.patches(images).flatten(2).transpose(1, 2)
        return self.answer(self.maps(torch.cat([self.prefix.expand(len(images), -1, -1), patches], 1)))

    def answer(self, tokens):
        return self.head((tokens + self.mix(tokens, tokens, tokens, need_weights=False)[0])[:, 0])


@pytest.fixture
def images():
    return torch.randn(5, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def bilinear(values):
    """(SIDE, SIDE) enlarged to (SIZE, SIZE), position by position."""
    found = np.zeros((SIZE, SIZE))
    for row in range(SIZE):
        for column in range(SIZE):
            y, x = (min(max((place + 0.5) * SIDE / SIZE - 0.5, 0), SIDE - 1) for place in (row, column))
            for i in range(SIDE):
                for j in range(SIDE):
                    found[row, column] += max(0, 1 - abs(y - i)) * max(0, 1 - abs(x - j)) * values[i, j]
    return found


def layer_cam(network, image, wanted):
    """The definition for one image (1, 3, SIZE, SIZE), by loops: (SIDE, SIDE)."""
    maps = network.maps(image).detach().requires_grad_()
    logits = network.head(network.batch_norm(maps).tanh().flatten(1))
    logits[0, wanted].backward()
    products = (maps.grad * maps).detach()
    found = np.zeros((SIDE, SIDE))
    for channel in range(maps.shape[1]):
        for i in range(SIDE):
            for j in range(SIDE):
                found[i, j] += max(0.0, float(products[0, channel, i, j]))
    return found


def share(logits, wanted):
    return logits.softmax(1)[0, wanted].item()


def test_map_is_by_definition_that_of_layer_cam(images):
    network, wanted = Small(0).eval(), [0, 1, 2, 0, 1]
    found = heat_maps(network, LAYER, images, wanted, ONE_LABEL)
    assert found.shape == (5, SIZE, SIZE)
    assert found.dtype == np.float32
    for each, image, label in zip(found, images, wanted, strict=True):
        expected = bilinear(layer_cam(network, image[None], label))
        np.testing.assert_allclose(each, expected / expected.max(), atol=1e-5)


@pytest.mark.parametrize("prefix", [1, 3])
def test_map_of_tokens_leaves_out_those_without_a_place(images, prefix):
    network, wanted = Tokens(prefix).eval(), [0, 1, 2, 0, 1]
    layer = MapLayer("maps", SIDE, MapLayout(channels_last=True, prefix_tokens=prefix))
    found = heat_maps(network, layer, images, wanted, ONE_LABEL)
    for each, image, label in zip(found, images, wanted, strict=True):
        seen = []
        handle = network.maps.register_forward_hook(lambda _, args, output, seen=seen: seen.append(output.detach()))
        network(image[None])
        handle.remove()
        tokens = seen[0].requires_grad_()
        network.answer(tokens)[0, label].backward()
        products = (tokens.grad * tokens).detach()[0]
        expected = np.zeros((SIDE, SIDE))
        for row in range(SIDE):
            for column in range(SIDE):
                place = prefix + SIDE * row + column
                for k in range(8):
                    expected[row, column] += max(0.0, float(products[place, k]))
        expected = bilinear(expected)
        np.testing.assert_allclose(each, expected / expected.max(), atol=1e-5)


@pytest.mark.parametrize(("wanted", "rows"), [(0, slice(0, SIZE // 2)), (1, slice(SIZE // 2, SIZE))])
def test_map_of_a_network_that_looks_at_one_corner_is_there(wanted, rows):
    (found,) = heat_maps(Corners().eval(), LAYER, torch.ones(1, 3, SIZE, SIZE), [wanted], ONE_LABEL)
    assert found.max() == 1
    assert found[rows, rows].mean() > 0.7
    other = slice(SIZE // 2 + 2, SIZE) if wanted == 0 else slice(0, SIZE // 2 - 2)
    assert not found[other].any()
    assert not found[:, other].any()


def test_map_without_evidence_is_zero():
    (found,) = heat_maps(Corners().eval(), LAYER, torch.ones(1, 3, SIZE, SIZE), [2], ONE_LABEL)
    assert not found.any()


def test_map_of_an_image_does_not_depend_on_the_others(images, monkeypatch):
    monkeypatch.setattr(module, "BATCH_SIZE", 2)
    network, wanted = Small(0).eval(), [2, 1, 0, 1, 2]
    together = heat_maps(network, LAYER, images, wanted, ONE_LABEL)
    alone = [
        heat_maps(network, LAYER, image[None], [label], ONE_LABEL)[0]
        for image, label in zip(images, wanted, strict=True)
    ]
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_no_images_have_no_maps(images):
    assert heat_maps(Small(0).eval(), LAYER, images[:0], [], ONE_LABEL).shape == (0, SIZE, SIZE)


def test_map_of_several_networks_is_the_mean_weighted_by_their_share_of_the_probability(images):
    networks = [Small(seed).eval() for seed in range(3)]
    (found,) = heat_maps(combine(networks), LAYER, images[:1], [1], ONE_LABEL)
    total = sum(share(network(images[:1]), 1) * layer_cam(network, images[:1], 1) for network in networks)
    expected = bilinear(total)
    np.testing.assert_allclose(found, expected / expected.max(), atol=1e-5)


def test_shares_are_the_derivatives_of_the_log_of_the_mean_probability(images):
    networks = [Small(seed).eval() for seed in range(3)]
    logits = torch.stack([network(images).log_softmax(1) for network in networks]).detach().requires_grad_()
    logits.logsumexp(0)[:, 1].sum().backward()
    seen = [(network, images, False) for network in networks]
    shares = module._shares(seen, [1] * len(images), ONE_LABEL)
    torch.testing.assert_close(shares.flatten(1), logits.grad[:, :, 1])


def test_networks_with_several_labels_share_by_their_sigmoids(images):
    networks = [Small(seed).eval() for seed in range(2)]
    shares = module._shares([(each, images, False) for each in networks], [2] * len(images), SEVERAL_LABELS)
    each = torch.stack([network(images).sigmoid()[:, 2] for network in networks])
    torch.testing.assert_close(shares.flatten(1), (each / each.sum(0)).detach())


def test_mirror_image_has_the_mirrored_map(images):
    network = combine([Small(0).eval()], flip=True)
    first = heat_maps(network, LAYER, images, [1] * 5, ONE_LABEL)
    mirrored = heat_maps(network, LAYER, images.flip(3), [1] * 5, ONE_LABEL)
    np.testing.assert_allclose(mirrored, first[:, :, ::-1], atol=1e-5)
    alone = heat_maps(members_of(network)[0], LAYER, images, [1] * 5, ONE_LABEL)
    assert np.abs(first - alone).max() > 0.1


def test_prediction_beyond_doubt_has_a_map_too(images):
    networks = [Small(seed).eval() for seed in range(2)]
    for network in networks:
        network.head.weight.data.mul_(1e4)
    wanted = combine(networks)(images).argmax(1).tolist()
    found = heat_maps(combine(networks), LAYER, images, wanted, ONE_LABEL)
    np.testing.assert_array_equal(found.max((1, 2)), 1)


def test_memory_format_does_not_matter(images):
    network, wanted = Small(0).eval(), [0, 1, 2, 0, 1]
    usual = heat_maps(network, LAYER, images, wanted, ONE_LABEL)
    network.to(memory_format=torch.channels_last)
    last = heat_maps(network, LAYER, images.to(memory_format=torch.channels_last), wanted, ONE_LABEL)
    np.testing.assert_allclose(last, usual, atol=1e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_network_stays_as_it_was(images, frozen):
    network = combine([Small(0), Small(1)], flip=True).eval().requires_grad_(not frozen)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    heat_maps(network, LAYER, images, [0] * 5, ONE_LABEL)
    assert not any(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks for part in network.modules())
    assert not any(part.training for part in network.modules())
    assert all(value.grad is None and value.requires_grad is not frozen for value in network.parameters())
    assert not images.requires_grad
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'--explain needs the package captum; .*pip install "delta-tune\[explain\]"'):
        check_package()
