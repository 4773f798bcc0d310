from __future__ import annotations

import dataclasses
import math
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from delta_tune.attention.layer_attention import (
    FLAT,
    LayerAttention,
    attention_table,
    flatness_warning,
    from_bytes,
    noise_warning,
    read_attention_weights,
    reliability_messages,
    to_bytes,
    verdict,
)


def layer(losses, reliability=0.9, **others):
    return LayerAttention(losses=np.array(losses, dtype=np.float32), reliability=reliability, images=40, **others)


def test_attention_table_has_losses_weights_and_figures_of_each_layer():
    table = attention_table([("a", layer([-1, 2, 3])), ("b", layer([0, 0], math.nan))]).to_pydict()
    d = np.array([-1.0, 2.0, 3.0])
    z = (d - d.mean()) / d.std() / 5
    w = np.exp(z) / np.exp(z).sum()
    np.testing.assert_allclose(table["W"][0], w, rtol=1e-6)
    assert table["W"][1] == [0.5, 0.5]
    assert table["negative_share"] == pytest.approx([1 / 3, 0])
    assert table["perplexity"] == pytest.approx([np.exp(-(w * np.log(w)).sum()) / 3, 1])
    assert table["estimator"] == ["exact", "exact"]


def test_from_bytes_gives_back_what_to_bytes_was_given():
    put = layer([0.25, -1e-9], 0.5, estimator="first_order", first_order_agreement=0.1)
    found = from_bytes(to_bytes("layer4", put))
    assert found.losses.dtype == np.float32
    assert found.losses.tolist() == put.losses.tolist()
    assert dataclasses.replace(found, losses=put.losses) == put


@pytest.mark.parametrize(
    "table",
    [
        attention_table([("a", layer([1])), ("b", layer([1]))]),
        attention_table([("a", layer([1]))]).drop_columns("d"),
        attention_table([("a", layer([1]))]).drop_columns("d").append_column("d", pa.array(["text"])),
    ],
)
def test_from_bytes_does_not_believe_a_table_of_another_shape(table):
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    with pytest.raises((KeyError, ValueError, TypeError)):
        from_bytes(sink.getvalue().to_pybytes())


def test_describe_gives_reliability_and_images_of_each_layer():
    said = reliability_messages({"a": layer([1], 0.83), "b": layer([1], math.nan)})
    assert said[0].strip() == "Split-half reliability of W: a 0.83 (40 images), b unknown (40 images)."


def test_noise_verdict_names_the_layers_that_are_no_better():
    assert noise_warning({"a": 0.8, "b": 0.6}) is None
    assert "no better than noise in b " in noise_warning({"a": 0.8, "b": 0.2})
    assert "expect no more of delta than of delta_uniform" in noise_warning({"a": 0.1, "b": math.nan})


def normal(channels: int, reliability: float = 0.9) -> LayerAttention:
    """Losses at evenly spaced quantiles of a normal distribution."""
    quantiles = [NormalDist().inv_cdf((i + 0.5) / channels) for i in range(channels)]
    return layer(quantiles, reliability)


def test_flat_weights_are_those_of_losses_among_which_none_stands_out():
    outlier = layer([0.0] * 199 + [1.0], 0.9)
    assert normal(1000).perplexity == pytest.approx(FLAT, abs=5e-4)
    assert flatness_warning({"a": outlier}) is None
    said = flatness_warning({"a": outlier, "b": normal(100), "c": layer([1.0] * 20, 0.9)})
    assert "prefers no channel in b, c (perplexity of W at least 98% of the channels)" in said
    assert "use delta_uniform" in said
    assert "in every layer" in flatness_warning({"b": normal(100)})


def test_weights_that_are_noise_are_not_called_flat_too():
    assert flatness_warning({"a": normal(100, 0.1), "b": normal(100, math.nan)}) is None
    assert verdict({"a": normal(100, 0.1)}) == noise_warning({"a": 0.1})
    assert verdict({"a": normal(100), "b": normal(100, 0.1)}).count("Attention") == 2
    assert verdict({"a": layer([0.0] * 199 + [1.0], 0.9)}) == ""


def test_weights_in_are_those_of_the_exact_losses_where_there_are_any(tmp_path):
    file = tmp_path / "attention.parquet"
    assert read_attention_weights(file) == {}
    quick, exact = layer([0, 3], estimator="first_order"), layer([3, 0])
    pq.write_table(attention_table([("a", quick)]), file)
    assert read_attention_weights(file)["a"].tolist() == quick.weights.tolist()
    pq.write_table(attention_table([("a", quick), ("a", exact), ("b", exact)]), file)
    assert {name: each.tolist() for name, each in read_attention_weights(file).items()} == dict.fromkeys(
        "ab", exact.weights.tolist()
    )
