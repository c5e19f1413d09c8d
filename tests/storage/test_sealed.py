import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn_lit.storage.sealed import (
    DamagedFileError,
    read_sealed_bytes,
    read_sealed_json,
    write_sealed_bytes,
    write_sealed_json,
    zip_fault,
)

VALUE = {"status": "finished", "ap": 0.31, "none": math.nan, "list": [1, [2.5, "ä"]], "empty": {}}


def test_json_comes_back_with_null_for_nan(tmp_path: Path):
    write_sealed_json(tmp_path / "a.json", VALUE)
    assert read_sealed_json(tmp_path / "a.json") == VALUE | {"none": None}


def test_keys_that_are_numbers_become_text(tmp_path: Path):
    write_sealed_json(tmp_path / "a.json", {"thresholds": {7: 0.5}})
    assert read_sealed_json(tmp_path / "a.json") == {"thresholds": {"7": 0.5}}


def test_the_layout_of_a_json_may_change(tmp_path: Path):
    write_sealed_json(tmp_path / "a.json", VALUE)
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(dict(reversed(content.items()))))
    assert read_sealed_json(tmp_path / "a.json") == VALUE | {"none": None}


def test_a_json_without_digest_is_taken_as_it_is(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"status": "running"}')
    assert read_sealed_json(tmp_path / "a.json") == {"status": "running"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "it is empty"),
        ("{", "it is not JSON"),
        ("[1]", "a list instead of an object"),
        ("[" * 100_000, "it is not JSON"),
        ('{"status": "finished", "sha256": "0"}', "does not match its checksum"),
    ],
)
def test_other_content_is_damage(tmp_path: Path, content: str, said: str):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DamagedFileError, match=said):
        read_sealed_json(tmp_path / "a.json")


def test_no_changed_byte_gives_another_value(tmp_path: Path):
    file = tmp_path / "a.json"
    write_sealed_json(file, VALUE)
    whole, right = file.read_bytes(), read_sealed_json(file)
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            file.write_bytes(damaged)
            try:
                value = read_sealed_json(file)
            except DamagedFileError:
                continue
            value = {key: item for key, item in value.items() if key in VALUE}
            assert value == right, (position, bit)
    for end in range(len(whole) - 1):  # without the last line feed it is whole
        file.write_bytes(whole[:end])
        with pytest.raises(DamagedFileError):
            read_sealed_json(file)


def test_bytes_come_back_or_nothing_does(tmp_path: Path):
    file = tmp_path / "a.bin"
    assert read_sealed_bytes(file) is None
    write_sealed_bytes(file, b"content")
    assert read_sealed_bytes(file) == b"content"
    whole = file.read_bytes()
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 4
        file.write_bytes(damaged)
        assert read_sealed_bytes(file) is None
        file.write_bytes(whole[:position])
        assert read_sealed_bytes(file) is None


def test_a_flipped_bit_in_a_checkpoint_is_a_fault(tmp_path: Path):
    """torch.load reads other weights there without an error."""
    file = tmp_path / "a.ckpt"
    torch.save({"weights": torch.zeros(1000)}, file)
    assert zip_fault(file) is None
    whole = file.read_bytes()
    middle = whole.find(bytes(2000)) + 1000
    for damaged in (
        whole[:middle] + b"\x10" + whole[middle + 1 :],
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:40] + bytes(200) + whole[240:],
    ):
        file.write_bytes(damaged)
        assert zip_fault(file) is not None


def test_what_is_not_a_zip_has_no_checksums(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    assert zip_fault(tmp_path / "a.npy") is None
