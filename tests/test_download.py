import hashlib
import socket
from pathlib import Path

import pytest
from local_server import FAULTS, Server

from maskrcnn_lit.download import fetch, file_digest
from maskrcnn_lit.errors import UserError

pytest_plugins = ("local_server",)

CONTENT = bytes(range(256)) * 300


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def told(error: pytest.ExceptionInfo[UserError], url: str) -> str:
    """One sentence about the url."""
    message = str(error.value)
    assert url in message and "\n" not in message and len(message) < 500
    return message


def test_a_file_is_fetched_once(server: Server, downloads: Path):
    url, digest = server.offer(CONTENT)
    for _ in range(3):
        path = fetch(url, digest)
        assert path == downloads / "weights.pth" and path.read_bytes() == CONTENT
    assert server.asked == ["/weights.pth"] and files(downloads) == ["weights.pth"]


@pytest.mark.parametrize("digits", [6, 8, 64])
def test_the_first_digits_of_a_hash_do(server: Server, downloads: Path, digits: int):
    url, digest = server.offer(CONTENT)
    assert fetch(url, digest[:digits]).read_bytes() == CONTENT


def test_md5(server: Server, downloads: Path):
    url, sha256 = server.offer(CONTENT)
    assert fetch(url, hashlib.md5(CONTENT).hexdigest()[:6], "md5").read_bytes() == CONTENT
    assert fetch(url, hashlib.md5(CONTENT).hexdigest()[:6], "md5").exists() and len(server.asked) == 1
    with pytest.raises(UserError, match="its md5 begins with"):
        fetch(url, sha256[:6], "md5")


def test_another_hash_is_refused_and_the_file_not_kept(server: Server, downloads: Path):
    url, digest = server.offer(CONTENT)
    wrong = "0" * 8
    for _ in range(2):
        with pytest.raises(UserError, match=rf"sha256 begins with {digest[:8]}, expected {wrong}; try again") as error:
            fetch(url, wrong)
        told(error, url)
        assert files(downloads) == []
    assert len(server.asked) == 2


def test_a_file_that_was_kept_and_is_damaged_is_fetched_again(server: Server, downloads: Path):
    url, digest = server.offer(CONTENT)
    fetch(url, digest)
    for damaged in (CONTENT[:-1], b"", CONTENT[:-1] + b"!"):
        (downloads / "weights.pth").write_bytes(damaged)
        assert fetch(url, digest).read_bytes() == CONTENT
    assert len(server.asked) == 4 and files(downloads) == ["weights.pth"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_server_is_one_sentence(server: Server, downloads: Path, fault: str):
    url = f"{server.address}/{fault}.pth"
    with pytest.raises(UserError) as error:
        fetch(url, "12345678")
    message = told(error, url)
    assert f"copy the file from elsewhere to {downloads / fault}.pth" in message
    assert fault == "stops" or "cannot be fetched" in message  # torch does not see that it was too short: its hash is
    assert fault not in ("404", "500") or {"404": "Not Found", "500": "Internal Server Error"}[fault] in message
    assert files(downloads) == [], "nothing is left behind"


def test_no_network_is_one_sentence(downloads: Path, monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}/folder/weights.pth"
    monkeypatch.setenv("no_proxy", "*")
    for url in (nobody, "http://host.invalid/folder/weights.pth"):
        with pytest.raises(
            UserError, match=r"cannot be fetched .*without a network, copy the file from elsewhere"
        ) as e:
            fetch(url, "12345678")
        assert str(downloads / "weights.pth") in told(e, url) and files(downloads) == []


def test_a_file_that_was_copied_by_hand_needs_no_network(downloads: Path):
    downloads.mkdir(parents=True)
    (downloads / "weights.pth").write_bytes(CONTENT)
    assert (
        fetch("http://host.invalid/weights.pth", hashlib.sha256(CONTENT).hexdigest()[:8]) == downloads / "weights.pth"
    )


def test_a_cache_that_cannot_be_written_is_one_sentence(server: Server, downloads: Path):
    downloads.parent.mkdir(parents=True)
    downloads.write_text("a file where the folder should be")
    url, digest = server.offer(CONTENT)
    with pytest.raises(UserError, match="cannot be fetched") as error:
        fetch(url, digest)
    told(error, url)


def test_a_progress_bar_is_shown(server: Server, downloads: Path, capfd: pytest.CaptureFixture[str]):
    url, digest = server.offer(CONTENT)
    fetch(url, digest)
    shown = capfd.readouterr()
    assert "100%" in shown.err and shown.out == ""
    fetch(url, digest)
    assert capfd.readouterr().err == ""


def test_an_interrupted_download_leaves_nothing_behind(
    server: Server, downloads: Path, monkeypatch: pytest.MonkeyPatch
):
    def interrupt(*_: object) -> str:
        assert files(downloads) != []
        raise KeyboardInterrupt

    url, digest = server.offer(CONTENT)
    monkeypatch.setattr("maskrcnn_lit.download.file_digest", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch(url, digest)
    assert files(downloads) == []


def test_a_digest_is_that_of_hashlib(tmp_path: Path):
    (tmp_path / "a").write_bytes(CONTENT)
    for algorithm in ("sha256", "md5"):
        assert file_digest(tmp_path / "a", algorithm) == hashlib.new(algorithm, CONTENT).hexdigest()
