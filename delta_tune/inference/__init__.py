"""The final model: predict with it, export it, describe it."""
