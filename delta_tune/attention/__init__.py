"""Channel attention: how much each channel of a hooked layer matters to the target task (the paper's section 3.3)."""

from delta_tune.attention.channel_losses import (
    ablation_losses,
    ablation_losses_per_image,
    first_order_losses,
    first_order_losses_per_image,
)
from delta_tune.attention.weights import (
    attention_weights,
    correlation,
    perplexity,
    rank_correlation,
    split_half_reliability,
)

__all__ = [
    "ablation_losses",
    "ablation_losses_per_image",
    "attention_weights",
    "correlation",
    "first_order_losses",
    "first_order_losses_per_image",
    "perplexity",
    "rank_correlation",
    "split_half_reliability",
]
