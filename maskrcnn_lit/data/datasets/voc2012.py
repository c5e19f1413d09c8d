"""Pascal VOC 2012 as downloaded: instances of the segmentation task, and what it says of each.

    root/ImageSets/Segmentation/train.txt, val.txt     the images of each part
    root/JPEGImages/NAME.jpg
    root/SegmentationObject/NAME.png                   pixels of object n have the value n
    root/SegmentationClass/NAME.png                    and those of class k the value k
    root/Annotations/NAME.xml                          boxes and `difficult`

Values are the indices of a palette, or colors of VOC's palette in an RGB picture. 255 is void: the
border around objects, and what nobody labeled. Void pixels belong to no object.

The box is that of Annotations, as in VOC's detection task: it covers the visible object, which a
mask without its void border does not. Object n of the picture is object n of the xml if their
classes agree and their boxes overlap; otherwise the one of its class with the highest IoU. A mask
without such an entry gets its own box, an entry without a mask is a box without a mask. Difficult
objects are ignored regions.

`sbd` adds masks of the Semantic Boundaries Dataset (Hariharan et al. 2011) to the training images:
those of its train.txt and val.txt that are in neither of VOC's lists. They have no void pixels.
Without `download`, everything must be in the folder already.
"""

import tarfile
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from maskrcnn_lit.data.coco.image_files import image_size
from maskrcnn_lit.data.coco.reading import ALL, Part
from maskrcnn_lit.data.datasets.collector import PARTS, Collector, rle_of
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.storage.download import download as download_file
from maskrcnn_lit.storage.sources import Folder

URL = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"

MD5 = "6cd6e144f989b92b3379bac3b3de84fd"

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)

VOID = 255

LEAST_IOU = 0.1  # of the box of a mask with that of its entry in Annotations

_BROKEN_MAT = (
    *(OSError, ValueError, KeyError, TypeError, IndexError, AttributeError),
    *(MatReadError, NotImplementedError, zlib.error),
)

_LISTS = Path("ImageSets", "Segmentation")


class Entry(NamedTuple):
    """An object of an xml."""

    name: str
    box: list[float]  # x y w h, from 0
    difficult: bool


class Labels(NamedTuple):
    """The pictures of an image."""

    objects: NDArray[np.uint8]  # H W, VOID in void pixels
    classes: NDArray[np.uint8]  # H W


class Instance(NamedTuple):
    number: int  # its value in the picture
    name: str
    mask: NDArray[np.bool_]
    box: list[float]  # x y w h of the mask


class UnusableError(Exception):
    """kind, file, detail: why an image cannot be used."""


