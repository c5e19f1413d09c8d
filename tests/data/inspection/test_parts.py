from pathlib import Path
from typing import Any

import pytest

from maskrcnn_lit.data.inspection.parts import fill_parts, part_paths, same_images
from maskrcnn_lit.errors import UserError


def described(train: str | None, val: str | None, root: str | None = None) -> dict[str, Any]:
    def part(name: str | None) -> dict[str, str | None]:
        return {"images": name, "annotations": name and f"{name}.json"}

    return {"root": root, "train": part(train), "val": part(val)}


def test_both_parts_stay():
    data = described("a", "b")
    assert fill_parts(data) == ["train", "val"]
    assert part_paths(data, "val") == (Path("b.json"), Path("b"))


@pytest.mark.parametrize(("train", "val", "own"), [("a", None, "train"), (None, "a", "val")])
def test_a_part_that_is_left_out_is_the_other(train: str | None, val: str | None, own: str):
    data = described(train, val, root="r")
    assert fill_parts(data) == [own]
    assert part_paths(data, "train") == part_paths(data, "val") == (Path("r/a.json"), Path("r/a"))


def test_one_json_for_both_is_looked_at_once():
    assert fill_parts(described("a", "a")) == ["train"]


def test_what_is_missing_is_told():
    with pytest.raises(
        UserError,
        match=r"neither train nor val: give data\.train\.images=DIR data\.train\.annot.*both",
    ):
        fill_parts(described(None, None))
    data = described("a", "b")
    data["val"]["images"] = None
    with pytest.raises(
        UserError,
        match=r"data\.val\.images is missing: give both data\.val\.annotations and data\.val",
    ):
        fill_parts(data)


def test_training_data_given_as_validation_data_are_seen():
    assert same_images(described("a", "a"))
    assert same_images(described("a", "./a", root="."))
    assert not same_images(described("a", "b"))
    assert not same_images(described("a", None))
    assert not same_images(described("a", "a") | {"image_ids": [1, 2]})
