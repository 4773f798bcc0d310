"""What every architecture has to do, with random weights: CNNs, hybrids, transformers and MLPs of timm and torchvision.

Three of them are in the default run, one of each kind under the marker `slow`, the others under `exhaustive`.
benchmarks/architectures.py examines more; docs/reference/architectures.md has what it found.
"""

import sys
from pathlib import Path

import pytest
import torch

from delta_tune.config import METHODS
from delta_tune.explanation.explain import layer_of
from delta_tune.explanation.heat_maps import heat_maps

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))  # programs, not a package
import architectures

SMALL = ("timm:test_vit", "timm:test_convnext", "timm:mobilenetv3_small_050")
"""In the default run."""
KINDS = (
    *("resnet18", "mobilenet_v2"),  # residual sums, depthwise
    *("squeezenet1_1", "shufflenet_v2_x0_5"),  # concatenated channels and a convolution as head, channels in turns
    "timm:test_nfnet",  # no norms
    *("timm:test_coatnet", "timm:efficientvit_b0", "timm:levit_128s"),  # hybrids: relative, linear; two heads
    *("timm:test_vit_relpos", "timm:vit_tiny_patch16_dinov3_qkvb"),  # mean of tokens; rotary positions, registers
    *("timm:cait_xxs24_224", "timm:pvt_v2_b0", "swin_t"),  # class token at the end; pyramid; windows
    "timm:mixer_s32_224",
)
"""One of each kind, marked `slow`."""
OTHERS = (
    # CNNs
    *("timm:test_resnet", "timm:regnetx_002", "timm:ghostnet_050", "timm:starnet_s050"),
    *("timm:dla46x_c", "timm:cs3darknet_focus_s", "timm:cspnext_tiny", "timm:tf_efficientnet_lite0"),
    *("timm:convnext_atto", "timm:inception_next_atto", "timm:test_mambaout"),
    *("mnasnet0_5", "regnet_y_400mf", "googlenet"),
    # hybrids
    *("timm:edgenext_xx_small", "timm:mobilevit_xxs", "timm:mobilevitv2_050"),
    *("timm:efficientvit_m0", "timm:efficientformerv2_s0", "timm:iformer_t"),
    *("timm:repvit_m0_9", "timm:fastvit_t12", "timm:visformer_tiny", "timm:vit_tiny_r_s16_p8_224"),
    # transformers
    *("timm:vit_tiny_patch16_224", "timm:deit_tiny_patch16_224", "timm:pit_ti_224", "timm:xcit_nano_12_p16_224"),
    *("timm:convit_tiny", "timm:coat_tiny", "timm:swin_tiny_patch4_window7_224"),
    # MLPs and pooling
    *("timm:gmlp_ti16_224", "timm:resmlp_12_224", "timm:poolformer_s12"),
)
"""Marked `exhaustive`."""
EXPORTED = (
    *("timm:test_coatnet", "swin_t", "timm:mixer_s32_224"),
    *("timm:convnext_atto", "timm:vit_tiny_patch16_224", "timm:swin_tiny_patch4_window7_224"),
)
"""Those besides whose files are compared here; benchmarks/architectures.py compares those of all networks, in all
formats."""
SIZE = 64


def marked(names):
    """Networks as parameters, with the marker of their list."""
    return [pytest.param(name, marks=getattr(pytest.mark, "slow" if name in KINDS else "exhaustive")) for name in names]


@pytest.fixture(scope="module", params=[*SMALL, *marked(KINDS + OTHERS)])
def task(request, tmp_path_factory):
    return architectures.task_of(request.param, SIZE, tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def model(task, tmp_path_factory):
    return architectures.saved_model(task, tmp_path_factory.mktemp("model"))


def test_at_least_forty_architectures_are_tried():
    assert len({*SMALL, *KINDS, *OTHERS}) >= 40


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_step(task, method):
    assert architectures.step(task, method) == ""


def test_attention_is_that_of_a_naive_loop(task):
    _, apart = architectures.attention(task)
    assert apart <= architectures.TOLERANCE


def test_loaded_model_predicts_what_was_saved(task, model):
    assert architectures.prediction_gap(task, model) <= 1e-4


def test_heat_maps_are_finite_and_have_a_brightest_place(task, model):
    _, images, labels = architectures.probe(task)
    found = torch.from_numpy(heat_maps(model.network, layer_of(model), images, labels.tolist(), model.kind))
    assert found.shape == (2, SIZE, SIZE)
    assert found.isfinite().all()
    assert found.amax((1, 2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    "task", [*(pytest.param(name, marks=pytest.mark.slow) for name in SMALL), *marked(EXPORTED)], indirect=True
)
def test_onnx_answers_as_predict(model, tmp_path):
    assert architectures.export(model, "onnx", tmp_path) == ""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize("task", SMALL, indirect=True)
@pytest.mark.parametrize("kind", ["torchscript", "torch_export", "state_dict"])
def test_other_files_answer_as_predict(model, kind, tmp_path):
    assert architectures.export(model, kind, tmp_path) == ""
