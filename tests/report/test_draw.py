"""Drawing: what is where, in which color, and what is left alone."""

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from maskrcnn_lit.report import draw
from maskrcnn_lit.report.draw import (
    INK,
    PALETTE,
    STRIPES,
    detections_to_draw,
    draw_instances,
    grid,
    side_by_side,
    titled,
)


def blank(height: int = 600, width: int = 800, value: int = 90) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def rectangle(box: tuple[int, int, int, int], height: int = 600, width: int = 800) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def rle(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def draw_boxes(boxes: list[tuple[int, int, int, int]], names: list[str], **more: Any) -> np.ndarray:
    return draw_instances(
        blank(), boxes=np.array(boxes), masks=[rectangle(box) for box in boxes], names=names, **more
    )


def labels_of(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[float, ...]]]:
    """The (text, left top right bottom) of all labels that are written from now on."""
    written: list[tuple[str, tuple[float, ...]]] = []
    text, tag = draw.ImageDraw.ImageDraw.text, draw.ImageDraw.ImageDraw.rounded_rectangle
    tags: list[tuple[float, ...]] = []

    def keep_tag(self: Any, box: list[float], **more: Any) -> None:
        tags.append(tuple(box))
        tag(self, box, **more)

    def keep_text(
        self: Any, place: tuple[float, float], words: str, *more: Any, **named: Any
    ) -> None:
        written.append((words, tags[-1]))
        text(self, place, words, *more, **named)

    monkeypatch.setattr(draw.ImageDraw.ImageDraw, "rounded_rectangle", keep_tag)
    monkeypatch.setattr(draw.ImageDraw.ImageDraw, "text", keep_text)
    return written


def test_the_mask_is_tinted_and_the_rest_is_left_alone() -> None:
    image = blank()
    picture = draw_boxes([(200, 150, 500, 450)], ["cat"])
    assert picture.shape == image.shape
    assert picture.dtype == np.uint8
    inside, outside = picture[300, 350].astype(int), picture[550, 700]
    assert (outside == 90).all()
    color = np.array(min(PALETTE, key=lambda c: abs(0.65 * 90 + 0.35 * np.array(c) - inside).sum()))
    np.testing.assert_allclose(inside, 0.65 * 90 + 0.35 * color, atol=2)
    assert (picture[300, 199:202] == color).all(-1).any()  # outline or box
    assert (image == 90).all()  # the argument is not drawn on


def test_outline_has_the_color_where_mask_and_box_differ() -> None:
    rows, columns = np.mgrid[:600, :800]
    disc = (rows - 300) ** 2 + (columns - 400) ** 2 <= 150**2
    picture = draw_instances(
        blank(), boxes=np.array([[200, 100, 600, 500]]), masks=[disc], names=["cat"]
    )
    row = picture[300, 400:598].astype(
        int
    )  # from the center to just inside of the box's right side
    tint = row[0]
    color = picture[300, 599].astype(int)  # the box
    assert (abs(row[149:152] - color).sum(-1) < 20).any()
    np.testing.assert_array_equal(row[:140], np.tile(tint, (140, 1)))
    np.testing.assert_array_equal(row[165:], np.full((33, 3), 90))


def test_thin_masks_are_seen() -> None:
    mask = rectangle((100, 300, 700, 301))
    picture = draw_instances(
        blank(), boxes=np.array([[50, 100, 750, 500]]), masks=[mask], names=["wire"]
    )
    assert (abs(picture[300, 150:650].astype(int) - 90).sum(-1) > 100).all()


def test_holes_stay_open() -> None:
    mask = rectangle((200, 150, 500, 450))
    mask[250:350, 300:400] = False
    picture = draw_instances(
        blank(), boxes=np.array([[200, 150, 500, 450]]), masks=[rle(mask)], names=["ring"]
    )
    assert (picture[300, 350] == 90).all()
    assert (picture[200, 250] != 90).any()


