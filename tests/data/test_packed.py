import numpy as np

from maskrcnn_lit.data.coco_json import Columns, ImageEntry
from maskrcnn_lit.data.packed import Names, pack


def test_names_are_strings_in_one_array():
    text = "aßc.jpgb.png".encode()
    names = Names(np.frombuffer(text, np.uint8), np.array([[8, 13], [0, 8]]))
    assert list(names) == ["b.png", "aßc.jpg"] and names[-1] == "aßc.jpg" and len(names) == 2
    assert list(names[1:]) == ["aßc.jpg"] and "b.png" in names


def test_images_stand_by_name_and_annotations_by_box():
    columns = Columns()
    for image, number, x in ((0, 10, 7.0), (1, 11, 5.0), (0, 12, 3.0)):
        columns.images.append(image)
        columns.ids.append(number)
        columns.labels.append(1)
        columns.crowd.append(0)
        columns.areas.append(1.0)
        columns.boxes.extend([x, 0, 1, 1])
        columns.coordinates.extend([x] * 6)
        columns.coordinate_ends.append(len(columns.coordinates))
        columns.part_ends.append(len(columns.coordinate_ends))
        columns.run_ends.append(0)
    packed = pack([ImageEntry(5, 4, 4, "z"), ImageEntry(6, 4, 4, "a"), ImageEntry(7, 4, 4, "k")], columns)
    store = packed["store"]
    assert packed["image_ids"].tolist() == [6, 7, 5] and list(packed["file_names"]) == ["a", "k", "z"]
    assert packed["spans"].tolist() == [[0, 1], [1, 1], [1, 3]]
    assert store.ids.tolist() == [11, 12, 10] and store.order.tolist() == [1, 2, 0]
    for n, x in enumerate((5.0, 3.0, 7.0)):  # the shapes stay with their annotations
        ((begin, end),) = store.coordinate_spans[slice(*store.part_spans[n])]
        assert store.coordinates[begin:end].tolist() == [x] * 6


def test_a_json_without_annotations_or_images():
    packed = pack([ImageEntry(1, 4, 4, "a")], Columns())
    assert packed["spans"].tolist() == [[0, 0]] and packed["store"].boxes.shape == (0, 4)
    assert len(pack([], Columns())["image_ids"]) == 0
