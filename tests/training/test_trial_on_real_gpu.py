"""Trials on a real GPU: what a simulated one cannot see, which is kernels, cuDNN, CUDA graphs and memory."""

import dataclasses
import gc
import logging
import math
from contextlib import contextmanager

import pytest
import torch
from helpers.small_networks import SIDE, small_backbone

from delta_tune.config import METHODS, TrialConfig
from delta_tune.data.loading import load_dataset
from delta_tune.models.backbones import build_target
from delta_tune.models.devices import autocast
from delta_tune.models.feature_maps import feature_maps
from delta_tune.models.map_layout import named_parts
from delta_tune.training.regularizers import behavior
from delta_tune.training.source_maps import SourceMaps
from delta_tune.training.task import Task
from delta_tune.training.trial import run_trial

pytestmark = pytest.mark.gpu


class Preempted(Exception):
    pass


def preempt(row):
    raise Preempted


@pytest.fixture
def fresh(task):
    """The task with nothing measured and no network built, and a GPU that is left as it was."""
    yield dataclasses.replace(task)
    gc.collect()
    torch.cuda.empty_cache()


@contextmanager
def half(monkeypatch, kind):
    """The GPU says that it has bfloat16, or not: then trials train in float16 with scaling, as on a T4."""
    if kind == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bfloat16")
    with monkeypatch.context() as patched:
        patched.setattr(torch.cuda, "is_bf16_supported", lambda *args, **kwargs: kind == "bfloat16")
        yield


def losses(task, config, **options):
    row = run_trial(task, config, **options).epochs[-1]
    return [row["train_loss"], row["val_loss"]]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_trial_agrees_with_the_cpu(fresh, monkeypatch, method, kind):
    config = TrialConfig(regularizer=method, batch_size=12, max_epochs=3)
    expected = losses(dataclasses.replace(fresh), config)
    with half(monkeypatch, kind):
        assert losses(fresh, config, device="cuda") == pytest.approx(expected, rel=0.1, abs=1e-3)


def test_a_trial_with_everything_agrees_with_the_cpu(fresh):
    config = TrialConfig(
        regularizer="delta", batch_size=12, max_epochs=3, average_epochs=0.5, max_grad_norm=1.0, label_smoothing=0.1,
        batch_norm="train", augmentation="resized_crop_flip",
    )  # fmt: skip
    expected = losses(dataclasses.replace(fresh), config)
    assert losses(fresh, config, device="cuda") == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("first", ["bfloat16", "float16"])
@pytest.mark.parametrize("then", ["bfloat16", "float16"])
def test_a_run_resumes_in_the_same_precision_and_in_the_other(fresh, monkeypatch, tmp_path, first, then):
    config = TrialConfig(regularizer="l2", batch_size=12, max_epochs=2)
    with half(monkeypatch, first):
        expected = losses(dataclasses.replace(fresh), config, device="cuda")
        with pytest.raises(Preempted):
            run_trial(fresh, config, preempt, device="cuda", checkpoint=tmp_path)
    with half(monkeypatch, then):
        assert losses(fresh, config, device="cuda", checkpoint=tmp_path) == pytest.approx(expected, rel=0.1)


def test_a_run_of_a_gpu_resumes_on_a_cpu(fresh, tmp_path):
    config = TrialConfig(regularizer="delta_uniform", batch_size=12, max_epochs=2)
    with pytest.raises(Preempted):
        run_trial(fresh, config, preempt, device="cuda", checkpoint=tmp_path)
    expected = losses(dataclasses.replace(fresh), config)
    assert losses(dataclasses.replace(fresh), config, checkpoint=tmp_path) == pytest.approx(expected, rel=0.1)


def test_trials_leave_no_memory_behind(fresh):
    config = TrialConfig(regularizer="delta_uniform", batch_size=12, max_epochs=3, behavior_scale="raw")
    held = []
    for _ in range(4):
        run_trial(fresh, config, device="cuda")
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    assert held[3] <= held[1] * 1.01 + 2**16, held


def test_a_trial_that_runs_out_of_memory_leaves_a_gpu_that_works(fresh):
    config = TrialConfig(regularizer="l2", batch_size=12, max_epochs=2)
    expected = losses(fresh, config, device="cuda")
    gc.collect()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**22) / total)
    try:
        with pytest.raises(RuntimeError, match=r"(?i)out of memory|ALLOC_FAILED"):
            run_trial(fresh, config, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    gc.collect()
    assert losses(fresh, config, device="cuda") == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (32, 256, 14, 14), (3, 64, 56, 56)])
