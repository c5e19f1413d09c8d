"""The columns of a Hugging Face parquet file: which has the pictures, the boxes, the masks, ...

`datasets` writes its features into the schema as JSON: {"info": {"features": {"image": {"_type":
"Image"}, "objects": {"bbox": ..., "category": {"feature": {"names": ["cat"], "_type":
"ClassLabel"}, "_type": "Sequence"}}}}}. Files without them are read by the types of their columns.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from maskrcnn_lit.data.coco.categories import some
from maskrcnn_lit.data.coco.faults import BadEntryError
from maskrcnn_lit.errors import UserError

_IMAGES = ("image", "img", "images", "picture", "pixel_values", "jpg", "png")

_MASKS = ("mask", "masks", "instances", "instance_mask", "instance_masks", "instance_map")

_OBJECTS = ("objects", "annotations", "instances", "object", "annotation", "labels", "label")

# What an object has -> the names that columns give it.
_FIELDS = {
    "bbox": ("bbox", "bboxes", "box", "boxes"),
    "category": (
        *("category", "categories", "category_name", "class_name", "label", "labels"),
        *("class", "classes", "category_id", "category_ids", "class_id", "class_ids"),
        *("class_label", "class_labels"),
    ),
    "segmentation": ("segmentation", "segmentations", "polygon", "polygons", "rle", "segments"),
    "mask": _MASKS,
    "iscrowd": ("iscrowd", "is_crowd", "crowd"),
}

_SHAPES = ("bbox", "segmentation", "mask")

_METADATA = b"huggingface"


class Columns(NamedTuple):
    """The columns that are read.

    image: of the pictures; objects: of the objects, None if `fields` are columns; fields: bbox,
    category, segmentation, mask and iscrowd -> their names; labels: of label images; names: the
    classes that the file states.
    """

    image: str
    objects: str | None
    fields: Mapping[str, str]
    labels: str | None
    names: list[str] | None

    @property
    def read(self) -> list[str]:
        """The columns to load."""
        own = [self.objects] if self.objects else list(self.fields.values())
        return list(dict.fromkeys(name for name in (self.image, *own, self.labels) if name))

    @property
    def described(self) -> str:
        """What is read, for people."""
        inside = f"{self.objects}." if self.objects else ""
        parts = [f"{role} from {inside}{name}" for role, name in self.fields.items()]
        labels = [f"label images from {self.labels}"] if self.labels else []
        return ", ".join([f"pictures from {self.image}", *parts, *labels])

    def entries(self, row: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The objects of a row: role -> value.

        Raises:
            BadEntryError: the lists of a row differ in length.
        """
        if not self.fields:
            return []
        value = row[self.objects] if self.objects else row
        if value is None:
            return []
        if isinstance(value, list):
            return [
                {role: (item or {}).get(name) for role, name in self.fields.items()}
                for item in value
            ]
        own = {role: value.get(name) for role, name in self.fields.items()}
        lists = {role: several for role, several in own.items() if several is not None}
        counts = {role: len(several) for role, several in lists.items()}
        if len(set(counts.values())) > 1:
            text = ", ".join(f"{count} of {role}" for role, count in counts.items())
            raise BadEntryError("lists of different lengths", text)
        return [
            dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)
        ]


def find_columns(schema: Any, file: str, image: str | None, mask: str | None) -> Columns:
    """The columns of a file.

    Args:
        schema: its pyarrow schema.
        file: its name, for messages.
        image, mask: the columns that the user names; None: found by their names and types.

    Raises:
        UserError: it has other columns than are expected.
    """
    kinds = {entry.name: entry.type for entry in schema}
    for option, name in (("image", image), ("mask", mask)):
        if name is not None and name not in kinds:
            raise UserError(
                f"{file} has no column data.reader.{option}={name}: give one of {_listed(kinds)}"
            )
    image = image or _image_column(kinds)
    if image is None or not _is_picture(kinds[image]):
        raise _unexpected(file, kinds)
    features = _features(schema)
    objects, fields, labels = _objects(kinds, features, image, mask)
    if labels is None and not any(role in fields for role in _SHAPES):
        raise _unexpected(file, kinds)
    names = _class_names(_inner_features(features, objects).get(fields.get("category", "")))
    return Columns(image, objects, fields, labels, names)


def _objects(
    kinds: Mapping[str, Any], features: Mapping[str, Any], image: str, mask: str | None
) -> tuple[str | None, dict[str, str], str | None]:
    """See `Columns`: its objects, fields and labels."""
    if mask is not None and _is_picture(kinds[mask]):
        return None, {}, mask
    objects = None if mask else _objects_column(kinds)
    inner = _elements(kinds[objects]) if objects else _lists(kinds, image)
    fields = _fields(inner, _inner_features(features, objects))
    if mask is not None:
        fits = _is_list(kinds[mask]) and _is_picture(kinds[mask].value_type)
        return None, fields | {"mask": mask} if fits else {}, None
    if any(role in fields for role in _SHAPES):
        return objects, fields, None
    labels = [name for name in _MASKS if name in kinds and name != image]
    return None, {}, next((name for name in labels if _is_picture(kinds[name])), None)


