"""Why a model answers as it does: where it looked, which channels matter, and which training images are alike."""
