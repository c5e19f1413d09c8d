"""Converts the sources of `predict` to H W 3 uint8 RGB arrays, and names videos (video.py).

`list_inputs` checks all sources at once but reads only names; each input is read lazily. Files,
bytes and PIL images use the decoder of images.py; ambiguous arrays and tensors, by shape or values,
are errors.
"""

import glob
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.storage.download import get
from maskrcnn_lit.storage.files import safe_path
from maskrcnn_lit.storage.image_sets import (
    JSON,
    LIST,
    ZIP,
    coco_images,
    is_hidden,
    read_list,
    read_member,
    zip_names,
)
from maskrcnn_lit.storage.images import (
    MAX_PIXELS,
    SUFFIXES,
    UnreadableImageError,
    decode,
    more_than,
    page_count,
    to_rgb,
)
from maskrcnn_lit.storage.strips import Strips, open_strips
from maskrcnn_lit.storage.video import (
    STREAMS,
    VIDEO_SUFFIXES,
    WEBCAM,
    VideoInput,
    hide_password,
    video_input,
)
from maskrcnn_lit.storage.zip_source import Zip

ACCEPTED = (
    "an image file, a folder, a glob, a zip, a list in a text file, a COCO json, an http(s) URL, a "
    "video, a stream, the bytes of an image file, a PIL image, an array, a tensor, or a list of "
    "these"
)

_CHANNELS = (1, 3, 4)  # gray, RGB, RGBA

_ROUNDING = 1e-3  # tolerance beyond 0..1 after a resize: a quarter of an 8-bit step

_log = logging.getLogger(__name__)


class Limits(NamedTuple):
    """max_pixels: limit for an image file. page: of a TIFF or GIF with several pages, from 1; None:
    the first, with a warning. strips: whether a large file is read in windows, see strips.py. bits:
    the depth of samples of more than 8 bits; 0: by each file.
    """

    max_pixels: int = MAX_PIXELS
    page: int | None = None
    strips: bool = False
    bits: int = 0


class ImageInput(NamedTuple):
    """One image to predict on.

    Attributes:
        name: a path below its folder, a file name, or the type of the source.
        read: reads it as H W 3 uint8 RGB, or opens a large file to be read in windows. It returns
            None for a damaged file of a folder, a glob, a zip, a list in a text file or a COCO
            json, which is skipped with a warning, and raises UserError for any other input that is
            not an image.
        id: of the image in a COCO json; None: from another source.
        file: where it is; None: not in a file of its own.
        skip: whether a damaged file is skipped.
    """

    name: str
    read: Callable[[], NDArray[np.uint8] | Strips | None]
    id: int | None = None
    file: Path | None = None
    skip: bool = False


Input: TypeAlias = ImageInput | VideoInput


def list_inputs(
    sources: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    page: int | None = None,
    strips: bool = False,
    bits: int = 0,
) -> list[Input]:
    """The images and videos of `sources`: one source of ACCEPTED, or a list or tuple of them.
    max_pixels, page, strips, bits: see `Limits`.

    Raises: UserError: a file that does not exist, a folder without images, an object that is not an
        image, a video without PyAV. Contents are checked when they are read.
    """
    check_whole(1, max_pixels=max_pixels, page=page or 1)
    limits = Limits(max_pixels, page, strips, bits)
    if _is_collection(sources):
        return list(_inputs_of_all(sources, limits))
    return list(_inputs_of(sources, limits))


def iterate_inputs(
    sources: Any,
    *,
    max_pixels: int = MAX_PIXELS,
    page: int | None = None,
    strips: bool = False,
    bits: int = 0,
) -> Iterator[Input]:
    """As `list_inputs`, but an iterator or generator of sources is consumed lazily."""
    if _is_collection(sources) and isinstance(sources, Iterator):
        check_whole(1, max_pixels=max_pixels, page=page or 1)
        return _inputs_of_all(sources, Limits(max_pixels, page, strips, bits))
    return iter(list_inputs(sources, max_pixels=max_pixels, page=page, strips=strips, bits=bits))


def _inputs_of_all(sources: Iterable[Any], limits: Limits) -> Iterator[Input]:
    for i, source in enumerate(sources):
        yield from _inputs_of(source, limits, f"[{i}]")


def _is_collection(sources: Any) -> bool:
    """Whether `sources` is a collection of sources."""
    one = isinstance(sources, (str, bytes, bytearray, memoryview, ImageInput, VideoInput))
    content = any(hasattr(sources, name) for name in ("read", "__array__", "__array_interface__"))
    return isinstance(sources, Iterable) and not one and not content


