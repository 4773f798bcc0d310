"""Why the model answers so: where it looked, and which training images look most alike to it."""
