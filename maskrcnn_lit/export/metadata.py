"""What an exported file says of itself, as JSON inside of it and beside it.

It may be a stranger's file, so it is data alone: `read` compares every value with its kind and
range, and nothing of it is imported, built or run. Letters: K classes.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from maskrcnn_lit.errors import UserError

VERSION = 1
KEY = "maskrcnn_lit"  # the name of the JSON text inside of a file

FORMATS = ("onnx", "openvino", "pt2")
PRECISIONS = ("f32", "int8")

MAX_BYTES = 16 * 2**20  # a hundred thousand classes have a few
MAX_SIDE, MAX_CLASSES, MAX_SLOTS = 16_384, 65_536, 1_000_000
MAX_TEXT = 4096


@dataclass(frozen=True)
class Metadata:
    """Attributes:
    version: of this description.
    format, precision: of FORMATS and PRECISIONS.
    size: height, width of the padded images in pixels, multiples of 32.
    batch_size: images of a call.
    image_size: the resize rule: one side in pixels, or (short, long).
    mean, std: of pixels in 0..1, R G B. The graph normalises; this is to know.
    classes: K pairs of the id and the name of a category; label l is number l - 1.
    slots, mask_side: of the outputs; mask_side 0: there are no masks. score_threshold, nms_iou:
        inside of the graph.
    thresholds: K, the best score threshold of each class as `evaluate` found it, or None.
    config_sha256: of the config of the run; commit: the code that exported, or None.
    versions: package -> version.
    exclusive: whether a pixel belongs to one detection, which whoever pastes the masks sees to.
    bits: the depth of samples of more than 8 bits; 0: by each file.
    """

    version: int
    format: str
    precision: str
    size: tuple[int, int]
    batch_size: int
    image_size: int | tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[tuple[int, str], ...]
    slots: int
    mask_side: int
    score_threshold: float
    nms_iou: float
    thresholds: tuple[float, ...] | None
    config_sha256: str
    commit: str | None
    versions: dict[str, str]
    exclusive: bool = False
    bits: int = 0

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def read(text: str | bytes | None, where: str) -> Metadata:
    """The metadata in a file; `where` names the file.

    Raises: UserError: there is none, it is of another version, or a value is not what it should be.
    """
    if text is None:
        raise UserError(
            f"{where} has no metadata of maskrcnn_lit: give a file that `maskrcnn-lit export` wrote"
        )
    try:
        if len(text) > MAX_BYTES:
            raise ValueError(f"it has over {MAX_BYTES} bytes")
        values = json.loads(text)
        version = values["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(where, error) from None
    if version != VERSION:
        raise UserError(
            f"{where} is an export of version {str(version)[:20]}, and this maskrcnn_lit reads "
            f"version {VERSION}: export the run again"
        )
    try:
        return _checked(values)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _damaged(where, error) from None


def _damaged(where: str, error: Exception) -> UserError:
    return UserError(
        f"{where} has metadata that cannot be read ({' '.join(str(error).split())[:200]}): export "
        "the run again"
    )


def _checked(values: dict[str, Any]) -> Metadata:
    rule = values["image_size"]
    thresholds, commit = values["thresholds"], values["commit"]
    classes = tuple((_whole(row[0]), _text(row[1])) for row in _list(values["classes"]))
    metadata = Metadata(
        version=VERSION,
        format=_choice(values["format"], FORMATS),
        precision=_choice(values["precision"], PRECISIONS),
        size=_pair(values["size"]),
        batch_size=_whole(values["batch_size"], 1, MAX_SIDE),
        image_size=_pair(rule) if isinstance(rule, list) else _whole(rule, 1, MAX_SIDE),
        mean=_numbers(values["mean"], 3),
        std=_numbers(values["std"], 3),
        classes=classes,
        slots=_whole(values["slots"], 1, MAX_SLOTS),
        mask_side=_whole(values["mask_side"], 0, MAX_SIDE),
        score_threshold=_number(values["score_threshold"]),
        nms_iou=_number(values["nms_iou"]),
        thresholds=None if thresholds is None else _numbers(thresholds, len(classes)),
        config_sha256=_text(values["config_sha256"]),
        commit=None if commit is None else _text(commit),
        versions={_text(name): _text(value) for name, value in values["versions"].items()},
        exclusive=values.get("exclusive", False) is True,
        bits=_whole(values.get("bits", 0), 0, 32),
    )
    if any(side % 32 for side in metadata.size):
        raise ValueError(f"size is {list(metadata.size)}, which are not multiples of 32")
    return metadata


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_CLASSES:
        raise ValueError("a list is missing")
    return value


def _whole(value: Any, low: int = -(2**63), high: int = 2**63) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ValueError(f"{str(value)[:40]} is not a whole number from {low} to {high}")
    return value


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(f"{str(value)[:40]} is not a number from 0 to 1")
    return float(value)


def _numbers(value: Any, count: int) -> tuple[float, ...]:
    if len(_list(value)) != count:
        raise ValueError(f"{len(value)} numbers in place of {count}")
    return tuple(map(_number, value))


def _pair(value: Any) -> tuple[int, int]:
    if len(_list(value)) != 2:
        raise ValueError("a pair of sides is missing")
    return _whole(value[0], 1, MAX_SIDE), _whole(value[1], 1, MAX_SIDE)


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise ValueError(f"{str(value)[:40]} is not text")
    return value


def _choice(value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{str(value)[:40]} is none of {', '.join(choices)}")
    return str(value)