def _inputs_of(source: Any, limits: Limits, suffix: str = "") -> Sequence[Input]:
    """The images of one source; `suffix` distinguishes unnamed images of a list."""
    if isinstance(source, (ImageInput, VideoInput)):
        return [source]
    if isinstance(source, (str, Path)):
        return _of_text(str(source), limits)
    if isinstance(source, (bytes, bytearray, memoryview)):
        name = f"bytes{suffix}"
        return [ImageInput(name, partial(_decode, bytes(source), name, limits))]
    if isinstance(source, Image.Image):
        file = getattr(source, "filename", None)
        name = Path(file).name if file and isinstance(file, (str, Path)) else f"image{suffix}"
        return [ImageInput(name, partial(_from_pil, source, name, limits.bits))]
    if hasattr(source, "read"):
        file = getattr(source, "name", None)
        name = Path(file).name if file and isinstance(file, str) else f"file{suffix}"
        return [ImageInput(name, partial(_from_file, source, name, limits))]
    array = _as_array(source)
    if array is None:
        raise UserError(
            f"a source of type {type(source).__name__} is not an image: give {ACCEPTED}"
        )
    kind = "tensor" if hasattr(source, "detach") else "array"
    if array.ndim == 4:
        named = [(f"{kind}{suffix}[{i}]", image) for i, image in enumerate(array)]
    else:
        named = [(f"{kind}{suffix}", array)]
    bits = limits.bits
    return [ImageInput(name, partial(array_to_rgb, image, name, bits)) for name, image in named]


def _of_text(source: str, limits: Limits, skip: bool = False) -> Sequence[Input]:
    """The images of a path or URL. `skip` a damaged image file, although it is named alone."""
    if video := video_input(source):
        return [video]
    if "://" in source:
        if urlsplit(source).scheme.lower() not in ("http", "https"):
            raise UserError(
                f"source={hide_password(source)} cannot be read: predict reads http:// and "
                f"https:// URLs of images and videos, and streams of {', '.join(STREAMS)}; save "
                "others as files first"
            )
        return [ImageInput(_name_of_url(source), partial(_from_url, source, limits))]
    path = _path(source)
    if path.is_file():
        return _of_file(path, limits, skip)
    return [
        ImageInput(name, partial(_read_file, file, limits, skip=True), file=file, skip=True)
        for name, file in _images_of(source, _find(path))
    ]


def _images_of(source: str, files: Sequence[tuple[str, Path]]) -> list[tuple[str, Path]]:
    """Those of the files of `source` that are images by their suffixes. UserError: none."""
    images = [(name, file) for name, file in files if file.suffix.lower() in SUFFIXES]
    others = _by_kind(file for _, file in files if file.suffix.lower() not in SUFFIXES)
    if not images:
        videos = any(file.suffix.lower() in VIDEO_SUFFIXES for _, file in files)
        raise UserError(
            f"source={source} has no image{f' but {others}' if others else ''}: give an image, a "
            f"folder or a glob of files that end in {', '.join(SUFFIXES)} (quote a glob, so that "
            "the shell does not expand it)"
            f"{'; name each video, or list them in a text file' if videos else ''}"
        )
    if others:
        _log.info(f"{source}: skipping files that are not supported images: {others}")
    return images


def _of_file(path: Path, limits: Limits, skip: bool) -> Sequence[Input]:
    if video := video_input(str(path)):  # of ~/clip.mp4
        return [video]
    suffix = path.suffix.lower()
    if suffix in ZIP:
        return _of_zip(path, limits)
    if suffix in LIST:
        return _of_list(path, limits)
    if suffix in JSON:
        return [
            ImageInput(name, partial(_read_file, file, limits, skip=True), image_id, file, True)
            for image_id, name, file in coco_images(path)
        ]
    return [ImageInput(path.name, partial(_read_file, path, limits, skip=skip), None, path, skip)]


def _of_zip(path: Path, limits: Limits) -> list[ImageInput]:
    archive = Zip(path)
    files = [(name, Path(name)) for name in zip_names(archive)]
    return [
        ImageInput(name, partial(_read, partial(read_member, archive, name), path / name, limits))
        for name, _ in _images_of(str(path), files)
    ]


def _of_list(path: Path, limits: Limits) -> list[Input]:
    """The sources of a list, one a line; paths are relative to the folder of the list."""
    inputs: list[Input] = []
    for number, line in read_list(path):
        try:
            address = "://" in line or WEBCAM.fullmatch(line)
            source = line if address else str(path.parent / Path(line).expanduser())
            if Path(source).suffix.lower() in LIST:
                raise UserError(f"{line} is a list itself: name its images")
            of_line = _of_text(source, limits, skip=True)
        except (UserError, RuntimeError) as error:
            raise UserError(f"{path}, line {number}: {error}") from None
        alone = len(of_line) == 1 and safe_path(Path(), line) is not None and source != line
        inputs += [one._replace(name=line) for one in of_line] if alone else of_line
    return inputs


