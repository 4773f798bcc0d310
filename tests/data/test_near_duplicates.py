from __future__ import annotations

import numpy as np
import pytest
from helpers.photos import photo, recompressed
from PIL import Image, ImageOps
from scipy.fft import dctn

from delta_tune.data import near_duplicates
from delta_tune.data.near_duplicates import find_near_duplicates
from delta_tune.data.thumbnails import Thumbnails, joined, stack, thumbnail

PHOTOS = [photo(seed) for seed in range(40)]
CHANGES = {
    "resized": (lambda image: image.resize((71, 50)), "same"),
    "squeezed": (lambda image: image.resize((64, 64)), "same"),
    "recompressed": (recompressed, "same"),
    "brighter": (lambda image: image.point(lambda value: min(255, round(1.08 * value))), "same"),
    "mirrored": (ImageOps.mirror, "mirrored"),
    "upside down": (lambda image: image.rotate(180), "turned by 180°"),
    "on its side": (lambda image: image.rotate(90, expand=True), "turned by 90°"),
    "on its other side": (lambda image: image.rotate(270, expand=True), "turned by 90°"),
    "flipped": (ImageOps.flip, "mirrored and turned"),
    "cropped": (lambda image: image.crop((3, 2, 118, 89)), "cropped"),
}


def found_in(images, **options):
    return find_near_duplicates(stack([thumbnail(image) for image in images]), **options)


def test_different_pictures_are_no_near_duplicates():
    assert len(found_in(PHOTOS)) == 0


@pytest.mark.parametrize("change", CHANGES)
def test_altered_copy_is_found(change):
    alter, _ = CHANGES[change]
    found = found_in([*PHOTOS, alter(PHOTOS[7])])
    assert found.pairs.tolist() == [[7, len(PHOTOS)]]


@pytest.mark.parametrize("change", [name for name in CHANGES if not name.startswith("on its")])
def test_altered_copy_is_called_by_what_was_done(change):
    alter, kind = CHANGES[change]
    assert found_in([*PHOTOS, alter(PHOTOS[7])]).kinds == (kind,)


@pytest.mark.parametrize("change", ["on its side", "on its other side"])
def test_picture_on_its_side_is_called_turned(change):
    alter, _ = CHANGES[change]
    (kind,) = found_in([*PHOTOS, alter(PHOTOS[7])]).kinds
    assert kind in ("turned by 90°", "turned by 270°")


def test_turned_and_cropped_copies_are_left_out_on_request():
    images = [*PHOTOS, CHANGES["upside down"][0](PHOTOS[3]), CHANGES["cropped"][0](PHOTOS[5])]
    assert len(found_in(images, crops=False, turned=False)) == 0


def test_same_shapes_in_other_colours_are_no_near_duplicates():
    grey = PHOTOS[0].convert("L")
    tinted = [ImageOps.colorize(grey, "black", "white", colour) for colour in ("#709070", "#907090")]
    assert len(found_in(tinted)) == 0


def test_blank_images_are_no_near_duplicates():
    thumbnails = stack([thumbnail(Image.new("RGB", (80, 80), colour)) for colour in ("white", "#fefefe", "black")])
    assert thumbnails.is_blank.all()
    assert len(find_near_duplicates(thumbnails)) == 0


def test_small_images_must_be_nearly_equal():
    one = photo(0, (28, 28))
    pixels = np.asarray(one).astype(int)
    other = Image.fromarray(
        np.clip(pixels + np.random.default_rng(1).integers(-12, 13, pixels.shape), 0, 255).astype(np.uint8)
    )
    assert len(found_in([one.resize((90, 90)), other.resize((90, 90))])) == 1
    assert len(found_in([one, other])) == 0
    assert len(found_in([one, ImageOps.mirror(one)])) == 1


def test_all_copies_of_one_picture_are_connected():
    copies = [PHOTOS[0].resize((100 + 2 * n, 80 + n)) for n in range(30)]
    pairs = found_in([*copies, *PHOTOS[1:]]).pairs
    reached, before = {0}, set()
    while reached != before:
        before = set(reached)
        reached |= {image for pair in pairs.tolist() for image in pair if reached & set(pair)}
    assert reached == set(range(30))


def test_pairs_are_sorted_and_named_once():
    images = [PHOTOS[1], PHOTOS[0], ImageOps.mirror(PHOTOS[0]), recompressed(PHOTOS[1])]
    assert found_in(images).pairs.tolist() == [[0, 3], [1, 2]]


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_have_no_near_duplicates(count):
    assert len(found_in(PHOTOS[:count])) == 0


def test_candidates_are_the_neighbours_within_the_radius(monkeypatch):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(60, 3)) * 0.05
    tree = near_duplicates.cKDTree(points)
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    expected = {(i, j) for i in range(60) for j in range(i + 1, 60) if distances[i, j] < 0.03}
    assert {tuple(pair) for pair in near_duplicates._candidates(tree, points, 0.03).tolist()} == expected


def test_hash_is_a_part_of_the_cosine_transform_of_length_one():
    grey = np.random.default_rng(0).integers(0, 256, (3, 32, 32), dtype=np.uint8)
    low = dctn(grey.astype(float), axes=(1, 2), norm="ortho")[:, :8, :8]
    low[:, 0, 0] = 0
    low /= np.sqrt((low**2).sum((1, 2), keepdims=True))
    expected = [[each[row, column] for row in range(6) for column in range(6) if 0 < row + column < 6] for each in low]
    assert near_duplicates._hashes(grey) == pytest.approx(np.array(expected), abs=1e-5)


def test_thumbnails_can_be_taken_and_joined():
    both = stack([thumbnail(image) for image in PHOTOS[:2]])
    again = joined([both.taken(np.array([1])), both.taken(np.array([0]))])
    assert isinstance(again, Thumbnails)
    assert (again.grey == both.grey[::-1]).all()
    assert again.side.tolist() == [90, 90]
