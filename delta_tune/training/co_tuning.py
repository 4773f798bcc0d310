"""Co-Tuning (You et al., NeurIPS 2020): the source's own head is trained along, towards the classes that it knows.

`learn_relationship` measures once which source classes go with which target class; `SourceHead` computes the loss term.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from delta_tune.attention.probe_head import fit_head
from delta_tune.config import UserError
from delta_tune.filesystem.cache import Cache
from delta_tune.models.backbones import Backbone, build_source_head
from delta_tune.models.devices import torch_threads
from delta_tune.results.calibration import fit_temperature
from delta_tune.training.source_files import SMALL_ARRAYS_BYTES, key_array
from delta_tune.training.workplace import Say

RELATIONSHIP_RECIPE = "reverse; logistic regression, penalty and temperature held out; 1"
PENALTIES = tuple(10.0**-n for n in range(1, 9))
"""Candidate penalties of the regression, chosen on held-out images. Each fit begins where the one before ended."""
BATCH = 1024


def learn_relationship(
    backbone: Backbone, features: np.ndarray, labels: np.ndarray, num_classes: int, seed: int, device: torch.device
) -> npt.NDArray[np.float32]:
    """The source classes that go with each target class, p(y_s | y_t), by what the source predicts on train.

    Args:
        backbone: with a head of its own.
        features: the head's inputs of un-augmented training images, (N, D) or (N, C, h, w).
        labels: (N,) target classes.
        num_classes: of the target, C_t.
        seed: of the images that the regression is not fitted to.
        device: to compute on.

    Returns:
        Float32 (C_t, C_s); each row sums to 1.

    Raises:
        UserError: the source's predictions are not finite.
    """
    _, logits = build_source_head(backbone, device)
    with torch_threads(1), torch.no_grad():  # one thread: the result must not depend on the number of cores
        batches = torch.split(torch.tensor(features), BATCH)
        probabilities = torch.cat([logits(batch.to(device)).float().softmax(1) for batch in batches])
    if not probabilities.isfinite().all():
        raise UserError(
            f"The source's own classifier in the weights {backbone.weights} of {backbone.model} predicts what is not "
            "finite, and Co-Tuning learns from it; give other weights, or do without trials of co_tuning (--set "
            "co_tuning=0)."
        )
    return category_relationship(probabilities, torch.tensor(labels, device=device), num_classes, seed)


def category_relationship(
    probabilities: Tensor, labels: Tensor, num_classes: int, seed: int
) -> npt.NDArray[np.float32]:
    """p(y_s | y_t) by the paper's reverse approach, as `learn_relationship` returns it.

    A logistic regression without bias predicts the target class from the source's probabilities. What it predicts for a
    certain source class is p(y_t | y_s); Bayes' rule with the mean probabilities as p(y_s) turns it round. It is fitted
    to four fifths of the images. The others, drawn with the seed, choose its L2 penalty, the smallest down to which
    their loss falls, and the temperature of its predictions.

    Args:
        probabilities: the source's, (N, C_s).
        labels: (N,) target classes.
        num_classes: C_t.
        seed: of the held-out images.
    """
    regression = nn.Linear(probabilities.shape[1], num_classes, bias=False, device=labels.device)
    nn.init.zeros_(regression.weight)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels))).to(labels.device)
    held_out, rest = (order[: len(order) // 5], order[len(order) // 5 :]) if len(order) >= 5 else (order, order)
    fitted, fitted_labels = probabilities[rest], labels[rest]
    held, held_labels = probabilities[held_out], labels[held_out]
    weight, least = regression.weight.clone(), np.inf
    with torch_threads(1):
        for penalty in PENALTIES:
            fit_head(regression, regression, fitted, fitted_labels, penalty)
            loss = F.cross_entropy(regression(held), held_labels).item()
            if loss >= least:
                break
            weight, least = regression.weight.clone(), loss
    predicted = held @ weight.detach().T
    temperature = fit_temperature(predicted.cpu().numpy(), held_labels.cpu().numpy())
    target_given_source = (weight.detach().double().T / temperature).softmax(1)
    joint = (target_given_source * probabilities.mean(0, dtype=torch.float64)[:, None]).T
    relationship = (joint / joint.sum(1, keepdim=True)).float().cpu().numpy()
    return np.ascontiguousarray(relationship)


class SourceHead:
    """The source's own head, which a trial trains beside the target's on the same features and then drops."""

    def __init__(self, backbone: Backbone, relationship: np.ndarray, device: torch.device) -> None:
        """Build it with the source's weights; `relationship` is what `learn_relationship` returned."""
        self.module, self._logits = build_source_head(backbone, device)
        self._relationship = torch.tensor(relationship, device=device)

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of its predictions with p(y_s | y_t), a float32 scalar.

        Args:
            features: the head's inputs, (B, D) or (B, C, h, w).
            labels: target classes (B,), or their shares (B, C_t) in mixed images.
        """
        logits = self._logits(features)
        with torch.autocast(features.device.type, enabled=False):
            hard = labels.ndim == 1
            wanted = self._relationship[labels] if hard else labels.float() @ self._relationship
            return F.cross_entropy(logits.float(), wanted)


def relationship_to_bytes(relationship: np.ndarray, key: str) -> bytes:
    """The content of its file in the cache."""
    return bytes(safetensors.numpy.save({"relationship": relationship, "key": key_array(key)}))


def read_relationship(
    cache: Cache, name: str, key: str, shape: tuple[int, int], say: Say
) -> npt.NDArray[np.float32] | None:
    """The relationship in a file; None if there is none, or it is damaged.

    Args:
        cache: where the file is.
        name: of the file.
        key: of what the relationship should have been learnt from.
        shape: classes of the target and of the source.
        say: called with a sentence about a damaged file.
    """
    try:
        content = cache.read(name, 4 * shape[0] * shape[1] + SMALL_ARRAYS_BYTES)
        if content is None:
            return None
        arrays: dict[str, Any] = safetensors.numpy.load(content)
        if not np.array_equal(arrays["key"], key_array(key)):
            raise ValueError("it was learnt from something else")
        found: npt.NDArray[np.float32] = arrays["relationship"]
        if found.shape != shape or found.dtype != np.float32:
            raise ValueError(f"it is {found.dtype} of the shape {found.shape}")
        if not ((found >= 0).all() and np.allclose(found.sum(1), 1, atol=1e-3)):
            raise ValueError("its rows are no probabilities")
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        say(f"Source: {cache.path(name)} is damaged ({error}) and learnt again.")
        return None
    return found
