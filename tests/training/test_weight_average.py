from __future__ import annotations

import pytest
import torch
from helpers.simulated_gpu import by_operator, simulated_gpu
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from delta_tune.training.weight_average import WeightAverage


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


def move(model):
    """Change every weight and buffer a little."""
    with torch.no_grad():
        for each in (*model.parameters(), *model.buffers()):
            each += (
                1 if each.dtype == torch.int64 else torch.rand(each.shape, generator=torch.Generator().manual_seed(1))
            )


def test_average_equals_torchs_bit_for_bit():
    model = network()
    ours = WeightAverage(model, 0.9)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    for _ in range(4):
        move(model)
        ours.update()
        theirs.update_parameters(model)
    assert ours.n_averaged == theirs.n_averaged
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_an_update_on_a_gpu_takes_two_launches_and_no_wait():
    with simulated_gpu() as gpu:
        model = network().to("cuda")
        average = WeightAverage(model, 0.5)
        average.update()
        weight, count = model[0].weight, model[1].num_batches_tracked
        expected = 0.5 * weight + 0.5 * (weight + 1)
        with torch.no_grad():
            weight += 1
            count += 7
        gpu.clear()
        average.update()
        assert by_operator(gpu.launches) == {"_foreach_lerp_": 1, "_foreach_copy_": 1}
        assert not gpu.waits
        torch.testing.assert_close(average.module[0].weight, expected)
        assert average.module[1].num_batches_tracked.item() == count.item() == 7


@pytest.mark.parametrize("updates", [1, 2])
def test_first_update_copies(updates):
    model = network()
    average = WeightAverage(model, 0.75)
    start = model[0].weight.detach().clone()
    average.update()
    if updates == 2:
        move(model)
        average.update()
    torch.testing.assert_close(average.module[0].weight, start.lerp(model[0].weight, 0.25) if updates == 2 else start)
