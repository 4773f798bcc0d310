"""From labelled images on disk to batches of tensors."""