@dataclass(frozen=True, kw_only=True)
class Voc2012:
    """Reads VOCdevkit/VOC2012.

    Args:
        sbd: the folder `dataset` of the Semantic Boundaries Dataset; None: without it.
    """

    sbd: str | None = None

    def parts(self, root: Path) -> Sequence[str]:
        present = [part for part in PARTS if (root / _LISTS / f"{part}.txt").is_file()]
        if not present:
            raise UserError(
                f"{root} has no {_LISTS}/train.txt and val.txt: give the folder VOCdevkit/VOC2012 "
                "with data.root=DIR, or download it with `maskrcnn-lit download data=voc2012`"
            )
        return present

    def sources(self, root: Path) -> Sequence[Path]:
        folders = ("Annotations", "SegmentationClass", "SegmentationObject", _LISTS, "JPEGImages")
        return [
            *(root / name for name in folders if (root / name).is_dir()),
            *([Path(self.sbd)] if self.sbd is not None else []),
        ]

    def read(self, root: Path, part: str) -> Part:
        present = self.parts(root)
        parts = present if part == ALL else [part]
        stems = [stem for one in parts for stem in _listed(root / _LISTS / f"{one}.txt")]
        stems = list(dict.fromkeys(stems))
        sbd = self._sbd_stems(root, present) if "train" in parts else []
        collector = Collector(root, CLASSES)
        with ThreadPoolExecutor() as pool:
            labels = pool.map(lambda stem: _tried(_pictures, root, stem), stems)
            for stem, one in zip(stems, labels, strict=True):
                self._add(collector, stem, one)
            folder = Path(self.sbd or "")
            labels = pool.map(lambda stem: _tried(_sbd_labels, folder, stem), sbd)
            for stem, one in zip(sbd, labels, strict=True):
                self._add(collector, stem, one)
        return collector.part()

    def _sbd_stems(self, root: Path, present: Sequence[str]) -> list[str]:
        """The images of SBD that are in no list of VOC."""
        if self.sbd is None:
            return []
        folder = Path(self.sbd)
        lists = [folder / f"{part}.txt" for part in PARTS]
        if not (folder / "inst").is_dir() or not all(map(Path.is_file, lists)):
            raise UserError(
                f"data.sbd={self.sbd} has no inst/, train.txt and val.txt: give the folder "
                "`dataset` of benchmark.tgz"
            )
        of_voc = {stem for part in present for stem in _listed(root / _LISTS / f"{part}.txt")}
        stems = dict.fromkeys(stem for one in lists for stem in _listed(one))
        return [stem for stem in stems if stem not in of_voc]

    def _add(self, collector: Collector, stem: str, labels: Labels | UnusableError) -> None:
        """Add an image with its objects, or its fault."""
        name = f"JPEGImages/{stem}.jpg"
        if isinstance(labels, UnusableError):
            collector.fault(*labels.args)
            return
        size = image_size(Folder(collector.images), name)
        if size is not None and size != labels.objects.shape:
            (height, width), (own_height, own_width) = labels.objects.shape, size
            detail = f"{width} x {height}, but {name} is {own_width} x {own_height}"
            collector.fault("mask of another size", f"SegmentationObject/{stem}.png", detail)
            return
        void = labels.objects == VOID
        image = collector.image(name, **({"ignore": rle_of(void)} if void.any() else {}))
        if image is None:
            return
        entries = self._entries(collector, stem)
        instances = list(_instances(collector, stem, labels))
        chosen = assign(instances, entries)
        for instance, n in zip(instances, chosen, strict=True):
            entry = None if n is None else entries[n]
            if entry is None and entries:
                detail = f"object {instance.number} ({instance.name}) gets the box of its mask"
                collector.change("mask without an annotation", f"Annotations/{stem}.xml", detail)
            fields = {"area": float(instance.mask.sum())} | _fields(entry)
            collector.add(image, instance.name, rle_of(instance.mask), **fields)
        for n in sorted(set(range(len(entries))) - set(chosen)):
            entry = entries[n]
            if not entry.difficult:
                detail = f"object {n + 1} ({entry.name}) of the xml is a box without a mask"
                collector.change("missing object mask", f"SegmentationObject/{stem}.png", detail)
            fields = _fields(entry)
            collector.add_box(image, entry.name, fields.pop("bbox"), **fields)

    def _entries(self, collector: Collector, stem: str) -> list[Entry]:
        """The usable objects of the xml of an image."""
        where = f"Annotations/{stem}.xml"
        try:
            objects = ET.parse(collector.images / where).getroot().findall("object")
        except FileNotFoundError:
            collector.change("no xml", where, "no such file: boxes are those of the masks")
            return []
        except (ET.ParseError, OSError) as error:
            collector.fault("broken xml", where, f"{error}: boxes are those of the masks")
            return []
        entries = []
        for number, element in enumerate(objects, 1):
            try:
                entries.append(_entry(element))
            except ValueError as error:
                collector.fault("broken object", where, f"object {number}: {error}")
        return entries


