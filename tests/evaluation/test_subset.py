"""The small labeled part: balanced, nested, the same everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from passl_densecl.data.datasets import ImageSet, scan_images
from passl_densecl.errors import InputError
from passl_densecl.evaluation.subset import balanced_subset, list_lines


def images(sizes=(200, 100, 3)):
    names = [
        (f"class{label}/{number}.jpg".encode(), label) for label, size in enumerate(sizes) for number in range(size)
    ]
    return ImageSet.from_paths(
        "root", [name for name, _ in names], np.array([label for _, label in names]), ["a", "b", "c"]
    )


def test_as_many_of_every_class_and_all_of_a_small_one():
    found = balanced_subset(images(), 0.1)
    assert np.bincount(images().labels[found]).tolist() == [10, 10, 3]
    assert np.bincount(images().labels[balanced_subset(images(), 0.001)]).tolist() == [1, 1, 1]
    assert len(balanced_subset(images(), 1.0)) == 303


def test_a_smaller_part_is_in_a_larger_one_and_seeds_differ():
    small, large = (set(balanced_subset(images(), share).tolist()) for share in (0.03, 0.3))
    assert small < large
    assert set(balanced_subset(images(), 0.03, seed=1).tolist()) != small


def test_the_choice_does_not_depend_on_the_other_images_nor_on_the_machine():
    whole = images()
    found = {whole.relative_path(index) for index in balanced_subset(whole, 0.03).tolist()}
    fewer = images((200, 100, 1))
    assert {
        fewer.relative_path(index) for index in balanced_subset(fewer, 0.03).tolist() if fewer.labels[index] < 2
    } == {name for name in found if not name.startswith(b"class2")}
    # Written down once: another machine or Python must find the same.
    assert sorted(found)[:3] == [b"class0/177.jpg", b"class0/71.jpg", b"class0/82.jpg"]


def test_the_list_is_read_back(photos, tmp_path):
    whole = scan_images(photos, labeled=True)
    part = balanced_subset(whole, 0.2)
    (tmp_path / "part.txt").write_bytes(list_lines(whole, part))
    again = scan_images(photos, tmp_path / "part.txt", labeled=True, classes=whole.classes)
    assert [again.path(index) for index in range(len(again))] == [whole.path(index) for index in part.tolist()]
    assert again.labels.tolist() == whole.labels[part].tolist()


def test_a_share_out_of_range_is_named():
    with pytest.raises(InputError, match="share 10: expected more than 0 and at most 1"):
        balanced_subset(images(), 10)
