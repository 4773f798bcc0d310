"""README.md of an exported folder: the model card that the Hugging Face Hub shows."""

from __future__ import annotations

import jinja2

from delta_tune.console.escape import markdown_name, shell_command
from delta_tune.export.library_folder import LibraryFolder
from delta_tune.inference.card_metadata import card_metadata, data_name
from delta_tune.inference.model import Model
from delta_tune.inference.model_card import MANY_CLASSES
from delta_tune.results.study_record import StudyRecord

_TEMPLATE = """\
{{ metadata }}\
# {{ name | as_name }}

{{ backbone | as_name }}{% if method %}, {{ "frozen, with a fitted linear classifier" if method == "linear_probe" else \
"fine-tuned with " ~ (method | as_name) }},{% endif %} to \
{% if thresholds %}find {{ classes | length }} labels in an image, any number of them\
{% else %}tell {{ classes | length }} classes apart{% endif %}: \
{{ classes[:many] | map("as_name") | join(", ") }}{{ " …" if classes | length > many }}.

`pip install {{ packages }}`, and in the folder that this one lies in:

```python
{{ load }}```
{% if predict %}

Then:

```python
{{ predict }}```
{% endif %}

## Probabilities

{% if thresholds %}
Each label has its own: the sigmoid of its logit. A label is there from its threshold in `delta_tune.json` on \
({{ "%.2g" | format(thresholds | min) }} to {{ "%.2g" | format(thresholds | max) }}).
{% else %}
The softmax of the logits.
{% endif %}
{% if temperature != 1 %}
They are calibrated: the weights and the bias of the last layer are divided by the temperature \
{{ "%.3g" | format(temperature) }}, so nothing else has to be done.
{% else %}
They have not been calibrated.
{% endif %}

## Images

{% for note in notes %}
- {{ note }}
{% endfor %}
{% if known %}

## Data and metrics

{{ data | as_name }}: {{ images }} images.
{% if scored %}Test: {{ scored }}.{% else %}It was never scored on a test split.{% endif %}

{% endif %}

## Limits

- {% if thresholds %}It answers with the labels whose probability is at least their threshold, which may be none.\
{% else %}Whatever it is shown, it answers with one of its classes.{% endif %}

{% if known %}
- The figures hold for images such as those of {{ data | as_name }}; nothing else was tried.
{% endif %}

## Files

- `model.safetensors`: the weights
- `config.json`: what {{ library }} needs
- `delta_tune.json`: classes, preprocessing{% if thresholds %}, thresholds{% endif %}, temperature and origin

To put the folder on the Hugging Face Hub (`hf auth login` first): {{ upload | as_name }}
"""


def upload_command(place: str) -> str:
    """The Hub's own command that uploads the folder; the user's name has to be put in."""
    return shell_command(["hf", "upload", "USER/NAME", place, "."])


def folder_card(model: Model, folder: LibraryFolder, place: str, record: StudyRecord | None) -> str:
    """The text of README.md.

    Args:
        model: that was exported.
        folder: what it became.
        place: name of the folder.
        record: of the model's study; None if it is not known.
    """
    method = model.config.get("config", {}).get("regularizer")
    name = str(record.settings["name"]) if record is not None else place
    several = model.thresholds is not None
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"as_name": markdown_name}
    return environment.from_string(_TEMPLATE).render(
        metadata=card_metadata(
            folder.library,
            name,
            [
                "transfer-learning",
                *([method] if method else []),
                *(["timm"] if folder.library != "torchvision" else []),
            ],
            several=several,
            record=record,
        ),
        name=name,
        backbone=model.config["backbone"]["model"],
        method=method,
        classes=model.classes,
        many=MANY_CLASSES,
        thresholds=model.thresholds,
        temperature=model.temperature,
        packages=folder.packages,
        load=folder.load(place),
        predict=folder.predict,
        notes=folder.notes,
        library=folder.library,
        known=record is not None,
        data=data_name(record) if record is not None else "",
        images=", ".join(f"{count} {split}" for split, count in record.images.items()) if record is not None else "",
        scored=record.scoring.said if record is not None and record.scoring is not None else "",
        upload=upload_command(place),
    )
