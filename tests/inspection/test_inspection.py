from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from helpers.photos import photo
from PIL import Image, ImageOps

from delta_tune.config import UserError
from delta_tune.inspection.findings import findings
from delta_tune.inspection.inspection import inspect_data
from delta_tune.inspection.labels import CSV_COLUMNS, Suspect, write_suspects
from delta_tune.inspection.text import as_json, print_inspection
from delta_tune.models.backbones import load_backbone
from delta_tune.training.out_of_fold import confused_pairs, deal_folds, judge_labels


@pytest.fixture
def clean(tmp_path):
    """Two classes of 12 train, 3 val and 3 test photos, no two alike."""
    seed = 0
    for split, count in (("train", 12), ("val", 3), ("test", 3)):
        for name in ("cat", "dog"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(count):
                photo(seed).save(tmp_path / split / name / f"{number}.jpg")
                seed += 1
    return tmp_path


def said(folder, **options):
    """Kind of each finding → the finding."""
    return {finding.kind: finding for finding in findings(inspect_data(folder, **options))}


def test_clean_data_has_no_findings(clean):
    assert said(clean) == {}


def test_counts_are_those_of_splits_and_classes(clean):
    assert inspect_data(clean).counts() == {
        "cat": {"train": 12, "val": 3, "test": 3},
        "dog": {"train": 12, "val": 3, "test": 3},
    }


def test_splits_that_are_missing_are_cut_as_a_study_does(clean):
    whole = inspect_data(clean / "train", val_fraction=0.25)
    assert whole.cut == ("val",)
    assert whole.counts()["cat"] == {"train": 9, "val": 3}


def test_damaged_images_are_named_with_their_reasons(clean):
    (clean / "train" / "cat" / "0.jpg").write_bytes(b"no image")
    finding = said(clean)["damaged"]
    assert finding.level == "serious"
    assert (
        "1 image cannot be read: train/cat/0.jpg (empty, or in none of the formats that are read)" in finding.sentence
    )


def test_identical_files_across_splits_are_leakage(clean):
    (clean / "val" / "cat" / "copy.jpg").write_bytes((clean / "train" / "cat" / "4.jpg").read_bytes())
    finding = said(clean)["identical across splits"]
    assert finding.level == "serious"
    assert "Leakage: 1 file is in both train and val" in finding.sentence
    assert "train/cat/4.jpg and val/cat/copy.jpg" in finding.sentence


def test_mirrored_copy_in_another_split_is_leakage(clean):
    ImageOps.mirror(Image.open(clean / "train" / "cat" / "4.jpg")).save(clean / "test" / "cat" / "copy.png")
    finding = said(clean)["near duplicates across splits"]
    assert finding.level == "serious"
    assert (
        "1 picture is in both train and test: 1 mirrored, such as train/cat/4.jpg and test/cat/copy.png"
        in finding.sentence
    )


def test_near_duplicate_in_another_split_is_only_told_as_such(clean):
    Image.open(clean / "train" / "cat" / "4.jpg").resize((90, 70)).save(clean / "test" / "cat" / "copy.png")
    assert list(said(clean)) == ["near duplicates across splits"]


def test_one_picture_in_two_classes_is_serious(clean):
    Image.open(clean / "train" / "cat" / "4.jpg").resize((90, 70)).save(clean / "train" / "dog" / "copy.jpg")
    found = said(clean)
    assert list(found) == ["one picture in two classes"]
    assert "train/cat/4.jpg is 'cat' and train/dog/copy.jpg is 'dog'" in found["one picture in two classes"].sentence


def test_copies_within_a_split_are_advice(clean):
    (clean / "train" / "cat" / "copy.jpg").write_bytes((clean / "train" / "cat" / "4.jpg").read_bytes())
    Image.open(clean / "train" / "cat" / "5.jpg").resize((90, 70)).save(clean / "train" / "cat" / "again.jpg")
    found = said(clean)
    assert {kind: finding.level for kind, finding in found.items()} == {
        "identical within a split": "advice",
        "near duplicates within a split": "advice",
    }


def test_imbalance_and_small_classes_are_told(clean):
    for number in range(1, 12):
        (clean / "train" / "dog" / f"{number}.jpg").unlink()
    for split in ("val", "test"):
        for number in range(2):
            (clean / split / "dog" / f"{number}.jpg").unlink()
    found = said(clean)
    assert "has 6.0 times the images of the smallest ('dog', 3)" in found["imbalance"].sentence
    assert "1 class has fewer than 10 images in train: 'dog' 1" in found["small classes"].sentence


def test_format_that_tells_a_class_is_told(clean):
    for file in clean.glob("*/dog/*.jpg"):
        Image.open(file).save(file.with_suffix(".png"))
        file.unlink()
    assert "Nearly all images of 'dog' are in the format PNG" in said(clean)["trait that tells a class"].sentence


def test_kinds_of_pixels_and_sizes_are_counted(clean):
    folder = clean / "train" / "cat"
    photo(100).convert("L").save(folder / "grey.png")
    photo(101).convert("RGBA").save(folder / "alpha.png")
    photo(102).convert("CMYK").save(folder / "cmyk.jpg")
    photo(103).convert("P").save(folder / "palette.gif")
    Image.fromarray(np.asarray(photo(104).convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    photo(105, (120, 60)).save(folder / "turned.jpg", exif=exif)
    inspection = inspect_data(clean)
    facts = {image.name.rpartition("/")[2]: image for image in inspection.images}
    assert facts["grey.png"].kinds == {"grey"}
    assert facts["alpha.png"].kinds == {"transparent"}
    assert facts["cmyk.jpg"].kinds == {"CMYK"}
    assert facts["palette.gif"].kinds == {"palette"}
    assert facts["deep.png"].kinds == {"grey", "16-bit"}
    assert facts["turned.jpg"].kinds == {"turned by EXIF"}
    assert (facts["turned.jpg"].width, facts["turned.jpg"].height) == (60, 120)
    assert facts["turned.jpg"].aspect_ratio == 2
    assert facts["turned.jpg"].bytes == (folder / "turned.jpg").stat().st_size


def test_blank_images_are_told(clean):
    Image.new("RGB", (90, 90), "white").save(clean / "train" / "cat" / "white.png")
    assert "1 image of one colour, with nothing on it: train/cat/white.png" in said(clean)["blank images"].sentence


def test_class_that_only_val_has_is_refused(clean):
    (clean / "val" / "cow").mkdir()
    photo(200).save(clean / "val" / "cow" / "0.jpg")
    with pytest.raises(UserError, match="val has the class cow"):
        inspect_data(clean)


def test_json_holds_all_pairs_and_is_json(clean):
    ImageOps.mirror(Image.open(clean / "train" / "cat" / "4.jpg")).save(clean / "test" / "cat" / "copy.png")
    inspection = inspect_data(clean)
    content = json.loads(json.dumps(as_json(inspection, findings(inspection)), allow_nan=False))
    (pair,) = content["near_duplicates"]
    assert pair["kind"] == "mirrored"
    assert pair["splits"] == ["train", "test"]
    assert content["findings"][0]["kind"] == "near duplicates across splits"


def test_names_are_escaped_in_the_terminal(clean):
    from rich.console import Console

    hostile = clean / "train" / "cat" / "[red]\x1b[2J.jpg"
    hostile.write_bytes(b"no image")
    stream = io.StringIO()
    inspection = inspect_data(clean)
    print_inspection(inspection, findings(inspection), Console(file=stream, width=132, highlight=False, markup=False))
    assert "\x1b" not in stream.getvalue()
    assert r"[red]\x1b[2J.jpg" in stream.getvalue()


def test_digits_of_the_demo_have_no_findings():
    assert set(said("demo")) <= {"small images"}


def test_network_finds_labels_that_are_wrong(image_folder, tiny_weights):
    backbone = load_backbone("timm:test_resnet", str(tiny_weights), 64)
    report = inspect_data(image_folder, backbone=backbone).labels
    assert report is not None
    assert report.accuracy > 0.9
    assert report.suspects == ()


def test_wrong_labels_are_found_among_right_ones():
    rng = np.random.default_rng(0)
    true = rng.integers(0, 4, 400)
    features = rng.normal(0, 1, (400, 20)) + 3 * np.eye(4, 20)[true]
    wrong = np.arange(400) < 40
    labels = np.where(wrong, (true + rng.integers(1, 4, 400)) % 4, true)
    judged = judge_labels(features, labels, 4, np.arange(400), seed=0)
    named = judged.noise.suspects()
    assert wrong[named].mean() > 0.8
    assert wrong[named].sum() > 0.75 * 40
    assert judged.noise.share == pytest.approx(0.13, abs=0.06)  # chance also draws the right class
    assert (np.diff(judged.noise.wrong[named]) <= 0).all()


def test_copies_of_one_picture_are_in_one_fold():
    labels, groups = np.arange(60) % 3, np.arange(60) // 2
    folds = deal_folds(labels, groups, np.random.default_rng(0))
    assert (folds[::2] == folds[1::2]).all()
    assert set(folds) == set(range(5))


def test_classes_are_alike_if_a_tenth_of_their_images_is_confused():
    labels = np.array([0] * 20 + [1] * 20 + [2] * 20)
    predicted = labels.copy()
    predicted[:3], predicted[20:22] = 1, 0  # 5 of 40
    predicted[40:42] = 0  # 2 of 40
    assert confused_pairs(predicted, labels) == [(0, 1, 0.125)]


def test_csv_has_a_row_for_each_suspect_and_no_formulas(tmp_path):
    names = ("=1+1", "+x", "-x", "@x", "\tx", "a,b", "plain")
    file = tmp_path / "suspects.csv"
    write_suspects(
        [Suspect(image=n, label="a", suggested="b", probability=0.9, probability_of_label=0.1) for n in names], file
    )
    rows = list(csv.DictReader(io.StringIO(file.read_bytes().decode(), newline="")))
    assert tuple(rows[0]) == CSV_COLUMNS
    assert [row["image"] for row in rows] == ["'=1+1", "'+x", "'-x", "'@x", "'\tx", "a,b", "plain"]
    assert [row["rank"] for row in rows] == list("1234567")
    assert rows[0]["probability"] == "0.9000"