def _path(source: str) -> Path:
    """The path that a user typed. UserError: it cannot exist."""
    try:
        path = Path(source).expanduser()
        if source.startswith("webcam:") and not path.exists():
            raise UserError(f"source={source} is not a camera: give its number, e.g. webcam:0")
        if source and (path.exists() or glob.has_magic(source)):
            return path
    except (OSError, RuntimeError):  # a name that is too long, or ~ of an unknown user
        pass
    shown = f"{source[:100]}...{source[-100:]}" if len(source) > 200 else source
    hint = "give an image, a folder or a glob, e.g. 'photos/*.jpg'"
    if source.startswith("www."):
        hint = f"if it is an address, write source=https://{shown}"
    raise UserError(f"source={shown} does not exist: {hint}")


def _find(path: Path) -> list[tuple[str, Path]]:
    """The files of a folder with its subfolders, or of a glob (a/**/*.jpg), without hidden ones,
    sorted by name.

    Names are relative to the folder (for a glob, to the part before the first wildcard), so they
    are unique.
    """
    if path.is_dir():
        base, candidates = path, path.rglob("*")
    else:
        base = path
        while glob.has_magic(str(base)):
            base = base.parent
        candidates = (Path(name) for name in glob.iglob(str(path), recursive=True))
    named = ((file.relative_to(base).as_posix(), file) for file in candidates)
    return sorted((name, file) for name, file in named if file.is_file() and not is_hidden(name))


def _by_kind(files: Iterable[Path]) -> str:
    """'2 .mp4, 1 .heic', the most frequent first."""
    counts = Counter(file.suffix.lower() or "without an ending" for file in files)
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return ", ".join(f"{count} {kind}" for kind, count in ranked)


def _name_of_url(url: str) -> str:
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return name if name.strip(".") and "\0" not in name else "image"


def _read_file(path: Path, limits: Limits, skip: bool) -> NDArray[np.uint8] | Strips | None:
    if limits.strips:
        try:
            strips = open_strips(path, limits.page, limits.max_pixels, limits.bits)
        except (OSError, UnreadableImageError) as error:
            report_damage(path, error, skip)
            return None
        if strips is not None:
            _warn_of_pages(str(path), strips.pages, limits)
            return strips
    return _read(path.read_bytes, path, limits, skip)


def _read(
    content: Callable[[], bytes], path: Path, limits: Limits, skip: bool = True
) -> NDArray[np.uint8] | None:
    """The pixels of a file; with `skip` a warning and None for one that is not an image."""
    try:
        return _pixels(content(), str(path), limits)
    except (OSError, UnreadableImageError) as error:
        report_damage(path, error, skip)
        return None


def report_damage(path: Path, error: Exception, skip: bool) -> None:
    """With `skip` a warning for a file that is not an image, else UserError."""
    if not skip:
        raise UserError(
            f"{path} cannot be read as an image ({error}): {_advice(path.suffix)}"
        ) from error
    _log.warning(f"{path} is skipped, since it cannot be read as an image ({error})")


def _advice(suffix: str) -> str:
    if suffix.lower() in (".heic", ".heif") and suffix.lower() not in SUFFIXES:
        return "pip install 'maskrcnn_lit[heic]', or convert it to JPEG or PNG"
    return "give another file"


def _from_url(url: str, limits: Limits) -> NDArray[np.uint8]:
    shown = hide_password(url)
    try:
        data = get(url)
    except OSError as error:
        reason = str(error).replace(url, shown)
        raise UserError(
            f"source={shown} cannot be downloaded ({reason}): check the address, or give a "
            "local file"
        ) from error
    return _decode(data, f"source={shown}", limits)


def _from_file(file: Any, name: str, limits: Limits) -> NDArray[np.uint8]:
    data = file.read()
    if not isinstance(data, bytes):
        raise UserError(f"{name} is open in text mode: open it in binary mode, open(path, 'rb')")
    return _decode(data, name, limits)


def _pixels(data: bytes, name: str, limits: Limits) -> NDArray[np.uint8]:
    page = limits.page or 1
    pixels = decode(data, max_pixels=limits.max_pixels, page=page, bits=limits.bits)[0]
    _warn_of_pages(name, page_count(data), limits)
    return pixels


def _warn_of_pages(name: str, pages: int, limits: Limits) -> None:
    if limits.page is None and pages > 1:
        _log.warning(f"{name} has {pages} pages: using the first; page=N selects another")