def test_the_behaviour_term_agrees_with_float64(caplog, dtype, layout, shape):
    """Whatever kernel computes it; and where there is a kernel of ours, it is not given up."""
    generator = torch.Generator().manual_seed(0)
    target, source = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    factor = torch.rand(shape[1], generator=generator)
    exact = target.double().requires_grad_()
    expected = 0.5 * (factor.double().view(1, -1, 1, 1) * (exact - source.double()) ** 2).sum() / (
        shape[0] * shape[2] * shape[3]
    )  # fmt: skip
    (gradient,) = torch.autograd.grad(3 * expected, exact)
    ours = target.cuda().to(memory_format=layout).requires_grad_()
    with caplog.at_level(logging.WARNING, logger="delta_tune"):
        found = behavior({"a": ours}, {"a": source.cuda().to(memory_format=layout)}, {"a": factor.cuda()})
        (our_gradient,) = torch.autograd.grad(3 * found, ours)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    limit = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
    assert (our_gradient.cpu().double() - gradient).norm() <= limit * gradient.norm()
    assert caplog.messages == []


def test_the_source_as_a_cuda_graph_gives_the_maps_of_the_plain_pass(fresh, caplog):
    graphs = pytest.importorskip("delta_tune.models.cuda_graph")
    layers = fresh.backbone.layers
    source = fresh.source_model(torch.device("cuda"), layers)
    maps = {}
    for layer in layers:
        source.get_submodule(layer).register_forward_hook(
            lambda m, i, output, layer=layer: maps.update({layer: output})
        )

    def forward(images):
        source(images)
        return dict(maps)

    graphed = graphs.GraphedForward()
    generator = torch.Generator().manual_seed(0)
    # The source holds its weights in half precision.
    with torch.no_grad(), autocast(torch.device("cuda")), caplog.at_level(logging.WARNING, logger="delta_tune"):
        for count in (8, 8, 8, 8, 3, 8):
            images = torch.randn(count, 3, 64, 64, generator=generator).cuda()
            expected = {layer: each.clone() for layer, each in forward(images).items()}
            for layer, found in graphed(forward, images).items():
                torch.testing.assert_close(found, expected[layer], rtol=1e-2, atol=1e-2)
    assert caplog.messages == []


def test_a_delta_trial_gives_up_no_kernel_and_no_graph(fresh, caplog):
    """Wrong or missing kernels fall back with a sentence, which a user may miss and this test must not."""
    config = TrialConfig(regularizer="delta_uniform", batch_size=12, max_epochs=2)
    with caplog.at_level(logging.WARNING, logger="delta_tune"):
        assert math.isfinite(losses(fresh, config, device="cuda")[0])
    assert caplog.messages == []


@pytest.fixture(params=["small_vit", "small_swin", "small_convnext", "small_mixer"])
def of_tokens(request, image_folder):
    """A task of a network whose hooked layers have their channels last."""
    backbone = small_backbone(request.param)
    dataset = load_dataset(image_folder, preprocessing=backbone.preprocessing, seed=0)
    yield Task(dataset=dataset, backbone=dataclasses.replace(backbone, preprocessing=dataset.preprocessing))
    gc.collect()
    torch.cuda.empty_cache()


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_a_trial_of_a_network_of_tokens_agrees_with_the_cpu(of_tokens, monkeypatch, kind):
    config = TrialConfig(regularizer="delta_uniform", lr=1e-3, batch_size=12, max_epochs=3, drop_path=0.0)
    expected = losses(dataclasses.replace(of_tokens), config)
    with half(monkeypatch, kind):
        assert losses(of_tokens, config, device="cuda") == pytest.approx(expected, rel=0.1)


def test_a_network_of_tokens_has_no_behaviour_at_equal_weights_in_half_precision(of_tokens):
    device, backbone = torch.device("cuda"), of_tokens.backbone
    layouts = backbone.layouts_of(backbone.layers)
    target = build_target(backbone, 3, torch.Generator().manual_seed(0)).eval().to(device)
    images = torch.randn(4, 3, SIDE, SIDE, device=device)
    maps = SourceMaps(of_tokens.source_model(device, tuple(layouts)), tuple(layouts), layouts=layouts)
    with torch.no_grad(), autocast(device), maps.hooked(), feature_maps(target, backbone.layers) as ours:
        for _ in range(3):  # plain, captured, replayed
            target(images)
            theirs = maps.after(images, None)
            for name, part in named_parts(ours, layouts).items():
                torch.testing.assert_close(part, theirs[name], rtol=2e-2, atol=2e-2)
