"""The classes' shares, as offsets of logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from delta_tune.training.class_shares import log_shares, shift_bias


def test_log_shares_are_those_of_the_labels():
    found = log_shares(np.array([0, 0, 0, 2, 2, 1, 0, 0]), 3)
    assert found.dtype == torch.float32
    assert found.exp().tolist() == pytest.approx([5 / 8, 1 / 8, 2 / 8])


def test_class_without_a_label_has_the_share_of_one():
    assert log_shares(np.array([0, 0, 0, 0]), 2).exp().tolist() == pytest.approx([1, 1 / 4])


def test_shift_of_a_bias_is_added_to_the_logits():
    head, inputs, offsets = nn.Linear(4, 3), torch.randn(5, 4), torch.tensor([1.0, -2.0, 0.5])
    before = head(inputs)
    shift_bias(head, offsets)
    torch.testing.assert_close(head(inputs), before + offsets)
    assert head.bias.requires_grad


def test_head_that_is_a_convolution_stays_as_it_is():
    head = nn.Conv2d(4, 3, 1)
    before = head.bias.clone()
    shift_bias(head, torch.ones(3))
    assert torch.equal(head.bias, before)
