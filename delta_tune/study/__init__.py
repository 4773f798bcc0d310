"""A whole study, from its settings to its model."""
