"""`evaluate tile=1024`: whether tiles help, small objects above all."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.data.coco.sizes import SIZES
from maskrcnn_lit.evaluation.coco.matching import Matches
from maskrcnn_lit.launch.gain import against_plain, difference_lines, seconds_line
from maskrcnn_lit.model.tiles import WithTiles


def tile_gain(
    model: WithTiles,
    matches: Mapping[str, Matches],
    plain: list[dict[str, Any]],
    truth: Mapping[str, Any],
    categories: Sequence[Category],
    limits: Sequence[int],
) -> dict[str, Any]:
    """What evaluation.json says of tiles: tile and overlap, tiles and seconds for an image, seconds
    for it as a whole, "plain" metrics without tiles, and "differences" from these.

    Args:
        model: after the evaluation.
        matches: of the detections in tiles.
        plain, truth, categories, limits: as for `against_plain`.
    """
    images = max(1, model.images)
    return {
        **model.tiling._asdict(),
        "tiles_per_image": model.tiles / images,
        "seconds_per_image": model.seconds / images,
        "plain_seconds_per_image": model.plain_seconds / images,
        **against_plain(matches, plain, truth, categories, limits),
    }


def tile_gain_text(row: Mapping[str, Any], metrics: Mapping[str, float]) -> str:
    """`tile_gain` in a line for each of its figures; metrics: with tiles."""
    head = f"tile={row['tile']} ({row['tiles_per_image']:.1f} tiles an image)"
    lines = [*difference_lines(head, row), *_size_lines(head, row, metrics)]
    return "\n".join([*lines, seconds_line(head, row)])


def _size_lines(head: str, row: Mapping[str, Any], metrics: Mapping[str, float]) -> Iterator[str]:
    for kind in (name.removeprefix("val/").removesuffix("_ap") for name in row["differences"]):
        texts = []
        for size in SIZES:
            name = f"val/{kind}_ap_{size}"
            tiled, plain = metrics[name], row["plain"][name]
            if tiled == tiled and plain == plain:  # else there is no such object
                texts.append(f"{size} {tiled:.3f}, without {plain:.3f}")
        if texts:
            yield f"{head}: {kind} AP of objects by size: {'; '.join(texts)}"
