"""Why a model answers as it does: where in an image it finds evidence for a class."""
