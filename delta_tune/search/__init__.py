"""The search: Optuna proposes trials, ASHA stops them, Ray Tune runs them, workers train them."""
