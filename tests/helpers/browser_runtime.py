"""A small package in the form of npm's onnxruntime-web."""

import io
import tarfile

from maskrcnn_lit.export.web_runtime import LIBRARY, WASM, WebRuntime


def package_of(content: WebRuntime) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        files = {"package/README.md": b"#", LIBRARY: content.library, WASM: content.wasm}
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()