def assign(instances: Sequence[Instance], entries: Sequence[Entry]) -> list[int | None]:
    """The entry of each instance, None where there is none; each entry is used once."""
    overlaps = np.array(
        [
            [_box_iou(one.box, entry.box) * (one.name == entry.name) for entry in entries]
            for one in instances
        ]
    ).reshape(len(instances), len(entries))
    chosen: list[int | None] = [None] * len(instances)
    free = set(range(len(entries)))
    for n, one in enumerate(instances):
        own = one.number - 1
        if own < len(entries) and overlaps[n, own] >= LEAST_IOU:
            chosen[n] = own
            free.discard(own)
    for n in np.argsort(-overlaps.max(1, initial=0), kind="stable").tolist():
        if chosen[n] is None and free:
            best = max(sorted(free), key=overlaps[n].__getitem__)
            if overlaps[n, best] >= LEAST_IOU:
                chosen[n] = best
                free.discard(best)
    return chosen


def indices(picture: Image.Image) -> NDArray[np.uint8]:
    """H W: the indices of VOC's palette of a picture of indices, or of colors.

    Raises:
        ValueError: another kind of picture, or a color that the palette does not have.
    """
    if picture.mode in ("P", "L"):
        return np.asarray(picture)
    if picture.mode not in ("RGB", "RGBA"):
        raise ValueError(f"it has mode {picture.mode}: a palette or RGB is expected")
    colors = np.asarray(picture)[..., :3].astype(np.int64)
    codes = colors @ np.array([2**16, 2**8, 1])
    table = palette().astype(np.int64) @ np.array([2**16, 2**8, 1])
    order = np.argsort(table)
    nearest = np.searchsorted(table[order], codes).clip(max=len(table) - 1)
    result = order[nearest]
    unknown = table[result] != codes
    if unknown.any():
        y, x = np.argwhere(unknown)[0].tolist()
        raise ValueError(f"the color {colors[y, x].tolist()} is not in VOC's palette")
    return result.astype(np.uint8)


def palette() -> NDArray[np.uint8]:
    """256 3: VOC's colors. An index's bits go to red, green, blue in turn, to high bits first."""
    index = np.arange(256)
    colors = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return colors


def prepare(
    *, root: str | Path, download: bool, mirror: str | None, url: str = URL, md5: str = MD5
) -> None:
    """Download VOC 2012 (2 GB) and unpack it, so that `root`, a folder VOCdevkit/VOC2012, exists.
    Does nothing if it exists, or with `download` False.

    Args:
        mirror: http://HOST/PATH in place of the server and folder of `url`.

    Raises:
        UserError: the archive cannot be downloaded, or does not match `md5`; `root` has another
            name.
    """
    root = Path(root)
    if (root / _LISTS).is_dir() or not download:
        return
    if root.parts[-2:] != ("VOCdevkit", "VOC2012"):
        raise UserError(
            f"data.root={root} has no {_LISTS}; a download unpacks to VOCdevkit/VOC2012: give "
            "data.root=DIR/VOCdevkit/VOC2012"
        )
    target = root.parent.parent
    file = url.rsplit("/", 1)[1]
    source = url if mirror is None else f"{mirror.rstrip('/')}/{file}"
    download_file(source, target / file, md5, "md5")
    with tarfile.open(target / file) as archive:
        archive.extractall(target, filter="data")
    if not (root / _LISTS).is_dir():
        raise UserError(f"{target / file} has no VOCdevkit/VOC2012/{_LISTS}: download it again")


