"""What the commands that use a model say of their flags."""

from __future__ import annotations

MODEL_FOLDER = "Folder of a study, or its best/; local or at s3://…"
FLIP = "Average the image and its mirror image, which takes twice as long"