def _decode(data: bytes, name: str, limits: Limits) -> NDArray[np.uint8]:
    try:
        return _pixels(data, name, limits)
    except UnreadableImageError as error:
        raise UserError(
            f"{name} cannot be read as an image ({error}; {len(data)} bytes): give the full "
            "content of an image file"
        ) from error


def _from_pil(image: Image.Image, name: str, bits: int) -> NDArray[np.uint8]:
    try:
        image.load()  # this also rotates a TIFF upright
        return to_rgb(ImageOps.exif_transpose(image), bits)
    except (OSError, SyntaxError, ValueError, UnreadableImageError) as error:
        raise UserError(f"{name} cannot be read ({error}): give another image") from error


def _as_array(source: Any) -> NDArray[Any] | None:
    """A tensor or array of any library as a NumPy array; None for anything else."""
    if hasattr(source, "detach"):  # a torch tensor, on any device
        tensor = source.detach().cpu()
        return (tensor.float() if tensor.is_floating_point() else tensor).numpy()
    if isinstance(source, np.ndarray):
        return source
    if hasattr(source, "__array__") and not np.isscalar(source):
        return np.asarray(source)
    return None


def array_to_rgb(array: NDArray[Any], name: str = "array", bits: int = 0) -> NDArray[np.uint8]:
    """An array as an H W 3 uint8 RGB image.

    Args: array: H W, H W 1, H W 3, H W 4, or channels first, 1 H W, 3 H W, 4 H W; RGB, alpha is
    dropped. uint8 0..255, uint16 0..65535, floats 0..1, bool, or other integers
        0..255. name: for messages. bits: the depth of uint16; 0: 16.

    Raises: UserError: another shape; a shape that could be both H W C and C H W; a type or range of
    values for which white is ambiguous; NaN.
    """
    pixels = _to_8_bits(_channels_last(array, name), name, bits)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    return np.array(pixels[..., :3])  # a copy: the caller may reuse the array


def _channels_last(array: NDArray[Any], name: str) -> NDArray[Any]:
    shape = " x ".join(map(str, array.shape))
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise UserError(
            f"{name} of shape {shape or '()'} is not an image: give H x W, H x W x 3 or 3 x H x W"
        )
    if array.ndim == 2:
        return array[..., None]
    first, last = array.shape[0] in _CHANNELS, array.shape[2] in _CHANNELS
    if first and last:
        raise UserError(
            f"{name} of shape {shape} can be H x W x C or C x H x W: give a PIL image, "
            "Image.fromarray(array of H x W x 3)"
        )
    if not first and not last:
        raise UserError(
            f"{name} of shape {shape} has no axis of 1, 3 or 4 channels: give H x W, H x W x 3 or "
            "3 x H x W"
        )
    return array if last else array.transpose(1, 2, 0)


def _to_8_bits(array: NDArray[Any], name: str, bits: int) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        return _from_floats(array, name)
    if array.dtype.kind not in "iu":
        raise UserError(f"{name} of type {array.dtype} is not an image: give uint8, or floats 0..1")
    low, high = int(array.min()), int(array.max())
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _from_16_bits(array, high, name, bits)
    if low < 0 or high > 255 or high == 1:
        raise UserError(
            f"{name} has {array.dtype} values from {low} to {high}, so the value of white is "
            "unknown: give uint8 0..255,  uint16 0..65535, or floats 0..1"
        )
    return array.astype(np.uint8)


def _from_floats(array: NDArray[Any], name: str) -> NDArray[np.uint8]:
    low, high = float(array.min()), float(array.max())  # NaN if any value is
    if not (np.isfinite(low) and np.isfinite(high)):
        raise UserError(f"{name} has NaN or infinity: give floats from 0 to 1")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise UserError(
            f"{name} has float values from {low:g} to {high:g}: give floats from 0 to 1, without "
            "normalization, or convert to uint8 0..255"
        )
    return np.rint(array.astype(np.float32).clip(0, 1) * 255).astype(np.uint8)


def _from_16_bits(array: NDArray[Any], high: int, name: str, bits: int) -> NDArray[np.uint8]:
    if bits and high >= 2**bits:
        raise UserError(f"{name} cannot be read: {more_than(high, bits)}")
    if bits:
        return (array >> (bits - 8)).astype(np.uint8)
    if 0 < high < 4096:
        raise UserError(
            f"{name} has uint16 values up to {high}, which may have 8, 10, 12 or 16 bits: scale "
            "them "
            "to 0..65535, or convert to uint8 0..255"
        )
    return (array >> 8).astype(np.uint8)