def _unexpected(file: str, kinds: Mapping[str, Any]) -> UserError:
    return UserError(
        f"{file} has the columns {_listed(kinds)}: expected are a column image of pictures, and "
        "objects with bbox or segmentation and category, or a column mask of pictures (name them "
        "with data.reader.image and data.reader.mask)"
    )


def _listed(kinds: Mapping[str, Any]) -> str:
    return some([f"{name} ({str(kind)[:60]})" for name, kind in kinds.items()])


def _image_column(kinds: Mapping[str, Any]) -> str | None:
    """The column of the pictures: the first that is named so, or the only one beside masks."""
    pictures = [name for name, kind in kinds.items() if _is_picture(kind)]
    named = [name for name in _IMAGES if name in pictures]
    others = [name for name in pictures if name not in _MASKS]
    if named:
        return named[0]
    return others[0] if len(others) == 1 else None


def _objects_column(kinds: Mapping[str, Any]) -> str | None:
    """The first column of structs that have the shape of an object."""
    for name in _OBJECTS:
        if name in kinds:
            fields = _fields(_elements(kinds[name]), {})
            if any(role in fields for role in _SHAPES):
                return name
    return None


def _elements(kind: Any) -> dict[str, Any]:
    """The types of an object's fields, in a struct of lists or a list of structs."""
    from pyarrow import types

    if types.is_struct(kind):
        fields = [kind.field(n) for n in range(kind.num_fields)]
        return {own.name: own.type.value_type for own in fields if _is_list(own.type)}
    if _is_list(kind) and types.is_struct(kind.value_type):
        fields = [kind.value_type.field(n) for n in range(kind.value_type.num_fields)]
        return {own.name: own.type for own in fields}
    return {}


def _lists(kinds: Mapping[str, Any], image: str) -> dict[str, Any]:
    """The types of an object's fields, in columns of lists."""
    return {
        name: kind.value_type for name, kind in kinds.items() if name != image and _is_list(kind)
    }


def _fields(inner: Mapping[str, Any], features: Mapping[str, Any]) -> dict[str, str]:
    """Role -> the field that has it."""
    fields: dict[str, str] = {}
    for role, names in _FIELDS.items():
        able = [name for name in names if name in inner and _FITS[role](inner[name])]
        if role == "category":
            able.sort(key=lambda name: not _is_named(inner[name], features.get(name)))
        if able:
            fields[role] = able[0]
    return fields


def _is_named(kind: Any, feature: Any) -> bool:
    """Whether a column of classes has their names."""
    return _is_text(kind) or _class_names(feature) is not None


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _is_text(kind: Any) -> bool:
    from pyarrow import types

    return types.is_string(kind) or types.is_large_string(kind)


def _is_bytes(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)


def _is_picture(kind: Any) -> bool:
    """Whether it is `datasets`' Image, or plain bytes."""
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    return _is_bytes(kind)


def _is_number(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _is_class(kind: Any) -> bool:
    from pyarrow import types

    return types.is_integer(kind) or _is_text(kind)


def _is_shape(kind: Any) -> bool:
    """Polygons, an RLE, or JSON: lists and structs of numbers and text."""
    from pyarrow import types

    if _is_list(kind):
        return _is_shape(kind.value_type)
    if types.is_struct(kind):
        fields = [kind.field(n) for n in range(kind.num_fields)]
        return {"size", "counts"} <= {own.name for own in fields} and all(
            _is_shape(own.type) or (own.name == "counts" and _is_bytes(own.type)) for own in fields
        )
    return _is_number(kind) or _is_text(kind)


_FITS: dict[str, Callable[[Any], bool]] = {
    "bbox": lambda kind: _is_list(kind) and _is_number(kind.value_type),
    "category": _is_class,
    "segmentation": lambda kind: not _is_number(kind) and _is_shape(kind),
    "mask": _is_picture,
    "iscrowd": lambda kind: _is_number(kind) or _is_text(kind),
}


def _features(schema: Any) -> dict[str, Any]:
    """The features that `datasets` wrote, by column; none in a file of another writer."""
    try:
        features = json.loads((schema.metadata or {})[_METADATA])["info"]["features"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _inner_features(features: Mapping[str, Any], objects: str | None) -> Mapping[str, Any]:
    """The features of the fields of `objects`; of the columns if it is None."""
    inner = features if objects is None else _unlisted(features.get(objects))
    return inner if isinstance(inner, dict) else {}


def _unlisted(feature: Any) -> Any:
    """What a list is a list of: `datasets` writes [x], or {"feature": x, "_type": "Sequence"}."""
    for _ in range(8):
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif isinstance(feature, dict) and "feature" in feature and "_type" in feature:
            feature = feature["feature"]
        else:
            break
    return feature


def _class_names(feature: Any) -> list[str] | None:
    """The names of a ClassLabel; None for anything else."""
    feature = _unlisted(feature)
    names = feature.get("names") if isinstance(feature, dict) else None
    if isinstance(names, list) and names and set(map(type, names)) == {str}:
        return names
    return None
