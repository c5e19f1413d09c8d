"""Files from the web: fetched once into the usual cache of torch, with a progress bar, and checked by their hash."""

import hashlib
import os
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

import torch.hub

from maskrcnn_lit.errors import UserError


def fetch(url: str, digest: str, algorithm: str = "sha256") -> Path:
    """The file of `url` in torch's cache ($TORCH_HOME/hub/checkpoints), downloaded if it is not there yet.

    Args:
        digest: the first hexadecimal digits of the file's hash by `algorithm`.

    Raises:
        UserError: the file cannot be fetched, or its hash differs. A file with another hash is never kept.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file() and file_digest(path, algorithm).startswith(digest):
        return path
    arriving = path.with_name(f".{path.name}.{os.getpid()}")  # the name is given once the hash is right
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(arriving), progress=True)
        found = file_digest(arriving, algorithm)[: len(digest)]
        if found != digest:
            raise UserError(
                f"{url} did not come as it was published: its {algorithm} begins with {found}, expected {digest}; "
                f"try again, or copy the file from elsewhere to {path}"
            )
        os.replace(arriving, path)
    except (OSError, HTTPException, RuntimeError) as error:  # no network, a server's error, a connection that broke
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise UserError(
            f"{url} cannot be fetched ({reason}): without a network, copy the file "
            f"from elsewhere to {path}, or give its path instead of the name"
        ) from error
    finally:
        with suppress(OSError):  # there is no folder, when that was the fault
            arriving.unlink()
    return path


def file_digest(path: Path, algorithm: str) -> str:
    """In hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
