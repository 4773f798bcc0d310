"""`best/README.md`, the model card: what the model is, how accurate it is, and its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from delta_tune.config import FIRST_MODEL
from delta_tune.console.escape import markdown_name
from delta_tune.filesystem.atomic import atomic_write
from delta_tune.inference.card_metadata import card_metadata
from delta_tune.inference.model_config import model_thresholds, read_config
from delta_tune.results.layout import CARD_FILE
from delta_tune.results.study_record import StudyRecord

MANY_CLASSES = 20
TEMPLATE = """\
{{ metadata }}\
# {{ name | as_name }}

{{ backbone | as_name }}, \
{% if method == first_model %}frozen, with a fitted linear classifier\
{% else %}fine-tuned with {{ method | as_name }}{% endif %}
 to {% if thresholds %}find {{ classes | length }} labels in an image, any number of them{% else %}\
tell {{ classes | length }} classes apart{% endif %}: \
{{ classes[:many] | map("as_name") | join(", ") }}{{ " …" if classes | length > many }}.

```python
import delta_tune

model = delta_tune.load("best")  # this folder
model.predict(["photo.jpg"])  # {{ "labels" if thresholds else "label" }} and probability of each image
```

`model.safetensors` holds the weights{% if networks > 1 %} of the first of {{ networks }} networks, whose \
probabilities are averaged, `model-2.safetensors` and so on those of the others{% endif %}, \
`config.json` all that another program needs: classes, preprocessing, backbone.

## Data

{{ data | as_name }}: {{ images }} images. \
Input: {{ preprocessing.image_size }} × {{ preprocessing.image_size }} pixels, \
{{ input }} ({{ preprocessing.interpolation }}); {{ colours }} in [0, 1] \
less {{ preprocessing.mean | join(", ") }}, divided by {{ preprocessing.std | join(", ") }}.

## Metrics

| | |
|---|---|
{% for what, value in metrics %}
| {{ what }} | {{ value }} |
{% endfor %}

{% for sentence in sentences %}
{{ sentence }}

{% endfor %}
## Method

{{ method | as_name }}{% if epoch %}, the weights after epoch {{ epoch }}{% endif %} ({{ origin }}):

```json
{{ config }}
```

{% if hooks %}
{{ hooks }}

{% endif %}
## Limits

- {% if thresholds %}It answers with the labels whose probability is at least \
{% if thresholds | min == thresholds | max %}{{ "%.2g" | format(thresholds | min) }}\
{% else %}their threshold in `config.json` ({{ "%.2g" | format(thresholds | min) }} to \
{{ "%.2g" | format(thresholds | max) }}, chosen for a high F1 on images that its runs were not trained on)\
{% endif %}, which may be none; \
{% else %}Whatever it is shown, it answers with one of its classes; \
{% endif %}
{% if temperature %}its probabilities are calibrated: logits are divided by the temperature {{ temperature }}.
{% else %}its probabilities have not been calibrated.
{% endif %}
- The figures hold for images such as those of {{ data | as_name }}; nothing else was tried.
{% for limit in limits %}
- {{ limit }}
{% endfor %}
"""


_INPUT = {
    "crop": "the centre of the image scaled to {stored_size}",
    "squash": "the whole image, its proportions not kept",
    "letterbox": "the whole image, its long side scaled to {image_size}, with a border of the mean colour",
}
"""What the network sees of an image, by `Preprocessing.resize`."""


def _colours(preprocessing: Mapping[str, Any]) -> str:
    """What the channels are, and where it does not go without saying, what is white."""
    channels, white = preprocessing.get("channels", 3), preprocessing.get("white")
    named = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
    return named if white is None else f"{named} ({white:g} in images of more than 8 bits is 1)"


def write_model_card(
    best: Path, record: StudyRecord, sentences: Sequence[str], *, retrained: bool, hooks: str = ""
) -> None:
    """Write the model card beside the model.

    Args:
        best: the model's folder.
        record: of the study.
        sentences: findings of the study, such as the confirmation's result.
        retrained: whether the model was trained after the search; its metrics are then those of other runs.
        hooks: a sentence on the layers that its method compared; empty if they go without saying.
    """
    told = read_config(best)
    scored, thresholds = record.scoring, model_thresholds(told)
    metrics, limits = [], []
    for name, value in told["metrics"].items():
        what = ", mean of the confirmation's runs" if retrained else ""
        what = ", of images that its runs were not trained on" if record.held_out is not None else what
        what = ", when it was fitted to train alone" if told.get("fitted_to") else what
        chosen = ", by which it was chosen" if name == record.metric and record.held_out is None else ""
        metrics.append((f"{name.replace('_', ' ')}{what}{chosen}", f"{value:.4g}"))
    if scored is None and retrained:
        limits.append("It was itself never scored: the metric is that of other runs of its configuration.")
    elif scored is None and told.get("fitted_to"):
        limits.append("It was itself never scored: its metrics are of the same classifier, fitted to train alone.")
    elif scored is None:
        limits.append("It was never scored on images that had no part in choosing it: its metrics flatter.")
    else:
        name = "test accuracy" if scored.said.startswith("accuracy ") else "test score"
        metrics.append((name, scored.said.removeprefix("accuracy ")))
    if not record.confirmed and record.held_out is None:
        limits.append("One training run with one seed: another may do better or worse.")
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"as_name": markdown_name}
    text = environment.from_string(TEMPLATE).render(
        metadata=card_metadata(
            "delta-tune",
            record.settings["name"],
            ["transfer-learning", told["config"]["regularizer"]],
            several=thresholds is not None,
            record=record,
        ),
        name=record.settings["name"],
        method=told["config"]["regularizer"],
        first_model=FIRST_MODEL,
        backbone=told["backbone"]["model"],
        classes=told["classes"],
        networks=told.get("networks", 1),
        temperature=f"{told['temperature']:.3g}" if "temperature" in told else "",
        many=MANY_CLASSES,
        thresholds=thresholds,
        data=record.settings["data"],
        images=", ".join(f"{count} {split}" for split, count in record.images.items()),
        preprocessing=told["preprocessing"],
        input=_INPUT[told["preprocessing"].get("resize", "crop")].format(**told["preprocessing"]),
        colours=_colours(told["preprocessing"]),
        metrics=metrics,
        sentences=list(sentences),
        hooks=hooks,
        epoch=told.get("epoch"),
        origin=record.model,
        config=json.dumps({k: v for k, v in told["config"].items() if v is not None}, indent=2),
        limits=limits,
    )
    with atomic_write(best / CARD_FILE) as partial:
        partial.write_text(text, encoding="utf-8")


def write_card_section(best: Path, title: str, text: str) -> bool:
    """Write a section of the model card, in place of the one of that title, else at its end.

    A new model's card has none of them: what they say holds for the former model.

    Args:
        best: the model's folder.
        title: of the section.
        text: Markdown, in which names from data are escaped.

    Returns:
        Whether there is a card.
    """
    file = best / CARD_FILE
    try:
        card = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False
    heading = f"## {title}\n"
    before, found, rest = f"\n{card}".partition(f"\n{heading}")
    _, following, after = f"\n{rest}".partition("\n## ") if found else ("", "", "")
    section = f"{heading}\n{text.strip()}\n"
    parts = [before[1:].rstrip() + "\n", section, *([f"{following[1:]}{after}"] if found and following else [])]
    with atomic_write(file) as partial:
        partial.write_text("\n".join(parts), encoding="utf-8")
    return True
