"""Results sent to MLflow and Weights & Biases."""
