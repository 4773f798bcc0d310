from __future__ import annotations

import pytest

from delta_tune.cluster import Cluster
from delta_tune.config import UserError


@pytest.mark.parametrize(
    ("cpus_per_trial", "gpus_per_trial", "slots"),
    [
        (1, 0, 16),
        (4, 0, 4),
        (1, 1, 4),
        (1, 2, 2),
        (1, 0.5, 8),
        (1, 0.3333, 12),
        (1, 0.4, 8),  # two on a GPU: the fifths that are left over are on different ones
        (3, 0.5, 5),
        (0.5, 0.1, 32),
    ],
)
def test_slots_are_what_fits_at_a_time(cpus_per_trial, gpus_per_trial, slots):
    cluster = Cluster(where="this machine", nodes=1, cpus=16, gpus=4)
    assert cluster.slots(cpus_per_trial, gpus_per_trial) == slots


@pytest.mark.parametrize(("cpus", "gpus", "flag"), [(17, 0, "--cpus-per-trial"), (1, 5, "--gpus-per-trial")])
def test_a_trial_that_never_fits_is_refused(cpus, gpus, flag):
    with pytest.raises(UserError, match=flag):
        Cluster(where="this machine", nodes=1, cpus=16, gpus=4).slots(cpus, gpus)
