"""Which words in a name say a split."""

import pytest

from delta_tune.config import UserError
from delta_tune.data.split_names import split_in, splits_in


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("Training", "train"),
        ("TRAIN", "train"),
        ("seg_train", "train"),
        ("train2017", "train"),
        ("train-00000-of-00004.parquet", "train"),
        ("partial-train", "train"),
        ("split=test", "test"),
        ("pets_test.parquet", "test"),
        ("petsTest.parquet", "test"),
        ("TestImages", "test"),
        ("testset", "test"),
        ("Testing", "test"),
        ("my test data", "test"),
        ("valid", "val"),
        ("dev", "val"),
        ("eval.0", "val"),
        ("2_validation", "val"),
        ("latest", None),
        ("contest-winners", None),
        ("trainer", None),
        ("interval", None),
        ("devices", None),
        ("trains", None),
        ("protest", None),
        ("testé", None),
        ("part-00000-3f2ac.snappy.parquet", None),
        ("set", None),
        ("data", None),
        ("", None),
    ],
)
def test_split_in_reads_whole_words(name, split):
    assert split_in(name) == split


def test_splits_in_gives_every_split_once():
    assert splits_in("train_test_train_dev") == ("test", "train", "val")


def test_split_in_refuses_two_splits():
    with pytest.raises(UserError, match="'train_test' names test and train, but can be only one split; rename it"):
        split_in("train_test")