def _listed(file: Path) -> list[str]:
    try:
        return [line.split()[0] for line in file.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{file} cannot be read ({error}): give the list of images") from None


def _tried(read: Any, folder: Path, stem: str) -> Labels | UnusableError:
    try:
        return read(folder, stem)
    except UnusableError as error:
        return error


def _pictures(root: Path, stem: str) -> Labels:
    objects, classes = (
        _picture(root, f"{folder}/{stem}.png")
        for folder in ("SegmentationObject", "SegmentationClass")
    )
    if objects.shape != classes.shape:
        (height, width), (own_height, own_width) = objects.shape, classes.shape
        raise UnusableError(
            "mask of another size",
            f"SegmentationObject/{stem}.png",
            f"{width} x {height}, but SegmentationClass has {own_width} x {own_height}",
        )
    objects = np.where(classes == VOID, np.uint8(VOID), objects)
    return Labels(objects, classes)


def _picture(root: Path, name: str) -> NDArray[np.uint8]:
    try:
        with Image.open(root / name) as picture:
            return indices(picture)
    except FileNotFoundError:
        raise UnusableError("missing mask", name, "no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        text = "unknown format" if "cannot identify" in str(error) else str(error)
        raise UnusableError("mask cannot be used", name, text) from None


def _sbd_labels(folder: Path, stem: str) -> Labels:
    name = f"inst/{stem}.mat"
    try:
        content = loadmat(folder / name, squeeze_me=True)["GTinst"]
        objects = np.asarray(content["Segmentation"].item(), np.uint8)
        categories = np.atleast_1d(content["Categories"].item()).astype(np.int64)
    except FileNotFoundError:
        raise UnusableError("missing mask", name, "no such file in data.sbd") from None
    except _BROKEN_MAT as error:
        raise UnusableError("mask cannot be used", name, f"no GTinst of SBD: {error}") from None
    if objects.ndim != 2 or objects.max(initial=0) > len(categories):
        raise UnusableError(
            "mask cannot be used", name, f"{objects.max()} objects and {len(categories)} classes"
        )
    return Labels(objects, np.r_[0, categories].astype(np.uint8)[objects])


def _instances(collector: Collector, stem: str, labels: Labels) -> Any:
    """The objects of an image; those without one class are faults, and so are other pixels with
    a value that has no class.
    """
    where = f"SegmentationClass/{stem}.png"
    kind, expected = "palette value without a class", f"a class has 1 to {len(CLASSES)}"
    rest = labels.classes.copy()
    for number, place in enumerate(ndimage.find_objects(labels.objects.astype(np.int32)), 1):
        if place is None or number == VOID:
            continue
        mask = np.zeros(labels.objects.shape, bool)
        mask[place] = labels.objects[place] == number
        counts = np.bincount(labels.classes[mask], minlength=256)
        best = int(counts.argmax())
        if not 1 <= best <= len(CLASSES):
            detail = f"object {number} has the value {best}: {expected}"
            collector.fault(kind, where, detail)
            rest[mask] = 0
            continue
        rows, columns = place
        box = [columns.start, rows.start, columns.stop, rows.stop]
        box = [*box[:2], box[2] - box[0], box[3] - box[1]]
        yield Instance(number, CLASSES[best - 1], mask, list(map(float, box)))
    for value, pixels in enumerate(np.bincount(rest.ravel(), minlength=256).tolist()):
        if pixels and len(CLASSES) < value < VOID:
            detail = f"{plural(pixels, 'pixel')} of the value {value}: {expected}, void has {VOID}"
            collector.fault(kind, where, detail)


def _entry(element: ET.Element) -> Entry:
    name = (element.findtext("name") or "").strip()
    if name not in CLASSES:
        raise ValueError(f"the class {name!r} is not one of VOC")
    texts = [element.findtext(f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
    if None in texts:
        raise ValueError("it has no box")
    x1, y1, x2, y2 = (float(text or "") for text in texts)
    if not (x2 >= x1 and y2 >= y1):
        raise ValueError(f"its box {[x1, y1, x2, y2]} has no area")
    box = [x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1]  # from 1, both ends included
    return Entry(name, box, (element.findtext("difficult") or "0").strip() == "1")


def _fields(entry: Entry | None) -> dict[str, Any]:
    """Fields of the annotation from the xml."""
    if entry is None:
        return {}
    fields: Mapping[str, Any] = {"ignore": 1} if entry.difficult else {}
    return {"bbox": entry.box, **fields}


def _box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes x y w h."""
    across = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    down = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    shared = max(across, 0.0) * max(down, 0.0)
    return shared / (a[2] * a[3] + b[2] * b[3] - shared)
