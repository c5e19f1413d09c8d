from typing import Any

import pytest
from coco_file import coco_dict

from maskrcnn_lit.data.coco.merge import merge
from maskrcnn_lit.errors import UserError


def test_ids_are_new_and_other_fields_stay():
    one, two = coco_dict(4), coco_dict(4)
    two["categories"].reverse()
    two["images"][1]["patient"] = "p7"
    two["annotations"][0]["score"] = 0.5
    content, shared = merge(
        [("a.json", one | {"info": 1}, "a"), ("b.json", two | {"info": 2}, "b")]
    )
    assert shared == 0
    assert content["info"] == 1
    assert [image["id"] for image in content["images"]] == list(range(1, 9))
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, 13))
    assert content["images"][5]["patient"] == "p7"
    assert content["annotations"][6]["score"] == 0.5
    assert content["categories"] == one["categories"]
    for before, after in zip(two["annotations"], content["annotations"][6:], strict=True):
        assert (after["image_id"], after["category_id"]) == (
            before["image_id"] + 4,
            before["category_id"],
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 7}, "00.jpg is 100 x 60 in one json and 7 x 60 in b.json: correct one"),
        ({"file_name": None}, "b.json has an incomplete entry"),
    ],
)
def test_what_cannot_be_merged(change: dict[str, Any], message: str):
    one, two = coco_dict(2), coco_dict(2)
    two["images"][0] |= change
    if change.get("file_name", "") is None:
        del two["images"][0]["file_name"]
    with pytest.raises(UserError, match=message):
        merge([("a.json", one, ""), ("b.json", two, "")])
