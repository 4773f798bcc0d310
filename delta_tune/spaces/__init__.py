"""Search spaces: define-by-run functions in Optuna's idiom, loaded, checked and extended."""

from delta_tune.spaces.space import SpaceTrial

__all__ = ["SpaceTrial"]
