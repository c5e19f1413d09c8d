"""ONNX Runtime for browsers, of which a page of `export format=web` has a copy: one pinned version
of the npm package onnxruntime-web, downloaded once and verified.
"""

import tarfile
from pathlib import Path
from typing import NamedTuple

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.download import download
from maskrcnn_lit.storage.files import default_cache, file_digest

VERSION = "1.30.0"
NAME = f"onnxruntime-web-{VERSION}.tgz"
URL = f"https://registry.npmjs.org/onnxruntime-web/-/{NAME}"
SHA512 = (  # npm's "integrity", in hexadecimal digits
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca"
    "590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
# The CPU alone, with the loader of the wasm file inside.
LIBRARY = "package/dist/ort.wasm.bundle.min.mjs"
WASM = "package/dist/ort-wasm-simd-threaded.wasm"


class WebRuntime(NamedTuple):
    """library: a JavaScript module; wasm: what it loads."""

    library: bytes
    wasm: bytes


def read_web_runtime(source: str | None = None) -> WebRuntime:
    """The runtime from `source`: the file NAME on this machine, or an http(s) address of a mirror;
    None: npm's own. A download stays in the user's cache folder.

    Raises: UserError: it cannot be downloaded or read, or it is another file.
    """
    if source is None or source.startswith(("http://", "https://")):
        path = default_cache() / NAME
        if path.is_file() and file_digest(path, "sha512") != SHA512:
            path.unlink()
        download(source or URL, path, SHA512, "sha512")
    else:
        path = Path(source)
        _check(path)
    with tarfile.open(path) as archive:
        return WebRuntime(*(_content(archive, name) for name in (LIBRARY, WASM)))


def _check(path: Path) -> None:
    try:
        digest = file_digest(path, "sha512")
    except OSError as error:
        raise UserError(
            f"web_runtime={path} cannot be read ({error.strerror or error}): give the file {NAME}, "
            "or leave it out to download it"
        ) from error
    if digest != SHA512:
        raise UserError(
            f"web_runtime={path} is not {NAME} of npm, whose SHA-512 begins with {SHA512[:16]} "
            f"(this file's: {digest[:16]}): `npm pack onnxruntime-web@{VERSION}` writes it"
        )


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    if member is None:
        raise RuntimeError(f"{name} is a folder in {NAME}")
    return member.read()
