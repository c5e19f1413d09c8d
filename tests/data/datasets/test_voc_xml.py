from pathlib import Path

import pytest
from PIL import Image

from maskrcnn_lit.data.coco.reading import ALL
from maskrcnn_lit.data.datasets.voc_xml import VocXml
from maskrcnn_lit.errors import UserError

BOX = "<bndbox><xmin>3</xmin><ymin>2</ymin><xmax>12</xmax><ymax>9</ymax></bndbox>"
DOG = f"<object><name>dog</name><difficult>0</difficult>{BOX}</object>"


def write(root: Path, stem: str, objects: str = DOG, size: str = "40 30", name: str = "") -> None:
    """A picture of 40 x 30 and its xml, in the folders of the VOC."""
    for folder in ("Annotations", "JPEGImages"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / f"{stem}.jpg")
    width, height = size.split()
    shape = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    text = f"<annotation><filename>{name or stem}.jpg</filename>{shape}{objects}</annotation>"
    (root / "Annotations" / f"{stem}.xml").write_text(text)


def test_boxes_from_one(tmp_path: Path):
    hard = DOG.replace("<difficult>0", "<difficult>1")
    write(tmp_path, "a", DOG + hard)
    part = VocXml().read(tmp_path, ALL)
    dog, difficult = part.content["annotations"]
    assert part.content["images"][0]["file_name"] == "JPEGImages/a.jpg"
    assert not part.faults
    assert dog["bbox"] == [2, 1, 10, 8]
    assert dog["area"] == 80
    assert "segmentation" not in dog
    assert difficult["ignore"] == 1
    assert "ignore" not in dog
    (zero, _) = VocXml(first_pixel=0).read(tmp_path, ALL).content["annotations"]
    assert zero["bbox"] == [3, 2, 9, 7]


def test_an_umlaut_may_be_one_character_or_two(tmp_path: Path):
    write(tmp_path, "Hund_\u00e4", name="Hund_a\u0308")
    write(tmp_path, "Hund_\u00f6", name="lost")
    below = tmp_path / "Annotations"
    (below / "Hund_\u00f6.xml").rename(below / "Hund_o\u0308.xml")
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("Hund_a\u0308\nHund_\u00f6\n")
    part = VocXml().read(tmp_path, "train")
    names = sorted(image["file_name"] for image in part.content["images"])
    assert names == ["JPEGImages/Hund_\u00e4.jpg", "JPEGImages/Hund_\u00f6.jpg"]
    assert not part.faults


def test_polygons_are_masks(tmp_path: Path):
    corners = "<x1>1</x1><y1>1</y1><x2>9</x2><y2>1</y2><x3>9</x3><y3>5</y3>"
    write(tmp_path, "a", f"<object><name>dog</name><polygon>{corners}</polygon>{BOX}</object>")
    (entry,) = VocXml().read(tmp_path, ALL).content["annotations"]
    assert entry["segmentation"] == [[1, 1, 9, 1, 9, 5]]


def test_parts_by_lists_and_by_folders(tmp_path: Path):
    for stem in ("a", "b", "c"):
        write(tmp_path / "voc", stem)
        write(tmp_path / "own" / ("val" if stem == "c" else "train"), stem)
    lists = tmp_path / "voc" / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a  1\nb -1\nlost\n")
    (lists / "val.txt").write_text("c\n")
    for root in (tmp_path / "voc", tmp_path / "own"):
        assert VocXml().parts(root) == ["train", "val"]
        train, val = (VocXml().read(root, part) for part in ("train", "val"))
        assert (len(train.content["images"]), len(val.content["images"])) == (2, 1)
    (fault,) = VocXml().read(tmp_path / "voc", "train").faults
    assert (fault.kind, fault.image) == ("no xml", "lost")


def test_an_image_without_objects_or_xml(tmp_path: Path):
    write(tmp_path, "a")
    write(tmp_path, "b", "")
    write(tmp_path, "c")
    (tmp_path / "Annotations" / "c.xml").unlink()
    part = VocXml().read(tmp_path, ALL)
    assert len(part.content["images"]) == 2
    assert not part.faults
    assert [change.image for change in part.changes] == ["JPEGImages/c.jpg"]


BAD = {
    "no name": (DOG.replace("dog", ""), "no name", "object 2"),
    "no box": ("<object><name>dog</name></object>", "no box", "bndbox has None"),
    "no number": (DOG.replace("12", "twelve"), "no box", "'twelve'"),
    "reversed": (DOG.replace("12", "1"), "box without area", "from 3, 2 to 1, 9"),
    "polygon with one point": (
        "<object><name>dog</name><polygon><x1>1</x1><y1>1</y1></polygon></object>",
        "polygon under 3 points",
        "2 numbers",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_object_is_named_by_file_and_number(name: str, tmp_path: Path):
    text, kind, what = BAD[name]
    write(tmp_path, "a", DOG + text)
    part = VocXml().read(tmp_path, ALL)
    (fault,) = part.faults
    assert (fault.kind, fault.image) == (kind, "Annotations/a.xml")
    assert what in fault.what
    assert len(part.content["annotations"]) == 1


def test_files_that_do_not_match(tmp_path: Path):
    write(tmp_path, "a")
    write(tmp_path, "b", name="a")
    write(tmp_path, "c", size="30 40")
    write(tmp_path, "d")
    (tmp_path / "JPEGImages" / "d.jpg").unlink()
    (tmp_path / "Annotations" / "e.xml").write_text("<annotation>")
    part = VocXml().read(tmp_path, ALL)
    assert [(fault.kind, fault.image) for fault in part.faults] == [
        ("two files for one image", "Annotations/b.xml"),
        ("size differs", "JPEGImages/c.jpg"),
        ("missing file", "d.jpg"),
        ("broken xml", "Annotations/e.xml"),
    ]


def test_a_folder_without_xml(tmp_path: Path):
    with pytest.raises(UserError, match="has no xml of 'all'"):
        VocXml().read(tmp_path, ALL)
