"""The probe of a token network: head inputs, head, exact losses and first order of the layers that are hooked."""

from __future__ import annotations

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from delta_tune.attention.measurement import ProbeJob
from delta_tune.attention.probe_head import fit_probe_head
from delta_tune.models.backbones import build_source, load_backbone
from delta_tune.models.feature_maps import head_inputs

CLASSES, IMAGES, PIXELS = 3, 6, 32


def test_probe_of_a_token_network_switches_channels_off_in_all_tokens(tmp_path):
    torch.manual_seed(0)
    network = timm.create_model("test_vit", num_classes=10, img_size=PIXELS)
    for parameter in network.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0, 1.5 / parameter.shape[1] ** 0.5)
    save_file(network.state_dict(), tmp_path / "vit.safetensors")
    backbone = load_backbone("timm:test_vit", str(tmp_path / "vit.safetensors"), PIXELS)
    assert all(backbone.layouts[layer].channels_last for layer in backbone.layers)

    rng, device = np.random.default_rng(0), torch.device("cpu")
    pixels = rng.integers(0, 256, (IMAGES, PIXELS, PIXELS, 3), dtype=np.uint8)
    labels = np.arange(IMAGES) % CLASSES
    with torch.no_grad():
        images = torch.randn(IMAGES, 3, PIXELS, PIXELS)
        features = head_inputs(build_source(backbone), backbone.head, images).numpy()
    head = fit_probe_head(backbone, features, labels, CLASSES, 0, device)
    layers = (backbone.layers[0], backbone.layers[-1])
    job = ProbeJob(
        backbone=backbone, head=head.state, num_classes=CLASSES, pixels=pixels, labels=labels, layers=layers,
        estimator="exact",
    )  # fmt: skip
    worker = job.on(device)
    found, estimate = worker.losses(range(IMAGES), layers), worker.first_order(range(IMAGES), layers)
    images, targets = worker._batch(range(IMAGES))
    for layer in layers:
        with torch.no_grad():
            intact = F.cross_entropy(worker.model(images), targets, reduction="none")
            for channel in (0, 17, 63):

                def off(module, inputs, output, channel=channel):
                    output = output.clone()
                    output[:, :, channel] = 0
                    return output

                handle = worker.model.get_submodule(layer).register_forward_hook(off)
                naive = F.cross_entropy(worker.model(images), targets, reduction="none") - intact
                handle.remove()
                torch.testing.assert_close(found[layer][:, channel], naive, rtol=1e-4, atol=1e-5)
        assert float(found[layer].abs().mean()) > 1e-3
        assert estimate[layer].shape == found[layer].shape == (IMAGES, 64)
