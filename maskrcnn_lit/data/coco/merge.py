"""Joins COCO jsons: categories by name, images by file, new ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_lit.data.coco.faults import FINDINGS
from maskrcnn_lit.errors import UserError


def merge(
    contents: Sequence[tuple[str, Mapping[str, Any], str]],
) -> tuple[dict[str, Any], int]:
    """One dict of several, and the number of images that several of them have.

    The first json decides about all keys besides the three lists. Entries keep their other fields.

    Args:
        contents: where each comes from, its parsed json, and the folder in front of its file names
            ("" for none).

    Raises:
        UserError: an image of several jsons has different sizes there; an entry is incomplete.
    """
    numbers: dict[str, int] = {}  # category name -> id
    categories: list[dict[str, Any]] = []
    images: dict[str, dict[str, Any]] = {}  # by file name
    annotations: list[dict[str, Any]] = []
    shared = set[str]()
    for where, content, folder in contents:
        try:
            own = _categories(content.get("categories") or [], numbers, categories)
            ids = {}
            for entry in content["images"]:
                name = f"{folder}/{entry['file_name']}" if folder else entry["file_name"]
                if name in images:
                    shared.add(name)
                image = images.setdefault(name, {**entry, "id": len(images) + 1, "file_name": name})
                ids[entry["id"]] = image["id"]
                if _size(image) != _size(entry):
                    raise UserError(
                        f"{name} is {_size(image)} in one json and {_size(entry)} in {where}: "
                        "correct one of them"
                    )
            for entry in content["annotations"]:
                annotations.append(
                    {
                        **entry,
                        "id": len(annotations) + 1,
                        "image_id": ids[entry["image_id"]],
                        "category_id": own[entry["category_id"]],
                    }
                )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{where} has an incomplete entry ({error!r}): run `maskrcnn-lit data check` with "
                "cleaned=DIR, and merge the cleaned json"
            ) from None
    rest = {key: value for key, value in contents[0][1].items() if key != FINDINGS}
    lists = {"images": list(images.values()), "annotations": annotations, "categories": categories}
    return rest | lists, len(shared)


def _categories(
    entries: Sequence[Mapping[str, Any]], numbers: dict[str, int], merged: list[dict[str, Any]]
) -> dict[Any, int]:
    """The new id of each category id; new names are added to `numbers` and `merged`."""
    own = {}
    for entry in entries:
        name = str(entry["name"])
        if name not in numbers:
            numbers[name] = len(numbers) + 1
            merged.append({**entry, "id": numbers[name]})
        own[entry["id"]] = numbers[name]
    return own


def _size(entry: Mapping[str, Any]) -> str:
    return f"{entry.get('width')} x {entry.get('height')}"
