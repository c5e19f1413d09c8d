"""Whether data that `data.val_share` divides still have the validation images of a run.

A file that is added to or removed from the folder divides it in another way, so training images of
the run could be scored as validation images.
"""

from pathlib import Path

from maskrcnn_lit.data.coco.fingerprint import fingerprint
from maskrcnn_lit.data.coco.index import AnnotationIndex
from maskrcnn_lit.data.coco.reading import OneJson
from maskrcnn_lit.data.coco_data import CocoData
from maskrcnn_lit.errors import UserError, plural
from maskrcnn_lit.runs.result import read_result


def same_validation_images(run: str | Path, index: AnnotationIndex) -> bool | None:
    """Whether `index` has the validation images that a run recorded; None: it recorded none.

    Args:
        run: a run folder, a checkpoint in one, or exported files.
        index: validation images.

    Raises:
        UserError: result.json of the run is damaged.
    """
    path = Path(run)
    for folder in (path, path.parent, path.parent.parent):
        if (folder / "result.json").is_file():
            recorded = (read_result(folder / "result.json").data.get("val") or {}).get(
                "images_sha256"
            )
            return None if recorded is None else recorded == fingerprint(index)["images_sha256"]
    return None


def check_own_validation(run: str | Path, data: CocoData, remedy: str) -> None:
    """Raise UserError if `data`, those of a run, are divided in another way than the run recorded.
    Without a record, a warning says that training images may be among them.

    Args:
        run: see `same_validation_images`.
        data: after `setup`.
        remedy: an alternative to restoring the files, for the message.
    """
    same = _same_division(run, data)
    if same is None:
        data.announce(_unknown(run, data))
    elif not same:
        source = data.reader.annotations if isinstance(data.reader, OneJson) else data.root
        raise UserError(
            f"the validation images of {source}, as data.val_share divides it now, are not those "
            f"that {run} recorded, and the run may have trained on some of them: restore the files "
            f"that were added, removed or changed{remedy}"
        )


def warn_of_other_division(run: str | Path, data: CocoData) -> None:
    """As `check_own_validation` for data that the user named: only a warning.

    Args:
        run, data: see there.
    """
    if not _same_division(run, data):
        data.announce(_unknown(run, data))


def _same_division(run: str | Path, data: CocoData) -> bool | None:
    if data.split is None:
        return True
    if data.val_index is None:
        raise RuntimeError("call setup() first")
    return same_validation_images(run, data.val_index)


def _unknown(run: str | Path, data: CocoData) -> str:
    count = 0 if data.val_index is None else len(data.val_index)
    return (
        f"warning: {run} has no record that these {plural(count, 'image')}, divided by "
        "data.val_share, are its validation images: it may have trained on some of them"
    )
