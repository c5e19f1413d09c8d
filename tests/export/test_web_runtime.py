"""The runtime of browsers comes from a server once, verified, or from a file."""

import hashlib
from pathlib import Path

import pytest
from browser_runtime import package_of
from local_server import Server

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.export import web_runtime
from maskrcnn_lit.export.web_runtime import (
    NAME,
    VERSION,
    WebRuntime,
    read_web_runtime,
)

pytest_plugins = ("local_server",)

CONTENT = WebRuntime(b"export const library = 1;", b"\0asm and more")


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: Server) -> bytes:
    """What the server has in place of npm's package."""
    package = package_of(CONTENT)
    server.offer(package, NAME)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(web_runtime, "SHA512", hashlib.sha512(package).hexdigest())
    monkeypatch.setattr(web_runtime, "URL", f"{server.address}/onnxruntime-web/-/{NAME}")
    return package


def test_the_address_is_that_of_npm():
    address = f"https://registry.npmjs.org/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    assert address == web_runtime.URL
    assert len(web_runtime.SHA512) == 128


def test_it_is_downloaded_once(published: bytes, server: Server, tmp_path: Path):
    assert read_web_runtime() == CONTENT
    assert read_web_runtime() == CONTENT
    assert server.asked == [f"/onnxruntime-web/-/{NAME}"]
    assert (tmp_path / "cache" / "maskrcnn_lit" / NAME).read_bytes() == published


def test_a_damaged_copy_is_downloaded_again(published: bytes, server: Server, tmp_path: Path):
    copy = tmp_path / "cache" / "maskrcnn_lit" / NAME
    copy.parent.mkdir(parents=True)
    copy.write_bytes(published[:20])
    assert read_web_runtime() == CONTENT
    assert copy.read_bytes() == published
    assert len(server.asked) == 1


def test_a_mirror_and_a_file_do_as_well(published: bytes, server: Server, tmp_path: Path):
    assert read_web_runtime(f"{server.address}/mirror/{NAME}") == CONTENT
    assert server.asked == [f"/mirror/{NAME}"]
    (tmp_path / "copied.tgz").write_bytes(published)
    assert read_web_runtime(str(tmp_path / "copied.tgz")) == CONTENT
    assert len(server.asked) == 1


def test_another_file_than_npms_is_refused(published: bytes, server: Server, tmp_path: Path):
    server.offer(package_of(WebRuntime(b"bad()", b"")), NAME)
    with pytest.raises(UserError, match=f"checksum mismatch of {server.address}.*{NAME}"):
        read_web_runtime()
    left = [path.name for path in (tmp_path / "cache" / "maskrcnn_lit").iterdir()]
    assert left == [f".{NAME}.lock"]
    (tmp_path / "cut.tgz").write_bytes(published[:-1])
    with pytest.raises(UserError, match=r"web_runtime=.*cut\.tgz is not onnxruntime-web-.* of npm"):
        read_web_runtime(str(tmp_path / "cut.tgz"))


@pytest.mark.parametrize("fault", ["404", "500"])
def test_a_server_without_it_is_one_sentence(fault: str, published: bytes, server: Server):
    server.fail(fault, times=99)
    with pytest.raises(
        UserError, match=f"cannot be downloaded .*{fault}.* nothing arrived, or cop"
    ):
        read_web_runtime()


def test_a_missing_file_is_one_sentence(tmp_path: Path):
    for path in (tmp_path / "none.tgz", tmp_path):
        with pytest.raises(UserError, match=f"web_runtime={path} cannot be read .*: give the file"):
            read_web_runtime(str(path))
