"""State dicts in whatever training scripts wrap them: the same tensors, or one sentence."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.fuzz import cases
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from delta_tune.config import UserError
from delta_tune.models.pretrained_weights import fit_weights
from delta_tune.models.state_dicts import find_state_dict


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2))
        self.block = nn.Sequential(nn.Conv2d(2, 2, 1))
        self.fc = nn.Linear(2, 3)


torch.manual_seed(0)
NET = Tiny()
TENSORS = dict(NET.state_dict())
OTHERS = {key: value + 1 for key, value in TENSORS.items()}
SHAPES = {k: v.shape for k, v in TENSORS.items() if not k.startswith("fc.") and not k.endswith("num_batches_tracked")}

Content = Any
Wrapper = Callable[[Content], Content]


def prefixed(prefix: str, tensors: dict[str, Tensor] = TENSORS) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in tensors.items()}


def loaded(content: Content) -> dict[str, Tensor]:
    """The tensors of the network after it was filled from the content."""
    module = Tiny()
    fit_weights(module, content, "fc", "tiny", "FILE")
    return {key: value for key, value in module.state_dict().items() if not key.startswith("fc.")}


def assert_loads(content: Content) -> None:
    for key, value in loaded(content).items():
        assert torch.equal(value, TENSORS[key]), key


def is_state_dict(content: Content) -> bool:
    return isinstance(content, dict) and any(isinstance(value, Tensor) for value in content.values())


def under_prefix(prefix: str) -> Wrapper:
    def wrap(content: Content) -> Content:
        return prefixed(prefix, content) if is_state_dict(content) else {prefix: content}

    return wrap


def under_key(key: str) -> Wrapper:
    return lambda content: {"epoch": 3, "hyper_parameters": {"lr": 0.1}, key: content, "callbacks": None}


def beside_other_tensors(content: Content) -> Content:
    others = {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}}]}
    return {"state_dict": content} | others


def in_a_list(content: Content) -> Content:
    return [content, {"lr": 0.1}, 7]


def averaged(content: Content) -> Content:
    return {"n_averaged": torch.tensor(3)} | prefixed("module.", content) if is_state_dict(content) else [content]


NAMES = st.text(min_size=1, max_size=8)
WRAPPERS = st.one_of(
    st.sampled_from(["module.", "_orig_mod.", "model.", "net.", "backbone.", "ema.", "a.b.", "stem.", "fc."]).map(
        under_prefix
    ),
    NAMES.map(lambda name: under_prefix(f"{name}.")),
    st.sampled_from(["state_dict", "model", "model_ema", "network", "student"]).map(under_key),
    NAMES.map(under_key),
    st.sampled_from([beside_other_tensors, in_a_list, averaged]),
)


@cases(200)
@given(st.lists(WRAPPERS, max_size=6))
def test_tensors_are_found_in_any_nest_of_wrappers(wrappers: list[Wrapper]) -> None:
    content: Content = TENSORS
    for wrap in wrappers:
        content = wrap(content)
    assert_loads(content)


LEAVES = st.one_of(
    st.none(),
    st.integers(),
    NAMES,
    st.sampled_from([TENSORS, prefixed("module."), OTHERS, {"stem.0.weight": TENSORS["stem.0.weight"]}]),
    st.sampled_from([torch.ones(2), torch.tensor(1), torch.ones(2, 2).to_sparse(), torch.ones(2, device="meta")]),
    st.sampled_from([prefixed("teacher.", OTHERS) | prefixed("student."), TENSORS | prefixed("module.", OTHERS)]),
)
CONTENTS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(NAMES, st.integers(), st.sampled_from(["state_dict", "ema", *TENSORS])), inner, max_size=3
        ),
    ),
    max_leaves=8,
)


@cases(200)
@given(CONTENTS)
def test_any_content_gives_one_networks_tensors_or_one_sentence(content: Content) -> None:
    found, refusal = None, "one sentence about FILE"
    try:
        found = loaded(content)
    except UserError as error:
        refusal = str(error)
    assert "FILE" in refusal
    assert "\n" not in refusal
    assert found is None or any(all(torch.equal(found[key], net[key]) for key in SHAPES) for net in (TENSORS, OTHERS))


def test_wrappers_inside_the_network_are_seen_through() -> None:
    inner = {key.replace("stem.", "stem._orig_mod.module."): value for key, value in TENSORS.items()}
    assert_loads(inner)
    assert_loads({"state_dict": {"n_averaged": torch.tensor(3)} | prefixed("module.", inner)})


def test_average_of_a_parallel_network_is_seen_through() -> None:
    module = Tiny()
    module.load_state_dict(TENSORS)
    assert_loads(AveragedModel(nn.DataParallel(module)).state_dict())


def test_networks_own_module_named_module_is_kept() -> None:
    shapes = {"module.weight": torch.Size([1]), "module.bias": torch.Size([1])}
    tensors = {"module.weight": torch.ones(1), "module.bias": torch.zeros(1)}
    for prefix in ("", "module.", "_orig_mod."):
        assert find_state_dict(prefixed(prefix, tensors), shapes, "FILE")[0].keys() == shapes.keys()


def test_trained_weights_go_before_their_average_which_is_told() -> None:
    module = Tiny()
    note, _ = fit_weights(module, {"model_ema": OTHERS, "model": TENSORS}, "fc", "tiny", "FILE")
    assert torch.equal(module.stem[0].weight, TENSORS["stem.0.weight"])
    assert note == "FILE holds other weights of this network too ('model_ema'); those at 'model' are used."


def test_two_networks_of_equal_standing_are_refused_by_their_places() -> None:
    moco = {"state_dict": prefixed("module.encoder_q.") | prefixed("module.encoder_k.", OTHERS)}
    with pytest.raises(UserError, match=r"2 times .*'state_dict\.module\.encoder_q', 'state_dict\.module\.encoder_k'"):
        loaded(moco)
    with pytest.raises(UserError, match="at 'left', 'right'; save the state dict of one"):
        loaded({"left": TENSORS, "right": OTHERS})


def test_teacher_goes_before_its_student() -> None:
    assert_loads({"student": OTHERS, "teacher": TENSORS})


def test_the_same_weights_twice_are_taken() -> None:
    assert_loads({"state_dict": TENSORS, "best": dict(TENSORS)})


def test_dictionary_that_contains_itself_is_read() -> None:
    content: Content = {"model": TENSORS}
    content["self"] = content
    assert_loads(content)


def test_name_with_and_without_a_wrapper_is_refused() -> None:
    with pytest.raises(UserError, match=r"'stem\.0\.weight' with and without"):
        loaded(TENSORS | prefixed("module.", OTHERS))


def test_part_of_a_wrapped_network_is_named_without_its_wrappers() -> None:
    content = prefixed("model.")
    del content["model.block.0.weight"]
    with pytest.raises(UserError, match=r"1 of .* missing \(block\.0\.weight\); save its whole state_dict"):
        loaded({"state_dict": content})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e300])
def test_weights_that_are_not_finite_are_refused_by_name(value: float) -> None:
    broken = TENSORS["block.0.weight"].double().clone()
    broken[0, 0] = value
    with pytest.raises(UserError, match=r"NaN or Inf in 1 of the .* tensors of tiny \(block\.0\.weight\)"):
        loaded(TENSORS | {"block.0.weight": broken})


def test_integers_are_refused() -> None:
    with pytest.raises(UserError, match=r"1 hold integers, as quantised ones do \(block\.0\.weight\)"):
        loaded(TENSORS | {"block.0.weight": TENSORS["block.0.weight"].int()})
