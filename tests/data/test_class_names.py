"""The order of classes, and names that look alike."""

import pytest

from delta_tune.config import UserError
from delta_tune.data.class_names import natural_order, sorted_classes


def test_natural_order_sorts_numbers_by_value():
    assert sorted(["img10", "img2", "Img1", "b", "a"], key=natural_order) == ["a", "b", "Img1", "img2", "img10"]
    assert sorted(["10", "9", "-1", "0"], key=natural_order) == ["-1", "0", "9", "10"]


def test_find_classes_takes_those_of_train():
    assert sorted_classes({"train": ["b", "a", "b"], "val": ["a"]}) == ("a", "b")


def test_find_classes_refuses_a_class_that_train_lacks():
    with pytest.raises(UserError, match="test has the class c, which train does not have"):
        sorted_classes({"train": ["b", "a"], "test": ["a", "c"]})


def test_find_classes_refuses_a_single_class():
    with pytest.raises(UserError, match="only the class 'a'"):
        sorted_classes({"train": ["a", "a"]})


def test_find_classes_refuses_no_images():
    with pytest.raises(UserError, match="no training images"):
        sorted_classes({"train": []})
