from collections import Counter
from typing import Any

import numpy as np
import pytest

from maskrcnn_lit.data.coco.split import Split, choose_groups, split_content
from maskrcnn_lit.errors import UserError


def content(images: int, classes: int, seed: int = 0) -> dict[str, Any]:
    """Images with a random set of classes each; class k is in about 1 / (k + 1) of them."""
    rng = np.random.default_rng(seed)
    entries = [{"id": i, "file_name": f"{i}.png", "patient": f"p{i // 5}"} for i in range(images)]
    annotations = [
        {"id": i * classes + k, "image_id": i, "category_id": k}
        for i in range(images)
        for k in range(classes)
        if rng.random() < 1 / (k + 1)
    ]
    categories = [{"id": k, "name": str(k)} for k in range(classes)]
    return {"images": entries, "annotations": annotations, "categories": categories, "info": 1}


def ids(part: dict[str, Any]) -> set[int]:
    return {image["id"] for image in part["images"]}


def with_class(part: dict[str, Any]) -> Counter[int]:
    return Counter(k for _, k in {(a["image_id"], a["category_id"]) for a in part["annotations"]})


@pytest.mark.parametrize(("share", "seed"), [(0.2, 0), (0.2, 1), (0.5, 0), (0.05, 3)])
def test_both_parts_have_their_share_of_every_class(share: float, seed: int):
    whole = content(400, 8)
    parts = split_content(whole, Split(share, seed=seed), "a.json")
    train, val = parts["train"], parts["val"]
    assert ids(train) | ids(val) == set(range(400))
    assert not ids(train) & ids(val)
    assert abs(len(ids(val)) - share * 400) <= 6
    for kind, count in with_class(whole).items():
        assert abs(with_class(val)[kind] - share * count) <= 4, kind
    for part in (train, val):
        assert {a["image_id"] for a in part["annotations"]} <= ids(part)
        assert part["categories"] == whole["categories"]
        assert part["info"] == 1
    assert len(train["annotations"]) + len(val["annotations"]) == len(whole["annotations"])


def test_a_split_depends_on_its_seed_alone():
    whole = content(60, 3)
    one, same, other = (
        ids(split_content(whole, Split(0.2, seed=seed), "a.json")["val"]) for seed in (0, 0, 1)
    )
    assert one == same != other


def test_groups_stay_together():
    parts = split_content(content(200, 4), Split(0.25, "patient"), "a.json")
    train, val = ({image["patient"] for image in parts[p]["images"]} for p in ("train", "val"))
    assert not train & val
    assert len(train | val) == 40
    assert abs(len(ids(parts["val"])) - 50) <= 10


@pytest.mark.parametrize("share", [0.001, 0.999])
def test_each_part_has_an_image(share: float):
    parts = split_content(content(3, 2), Split(share), "a.json")
    assert {len(ids(part)) for part in parts.values()} == {1, 2}


def test_a_class_of_one_image_is_trained():
    counts = {f"{i}": {"": 1} | ({"rare": 1} if i == 7 else {}) for i in range(20)}
    for seed in range(20):
        assert "7" not in choose_groups(counts, 0.2, seed)


def test_what_belongs_to_no_image_is_a_fault_of_train():
    whole = content(4, 1)
    whole["annotations"] += [{"id": 99, "image_id": 77}, "text"]
    parts = split_content(whole, Split(0.5), "a.json")
    assert parts["train"]["annotations"][-2:] == whole["annotations"][-2:]


@pytest.mark.parametrize(
    ("images", "group_by", "message"),
    [
        (1, None, "a.json has 1 image, which cannot be divided"),
        (5, "patient", "a.json has 1 group of data.group_by=patient"),
        (5, "site", "5 of 5 images of a.json have no field 'site': choose data.group_by from .*id"),
    ],
)
def test_what_cannot_be_divided(images: int, group_by: str | None, message: str):
    with pytest.raises(UserError, match=message):
        split_content(content(images, 1), Split(0.2, group_by), "a.json")
