"""One trial: fine-tune one configuration in this process."""