@pytest.mark.parametrize(
    ("side", "factor"), [(32, 16), (128, 4), (256, 2), (400, 1), (640, 1), (1500, 1)]
)
def test_small_images_are_enlarged_by_a_whole_number(side: int, factor: int) -> None:
    mask = rectangle((side // 4, side // 4, side // 2, side // 2), side, side)
    box = np.array([[side // 4, side // 4, side // 2, side // 2]])
    picture = draw_instances(blank(side, side), boxes=box, masks=[mask], names=["x"])
    assert picture.shape == (side * factor, side * factor, 3)
    middle = side * factor * 3 // 8
    assert (picture[middle, middle] != 90).any()
    assert (picture[-5:, -5:] == 90).all()


@pytest.mark.parametrize("kind", ["array", "rle", "rle as text", "uncompressed"])
def test_every_kind_of_mask_draws_the_same(kind: str) -> None:
    mask = rectangle((200, 150, 500, 450))
    encoded = rle(mask)
    given = {
        "array": mask,
        "rle": encoded,
        "rle as text": {**encoded, "counts": encoded["counts"].decode()},
        "uncompressed": {
            "size": [600, 800],
            "counts": [200 * 600 + 150, *[300, 300] * 299, 300, 150 + 300 * 600],
        },
    }[kind]
    box = np.array([[200, 150, 500, 450]])
    picture = draw_instances(blank(), boxes=box, masks=[given], names=["cat"])
    expected = draw_instances(blank(), boxes=box, masks=[mask], names=["cat"])
    np.testing.assert_array_equal(picture, expected)


def test_without_objects_the_image_comes_back() -> None:
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    np.testing.assert_array_equal(
        draw_instances(image, boxes=np.zeros((0, 4)), masks=[], names=[]), image
    )


def test_boxes_alone_are_drawn_where_there_are_no_masks() -> None:
    picture = draw_instances(
        blank(), boxes=np.array([[200, 150, 500, 450]]), masks=[], names=["cat"]
    )
    assert (picture[300, 350] == 90).all()
    assert (picture[300, 200] != 90).any()


def test_boxes_beyond_the_image_do_not_fail() -> None:
    boxes = np.array(
        [[-50.0, -20.0, 2000.0, 900.0], [790.0, 590.0, 800.0, 600.0], [10.0, 10.0, 10.4, 10.2]]
    )
    picture = draw_instances(blank(), boxes=boxes, masks=[], names=["a", "b", "c"])
    assert (picture[0, 400] != 90).any()
    assert (picture[-1, 400] != 90).any()


def test_neighbors_of_a_class_differ_and_those_far_apart_do_not() -> None:
    boxes = np.array([[0, 0, 90, 90], [95, 0, 180, 90], [40, 40, 150, 150], [600, 500, 700, 590]])
    colors = draw._colors(boxes, ["cat"] * 4, [0, 1, 2, 3], near=30)
    assert len(set(colors[:3])) == 3
    assert colors[3] == colors[0]


def test_a_class_has_its_color_in_every_picture_and_shapes_have_six() -> None:
    box = np.array([[0, 0, 90, 90]])
    names = ["circle", "cross", "rectangle", "ring", "star", "triangle"]
    colors = [draw._colors(box, [name], [0], near=10)[0] for name in names]
    assert len(set(colors)) == 6


def test_text_is_readable_on_every_color_of_the_palette() -> None:
    def luminance(color: tuple[int, int, int]) -> float:  # WCAG 2.1
        c = np.array(color) / 255
        return float(
            np.where(c <= 0.03928, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
            @ [0.2126, 0.7152, 0.0722]
        )

    assert min((luminance(color) + 0.05) / (luminance(INK) + 0.05) for color in PALETTE) >= 4.5


def test_labels_lie_inside_and_not_on_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    written = labels_of(monkeypatch)
    rng = np.random.default_rng(1)
    corners = rng.integers([0, 0], [740, 540], (14, 2))
    boxes = np.concatenate([corners, corners + 60], 1)
    draw_instances(blank(), boxes=boxes, masks=[], names=["person"] * 14)
    assert len(written) >= 13
    tags = np.array([tag for _, tag in written])
    assert (tags >= 0).all()
    assert (tags[:, [0, 2]] < 800).all()
    assert (tags[:, [1, 3]] < 600).all()
    for i, one in enumerate(tags):
        for other in tags[:i]:
            sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
            assert sides.min() <= 2 or sides.prod() < 0.15 * np.prod(one[2:] - one[:2])


def test_colors_can_be_given_and_an_empty_label_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = labels_of(monkeypatch)
    boxes = [(50, 50, 250, 250), (400, 50, 600, 250)]
    picture = draw_boxes(boxes, ["", "b"], colors=[PALETTE[0], PALETTE[1]]).astype(float)
    for (x1, y1, _, _), color in zip(boxes, PALETTE[:2], strict=True):
        tinted = picture[y1 + 100, x1 + 100] - 90
        assert tinted == pytest.approx(0.35 * (np.array(color) - 90), abs=3)
    assert [text for text, _ in written] == ["b"]


def test_labels_say_name_and_score(monkeypatch: pytest.MonkeyPatch) -> None:
    written = labels_of(monkeypatch)
    boxes = [(100, 100, 200, 200), (400, 300, 700, 500)]
    draw_boxes(boxes, ["cat", "dog"], scores=[0.876, 0.5])
    assert [text for text, _ in written] == ["cat 0.88", "dog 0.50"]
    (left, top, right, bottom) = written[0][1]
    assert (left, bottom) == (100, 100)  # above its box
    assert right > left
    assert top < bottom


@pytest.mark.long
def test_where_hundreds_of_objects_are_labels_hide_a_tenth_of_the_picture_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = labels_of(monkeypatch)
    boxes = np.array([[x, y, x + 14, y + 14] for x in range(0, 780, 20) for y in range(0, 580, 20)])
    draw_instances(blank(), boxes=boxes, masks=[], names=["nucleus"] * len(boxes))
    tags = np.array([tag for _, tag in written])
    assert 10 < len(tags) < len(boxes) / 4
    assert ((tags[:, 2] - tags[:, 0]) * (tags[:, 3] - tags[:, 1])).sum() < 0.105 * 600 * 800


def test_in_a_crowd_no_label_hides_another_object(monkeypatch: pytest.MonkeyPatch) -> None:
    written = labels_of(monkeypatch)
    boxes = np.array(
        [[x, y, x + 30, y + 30] for x in range(100, 700, 100) for y in range(20, 560, 40)]
    )
    boxes = np.concatenate([boxes, boxes + np.array([32, 0, 32, 0])])
    draw_instances(blank(), boxes=boxes, masks=[], names=["nucleus"] * len(boxes))
    tags = np.array([tag for _, tag in written])
    assert len(tags) > 10
    sides = np.minimum(tags[:, None, 2:], boxes[:, 2:]) - np.maximum(
        tags[:, None, :2], boxes[:, :2]
    )  # tags boxes 2
    hidden = np.sort(sides.clip(0).prod(-1), axis=1)[:, :-1].sum(
        1
    )  # of all boxes but the one hidden most, its own
    assert (hidden <= 0.12 * np.prod(tags[:, 2:] - tags[:, :2], axis=1)).all()


def test_what_does_not_fit_together_is_said() -> None:
    with pytest.raises(ValueError, match="2 boxes, 1 masks and 2 names"):
        draw_instances(
            blank(), boxes=np.ones((2, 4)), masks=[rectangle((0, 0, 1, 1))], names=["a", "b"]
        )
    with pytest.raises(ValueError, match=r"\(60, 80\).* cannot lie on an image of \(600, 800\)"):
        draw_instances(blank(), boxes=np.ones((1, 4)), masks=[np.ones((60, 80), bool)], names=["a"])


def test_side_by_side_keeps_both_pictures_and_writes_titles() -> None:
    left, right = blank(300, 400, 10), blank(300, 400, 200)
    picture = side_by_side(left, right, ("ground truth", "prediction"))
    assert (picture == 10).all(-1).sum() >= 300 * 400
    assert (picture == 200).all(-1).sum() >= 300 * 400
    strip = picture[: picture.shape[0] - 300]
    for half in np.array_split(strip, 2, axis=1):
        assert (half < 100).any()  # ink


def test_a_grid_holds_every_picture_whole() -> None:
    pictures = [blank(40 + 10 * k, 60 - 5 * k, 10 + k) for k in range(5)]
    sheet = grid(pictures, columns=2)
    for k, picture in enumerate(pictures):
        rows, columns = (sheet == 10 + k).all(-1).nonzero()
        assert len(rows) == picture.shape[0] * picture.shape[1]
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == picture.shape[:2]
    with pytest.raises(ValueError, match="0 pictures"):
        grid([], columns=2)


def test_void_pixels_are_hatched_in_gray() -> None:
    image = np.full((60, 80, 3), (200, 30, 90), np.uint8)
    void = rectangle((10, 20, 40, 50), 60, 80)
    nothing: dict[str, Any] = {"boxes": np.zeros((0, 4)), "masks": [], "names": []}
    plain, drawn = (draw_instances(image, **nothing, void=one) for one in (None, void))
    factor = len(plain) // len(image)
    inside = np.kron(void, np.ones((factor, factor), bool)).astype(bool)
    np.testing.assert_array_equal(drawn[~inside], plain[~inside])
    stripes = np.round(0.3 * np.array([200, 30, 90]) + 0.7 * np.array(STRIPES)[:, None])
    assert np.unique(drawn[inside], axis=0).tolist() == sorted(stripes.tolist())
    shares = [(drawn[inside] == stripe).all(1).mean() for stripe in stripes]
    assert min(shares) > 0.4


def test_detections_below_the_threshold_are_not_drawn() -> None:
    mask = rectangle((200, 150, 500, 450))
    detections = {
        "image_id": 1,
        "boxes": np.array([[0, 0, 9, 9], [200, 150, 500, 450], [1, 1, 5, 5]], np.float32),
        "scores": np.array([0.2, 0.9, 0.5], np.float32),
        "labels": np.array([1, 2, 1]),
        "masks": [rle(rectangle((0, 0, 9, 9))), rle(mask), rle(rectangle((1, 1, 5, 5)))],
    }
    kept = detections_to_draw(detections, ["cat", "dog"], score_threshold=0.5)
    assert kept["names"] == ["dog", "cat"]
    np.testing.assert_array_equal(kept["boxes"], detections["boxes"][1:])
    assert coco_mask.area(kept["masks"][0]) == 300 * 300
    assert draw_instances(blank(), **kept).shape == (600, 800, 3)
    nothing = detections_to_draw(detections, ["cat", "dog"], score_threshold=0.95)
    np.testing.assert_array_equal(draw_instances(blank(), **nothing), blank())


def written(monkeypatch: pytest.MonkeyPatch, picture: np.ndarray, title: str) -> tuple[str, Any]:
    """The title that `titled` writes, and its font."""
    said: list[tuple[str, Any]] = []
    real = draw.ImageDraw.ImageDraw.text

    def text(self: Any, at: Any, text: str, fill: Any, font: Any, **more: Any) -> None:
        said.append((text, font))
        real(self, at, text, fill, font, **more)

    monkeypatch.setattr(draw.ImageDraw.ImageDraw, "text", text)
    titled(picture, title)
    monkeypatch.undo()
    return said[0]


@pytest.mark.parametrize("name", ["a" * 300 + "_0017.jpg", "folder/" * 60 + "ünï/日本語_7.png"])
def test_a_long_title_is_cut_in_its_middle(monkeypatch: pytest.MonkeyPatch, name: str):
    for picture in (blank(), blank(800, 200), blank(30, 20)):
        shown, font = written(monkeypatch, picture, name)
        width = picture.shape[1] - 4
        assert font.getlength(shown) <= width or len(shown) <= 4
        assert "..." in shown
        assert titled(picture, name).shape[1] == picture.shape[1]
    shown, _ = written(monkeypatch, blank(), name)
    assert shown[:3] == name[:3]
    assert shown[-5:] == name[-5:]


def test_a_title_that_fits_is_whole(monkeypatch: pytest.MonkeyPatch):
    assert written(monkeypatch, blank(), "000000001.jpg")[0] == "000000001.jpg"


def test_titles_of_upright_and_wide_pictures_have_one_size(monkeypatch: pytest.MonkeyPatch):
    fonts = [written(monkeypatch, blank(*size), "a.jpg")[1] for size in ((600, 800), (800, 600))]
    assert fonts[0].size == fonts[1].size
