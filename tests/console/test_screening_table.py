from __future__ import annotations

from delta_tune.console.screening_table import COLUMNS, screening_lines, screening_summary, screening_table
from delta_tune.results.screened import ScreenedNetwork, Screening

MEASURED = ScreenedNetwork(
    label="resnet18",
    model="resnet18",
    weights="a.pth",
    kept=True,
    verdict="the best",
    image_size=96,
    parameters=11_176_512,
    forward_s=0.0123,
    training_s=0.04,
    trial_s=75.2,
    likelihood=-0.6123,
    error=0.0456,
    accuracy=0.876,
)
DROPPED = ScreenedNetwork(label="timm:vgg11", model="timm:vgg11", weights=None, kept=False, verdict="it is too slow")
FOUND = Screening(networks=(MEASURED, DROPPED), images=300, of=5000, epochs=6, device="CPU", notes=("Missing here: x",))


def test_lines_have_a_row_for_each_network_and_the_notes():
    first, head, best, dropped, note = screening_lines(FOUND)
    assert first.startswith("Screening 2 networks by a linear classifier")
    assert "(300 of the 5000 of train)" in first
    assert head.split() == ["network", "log-likelihood", "right", "parameters", "forward", "training", "full", "trial"]
    assert " ".join(best.split()) == "resnet18 -0.612 ± 0.046 87.6 % 11.2 M 12.3 ms 40 ms 1:15 kept: the best"
    assert dropped.endswith("dropped: it is too slow")
    assert note.strip() == "Missing here: x"


def test_columns_are_aligned():
    _, head, best, dropped, _ = screening_lines(FOUND)
    assert head.index("full trial") + len("full trial") == best.index("1:15") + len("1:15")
    assert best.index("kept") == dropped.index("dropped")
    assert len(screening_table(FOUND)[1]) == len(COLUMNS)


def test_columns_without_any_measurement_are_left_out():
    alone = Screening(networks=(DROPPED,), images=0, of=5000, epochs=6, device="CPU")
    assert screening_table(alone) == [("network", ""), ("timm:vgg11", "dropped: it is too slow")]
    assert screening_lines(alone)[1:] == ["          network", "          timm:vgg11  dropped: it is too slow"]


def test_screening_without_a_pass_says_only_how_many():
    alone = Screening(networks=(DROPPED,), images=0, of=5000, epochs=6, device="CPU")
    assert screening_summary(alone) == "one network"
