"""What Tune carries between the study and its workers."""

from __future__ import annotations

OUTCOME = "outcome"
"""Key of a trial's last report where it did not end well: `diverged`, `failed`, `OUT_OF_MEMORY` or `BLOCKED`."""
OUT_OF_MEMORY = "out of memory"
"""The outcome of a trial that its part of a GPU was too small for: it runs again with twice as much."""
BLOCKED = "blocked"
"""The outcome of a trial that a cause outside of it stopped, such as a full disk: the whole run stops with it."""
GPUS = "gpus"
"""Key of a trial's part of a GPU in its Tune configuration."""
WORKER_DIED = "the worker died"
"""How the error begins of a trial that failed through no fault of its configuration."""
NUMBER = "number"
"""Key of a trial's number (from 0, in the order they were proposed) in its Tune configuration."""


TASK = "task"
"""Key of the task that a trial is run on, of those that the run shares, in its Tune configuration."""
