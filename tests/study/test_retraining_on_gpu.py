"""The final training on a simulated GPU."""

from __future__ import annotations

import safetensors.torch
import torch
from helpers.simulated_gpu import simulated_gpu

from delta_tune.config import TrialConfig
from delta_tune.study import retraining
from delta_tune.training.checkpoint import last_weights


def test_the_final_training_runs_on_a_gpu_as_on_the_cpu(task, tmp_path):
    config, found = TrialConfig(regularizer="l2_sp", batch_size=18, max_epochs=1, lr=0.001), {}
    for device in ("cpu", "cuda"):
        folder, threads = tmp_path / device, torch.get_num_threads()
        with simulated_gpu():
            assert retraining._run(retraining.task_with_all_images(task), config, str(folder), device, threads) is None
        found[device] = safetensors.torch.load_file(last_weights(folder))
    for name, weights in found["cpu"].items():
        torch.testing.assert_close(found["cuda"][name], weights, rtol=0.02, atol=0.01)
