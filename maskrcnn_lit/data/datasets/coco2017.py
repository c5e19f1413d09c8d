"""COCO 2017: downloads the annotation archive once, and only the images that a subset needs.

root/annotations_trainval2017.zip    read in place (sources.py), or root/annotations/*.json
root/train2017/000000000009.jpg ...  the images requested so far, or root/train2017.zip
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_lit.data.coco.arrays import open_json
from maskrcnn_lit.data.coco.classes import choose_classes, read_choice
from maskrcnn_lit.data.coco.index import SubsetOrder, full_index, select_images
from maskrcnn_lit.data.datasets.web_images import WebImage, fetch_images
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.download import download as download_file
from maskrcnn_lit.storage.files import default_cache
from maskrcnn_lit.storage.sources import ANNOTATION_ARCHIVE, Folder, open_annotations

SERVER = "http://images.cocodataset.org"

ANNOTATIONS_URL = f"{SERVER}/annotations/{ANNOTATION_ARCHIVE}"  # 252,907,541 bytes

ANNOTATIONS_MD5 = "f4bbac642086de4f52a3fdda2de5fa2c"

PARTS = ("train", "val")


def prepare(
    *,
    root: str | Path,
    train_images: int | None,
    val_images: int | None,
    subset: SubsetOrder,
    seed: int,
    image_ids: Sequence[int] | None,
    keep_empty: bool,
    download: bool,
    mirror: str | None,
    classes: Sequence[Any] | Mapping[str, str | None] | None = None,
    cache_dir: str | Path | None = None,
    parts: Sequence[str] = PARTS,
    archive_md5: str = ANNOTATIONS_MD5,
) -> None:
    """Download the files of COCO 2017 that a run needs into `root`. Does nothing if `root` is a
    URL.

    Args: root: a folder, or a URL. train_images, val_images: number of images of each part; None:
    all. subset, seed, image_ids, keep_empty, classes: how to select them, see `CocoDataModule`.
    cache_dir: folder for the packed annotations; None: the user's cache. download: False: download
    nothing; images may be missing, but folders and annotations must exist. mirror: replaces SERVER
    in every URL. parts: of PARTS. archive_md5: of the annotation archive.

    Raises:
        UserError: files are missing, after all retries or with `download` False.
    """
    if "://" in str(root):
        return
    root = Path(root)
    if download:
        fetch_annotations(root, mirrored(ANNOTATIONS_URL, mirror), archive_md5, parts)
    else:
        _check_there(root, parts)
        return
    counts, choice = {"train": train_images, "val": val_images}, read_choice(classes)
    cache = Path(cache_dir).expanduser() if cache_dir else default_cache()
    for part in parts:
        folder = root / f"{part}2017"
        if folder.with_name(f"{folder.name}.zip").is_file() and not folder.is_dir():
            continue
        json_file = open_annotations(str(_annotations(root, part)), cache, cache_gb=0)
        packed = open_json(*json_file, cache)
        if choice is not None:
            packed = choose_classes(packed, choice, f"{part}2017")
        index = full_index(packed, Folder(folder))
        # Both parts of a run may use images of one part: see experiment=overfit.
        ids = None if image_ids is None else sorted(set(image_ids) & set(index.image_ids.tolist()))
        if ids == []:
            continue
        index, count = select_images(index, ids, keep_empty, counts[part], subset, seed)
        chosen = [
            WebImage(index.file_name(i), mirrored(index.urls[i], mirror), *index.size(i))
            for i in range(count)
        ]
        fetch_images(chosen, folder)


def fetch_annotations(root: Path, archive_url: str, md5: str, parts: Sequence[str] = PARTS) -> None:
    """Make sure `root` has the annotations: the jsons of `parts`, or the archive, which is read in
    place.

    Raises:
        UserError: the archive cannot be downloaded, or does not match `md5`.
    """
    if not all(_annotations(root, part).is_file() for part in parts):
        download_file(archive_url, root / ANNOTATION_ARCHIVE, md5, "md5")


def mirrored(url: str, mirror: str | None) -> str:
    """The URL on a mirror of COCO's server, for example http://host/coco."""
    if mirror is None or not url.startswith(f"{SERVER}/"):
        return url
    return mirror.rstrip("/") + url.removeprefix(SERVER)


def _annotations(root: Path, part: str) -> Path:
    return root / "annotations" / f"instances_{part}2017.json"


def _check_there(root: Path, parts: Sequence[str]) -> None:
    for part in parts:
        for path, archive in (
            (_annotations(root, part), root / ANNOTATION_ARCHIVE),
            (root / f"{part}2017", root / f"{part}2017.zip"),
        ):
            if not path.exists() and not archive.is_file():
                raise UserError(
                    f"neither {path} nor {archive} exists, and data.download=false: give the "
                    "folder of COCO 2017 with data.root=DIR, or download it with data.download=true"
                )
