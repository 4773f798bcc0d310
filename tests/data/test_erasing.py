from __future__ import annotations

import torch
from torchvision.transforms import RandomErasing

from delta_tune.data.erasing import erase, erased_boxes

SIZE = 97


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_boxes_follow_torchvisions_law():
    count = 4000
    boxes = erased_boxes(torch.rand(count, 22, generator=generator()), SIZE)
    assert boxes.min() >= 0
    assert (boxes[:, :2] + boxes[:, 2:]).max() <= SIZE
    torch.manual_seed(0)
    image = torch.empty(3, SIZE, SIZE)
    law = torch.tensor([RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(count)])
    for column in range(4):
        quantiles = torch.linspace(0.05, 0.95, 10)
        found, expected = (b[:, column].float().quantile(quantiles) for b in (boxes, law))
        assert (found - expected).abs().max() < 4  # pixels, of 97


def test_box_that_never_fits_is_empty():
    assert erased_boxes(torch.full((1, 22), 0.9999), SIZE)[0, 2:].tolist() == [0, 0]


def test_erases_one_box_of_the_share_of_images():
    images = torch.ones(400, 3, 20, 20)
    erased = erase(images, 0.25, generator()) == 0
    assert torch.equal(erased[:, 0], erased[:, 1])
    assert torch.equal(erased[:, 0], erased[:, 2])
    touched = erased.any(dim=(1, 2, 3))
    assert 70 < touched.sum() < 130  # 100 expected, standard deviation 9
    for mask in erased[touched, 0]:
        area = mask.any(1).sum() * mask.any(0).sum()
        assert mask.sum() == area, "a rectangle"
        assert 0.01 < area / 400 < 0.36


def test_probability_one_erases_of_every_image():
    assert (erase(torch.ones(50, 3, 20, 20), 1.0, generator()) == 0).any(dim=(1, 2, 3)).all()


def test_erased_images_stay_channels_last_and_the_given_ones_stay_whole():
    images = torch.ones(4, 3, 20, 20).contiguous(memory_format=torch.channels_last)
    assert erase(images, 1.0, generator()).is_contiguous(memory_format=torch.channels_last)
    assert images.min() == 1
