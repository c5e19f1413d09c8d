"""The columns of sets of the hub, by their features; tests of a reading are in test_hf_parquet."""

import json
from typing import Any

import pyarrow as pa
import pytest
from hf_files import PICTURE, class_label, several

from maskrcnn_lit.data.coco.faults import BadEntryError
from maskrcnn_lit.data.datasets.hf_columns import Columns, find_columns
from maskrcnn_lit.errors import UserError

BOXES, NUMBERS = pa.list_(pa.list_(pa.float32(), 4)), pa.list_(pa.int64())


def schema(kinds: dict[str, Any], features: Any = None) -> pa.Schema:
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if features else None
    return pa.schema(list(kinds.items()), metadata)


def found(kinds: dict[str, Any], features: Any = None, **names: str | None) -> Columns:
    own = {"image": None, "mask": None} | names
    return find_columns(schema(kinds, features), "a.parquet", own["image"], own["mask"])


def test_a_struct_of_lists():
    """As cppe-5 and detection-datasets/coco have it."""
    objects = pa.struct(
        [("id", NUMBERS), ("area", NUMBERS), ("bbox", BOXES), ("category", NUMBERS)]
    )
    kinds = {"image_id": pa.int64(), "image": PICTURE, "width": pa.int32(), "objects": objects}
    label = class_label(["cat", "dog"])
    for category in (several(label), [label], {"feature": label, "_type": "List"}):
        columns = found(kinds, {"objects": {"category": category, "bbox": several({})}})
        fields = {"bbox": "bbox", "category": "category"}
        assert columns == Columns("image", "objects", fields, None, ["cat", "dog"])
    assert columns.read == ["image", "objects"]
    assert columns.described == (
        "pictures from image, bbox from objects.bbox, category from objects.category"
    )
    sequence = {"objects": several({"category": label, "bbox": several({})})}
    assert found(kinds, sequence).names == ["cat", "dog"]


def test_a_list_of_structs_with_a_class_in_two_spellings():
    struct = [("bbox", pa.list_(pa.float64())), ("category_id", pa.int64()), ("class", pa.string())]
    kinds = {"img": pa.large_binary(), "annotations": pa.large_list(pa.struct(struct))}
    columns = found(kinds)
    assert columns.fields == {"bbox": "bbox", "category": "class"}  # that with names
    assert columns.image == "img"
    assert columns.objects == "annotations"
    assert columns.names is None


def test_columns_of_their_own():
    """As in 1aurent/ADE20K and RationAI/PanNuke."""
    kinds = {
        "image": PICTURE,
        "instances": pa.list_(PICTURE),
        "categories": NUMBERS,
        "caption": pa.string(),
    }
    columns = found(kinds, {"categories": several(class_label(["cell"]))})
    fields = {"mask": "instances", "category": "categories"}
    assert columns == Columns("image", None, fields, None, ["cell"])
    assert columns.read == ["image", "categories", "instances"]
    named = {"image": PICTURE, "parts": pa.list_(PICTURE), "category": NUMBERS}
    assert found(named, mask="parts").fields == {"category": "category", "mask": "parts"}


def test_label_images():
    kinds = {"pixels": PICTURE, "mask": PICTURE, "label": pa.int64()}
    assert found(kinds) == Columns("pixels", None, {}, "mask", None)
    two = {"a": PICTURE, "b": PICTURE}
    assert found(two, image="a", mask="b") == Columns("a", None, {}, "b", None)
    with pytest.raises(UserError, match="expected are a column image of pictures"):
        found(two)  # which one is the picture?


@pytest.mark.parametrize("features", ["text", {"objects": 3}, {"objects": {"category": None}}, [1]])
def test_features_of_another_form_are_ignored(features: Any):
    objects = pa.struct([("bbox", BOXES), ("category", NUMBERS)])
    columns = found({"image": PICTURE, "objects": objects}, features)
    assert columns.names is None
    assert list(columns.fields) == ["bbox", "category"]


def test_shapes_of_bytes_are_refused():
    objects = pa.struct([("segmentation", pa.list_(pa.binary())), ("category", NUMBERS)])
    with pytest.raises(UserError, match=r"has the columns image .*, objects \(struct<segmentation"):
        found({"image": PICTURE, "objects": objects})


def test_the_objects_of_a_row():
    fields = {"bbox": "bboxes", "category": "label"}
    columns = Columns("image", "objects", fields, None, None)
    two = [{"bbox": [1], "category": 0}, {"bbox": [2], "category": 1}]
    assert columns.entries({"objects": {"bboxes": [[1], [2]], "label": [0, 1]}}) == two
    listed = [{"bboxes": [1], "label": 0}, {"bboxes": [2], "label": 1}]
    assert columns.entries({"objects": listed}) == two
    assert columns.entries({"objects": [None]}) == [{"bbox": None, "category": None}]
    assert columns.entries({"objects": None}) == columns.entries({"objects": []}) == []
    assert columns.entries({"objects": {"bboxes": None, "label": None}}) == []
    with pytest.raises(BadEntryError, match="2 of bbox, 1 of category"):
        columns.entries({"objects": {"bboxes": [[1], [2]], "label": [0]}})
