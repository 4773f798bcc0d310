from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from delta_tune.attention_store import (
    LayerAttention,
    describe_reliability,
    measure_attention,
    read_attention,
    write_attention,
)


def layer(losses, reliability=0.9):
    return LayerAttention(losses=np.array(losses, dtype=np.float32), reliability=reliability)


def test_write_attention_stores_losses_weights_and_figures_per_layer(tmp_path):
    write_attention(tmp_path / "x.parquet", {"a": layer([-1, 2, 3]), "b": layer([0, 0], float("nan"))})
    table = pq.read_table(tmp_path / "x.parquet").to_pydict()
    d = np.array([-1.0, 2.0, 3.0])
    z = (d - d.mean()) / d.std() / 5
    w = np.exp(z) / np.exp(z).sum()
    np.testing.assert_allclose(table["W"][0], w, rtol=1e-6)
    assert table["W"][1] == [0.5, 0.5]
    assert table["negative_share"] == pytest.approx([1 / 3, 0])
    assert table["perplexity"] == pytest.approx([np.exp(-(w * np.log(w)).sum()) / 3, 1])


def test_read_attention_gives_back_what_was_written(tmp_path):
    write_attention(tmp_path / "x.parquet", {"a": layer([0.25, -1e-9], 0.5)})
    (found,) = read_attention(tmp_path / "x.parquet").values()
    assert found.losses.dtype == np.float32
    assert found.losses.tolist() == layer([0.25, -1e-9]).losses.tolist()
    assert found.reliability == 0.5


def test_measure_attention_mean_of_the_images_losses():
    per_image = torch.rand(6, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(measure_attention(per_image, 0).losses, per_image.numpy().mean(0), rtol=1e-6)


def test_measure_attention_is_reliable_for_a_signal_and_not_for_noise():
    generator = torch.Generator().manual_seed(0)
    signal = torch.linspace(-1, 1, 50).expand(200, 50)
    noise = torch.randn(200, 50, generator=generator)
    assert measure_attention(signal + 0.1 * noise, 0).reliability > 0.95
    assert abs(measure_attention(noise, 0).reliability) < 0.5


def test_measure_attention_of_too_few_images_has_no_reliability():
    assert np.isnan(measure_attention(torch.rand(3, 5), 0).reliability)


def test_describe_reliability_says_when_weights_are_mostly_noise():
    assert "mostly noise" not in describe_reliability({"a": layer([1], 0.8)})
    assert "mostly noise in b" in describe_reliability({"a": layer([1], 0.8), "b": layer([1], 0.2)})
    assert "no more of delta than" in describe_reliability({"a": layer([1], float("nan"))})
