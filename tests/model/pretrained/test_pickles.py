"""Pickles of arrays are read, and whatever else a pickle names is refused before it is even
imported.
"""

import contextlib
import copyreg
import functools
import os
import pickle
import resource
import struct
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.model.pretrained.files import load_arrays

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)
ARRAYS = {
    **{
        kind: np.arange(-3, 21).reshape(2, 3, 4).astype(kind)
        for kind in ("i1", "u2", "i4", "i8", "f2", "f4", "f8")
    },
    **{
        f"big-endian {kind}": np.arange(6).reshape(2, 3).astype(f">{kind}")
        for kind in ("i2", "f4", "f8")
    },
    "bool": np.array([True, False, True]),
    "Fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "axes in another order": np.arange(24.0).reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": np.arange(24)[::3],
    "reversed": np.arange(6.0)[::-1],
    "empty": np.zeros((0, 3), np.float32),
    "without axes": np.array(2.5),
    "one": np.ones((1, 1, 1)),
    "read-only": np.frombuffer(np.arange(4.0).tobytes()),
}


def written(folder: Path, content: bytes) -> Path:
    (folder / "weights.pkl").write_bytes(content)
    return folder / "weights.pkl"


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(tmp_path: Path, name: str, protocol: int):
    array = ARRAYS[name]
    read = load_arrays(written(tmp_path, pickle.dumps(array, protocol)))
    assert type(read) is np.ndarray
    assert read.shape == array.shape
    assert read.dtype == array.dtype.newbyteorder("=")
    assert np.array_equal(read, array)
    assert read.flags.writeable
    torch.as_tensor(read)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_a_file_of_weights_holds(tmp_path: Path, protocol: int):
    first, second = np.arange(4.0, dtype=np.float32), np.arange(6).reshape(2, 3)
    content = {
        "model": OrderedDict(first=first, second=second, again=first),
        "__author__": "Jürgen, 中文",
        "matching_heuristics": True,
        "lists": [1, 2.5, None, (3, "four"), {"five": second}],
        "numbers": [np.float32(0.1), np.int64(2**40), np.bool_(True), np.float64(-1e300), 2**80],
        "bytes": [b"", b"\x00\xff"],
        7: "seven",
    }
    read = load_arrays(written(tmp_path, pickle.dumps(content, protocol)))
    assert read.keys() == content.keys()
    assert list(read["model"]) == ["first", "second", "again"]
    for name, array in content["model"].items():
        assert np.array_equal(read["model"][name], array), name
    assert (read["__author__"], read["matching_heuristics"], read[7]) == (
        "Jürgen, 中文",
        True,
        "seven",
    )
    assert read["lists"][:4] == [1, 2.5, None, [3, "four"]]
    assert np.array_equal(read["lists"][4]["five"], second)
    assert read["numbers"] == [np.float32(0.1).item(), 2**40, True, -1e300, 2**80]
    assert read["bytes"] == [
        b"",
        b"\x00\xff",
    ]


def of_python2(array: np.ndarray) -> bytes:
    """As Python 2 wrote an array at protocol 2: text and bytes are both a `str` (opcodes U and
    T).
    """
    shape, data = b"".join(b"K" + bytes([n]) for n in array.shape), array.tobytes()
    return b"".join(
        [
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01(" + shape + b"t",
            b"cnumpy\ndtype\nU\x02" + array.dtype.str[1:].encode() + b"K\x00K\x01\x87R",
            b"(K\x03U\x01"
            + array.dtype.str[:1].encode()
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb",
            b"\x89T" + struct.pack("<I", len(data)) + data + b"tb",
        ]
    )


@pytest.mark.parametrize("kind", ["<f4", ">f8", "<i8", ">i2"])
def test_arrays_of_python_2(tmp_path: Path, kind: str):
    array = np.linspace(-100, 100, 12).reshape(3, 4).astype(kind)
    content = b"\x80\x02}(U\x05model}U\x01w" + of_python2(array) + b"sU\x0a__author__U\x04Caf\xe9u."
    read = load_arrays(written(tmp_path, content))
    assert np.array_equal(read["model"]["w"], array)
    assert read["__author__"] == "Café"


class Calls:
    """Pickled as a call of `function`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that would be there if a pickle had run its command."""
    yield tmp_path / "it ran"
    assert not (tmp_path / "it ran").exists()


def refused(folder: Path, content: bytes, named: str) -> None:
    with pytest.raises(
        UserError,
        match=rf"weights\.pkl cannot be loaded \(.*{named}.*\): give weights with only arrays",
    ):
        load_arrays(written(folder, content))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_function_is_called(tmp_path: Path, marker: Path, protocol: int):
    touch = f"open({str(marker)!r}, 'w')"
    bombs = {
        "posix.system": Calls(os.system, f"touch '{marker}'"),
        r"(__builtin__|builtins)\.eval": Calls(eval, touch),
        r"(__builtin__|builtins)\.exec": Calls(exec, touch),
        r"(__builtin__|builtins)\.getattr": Calls(getattr, "os", "system"),
        r"(io|_io|__builtin__)\.open": Calls(open, str(marker), "w"),
        r"functools\.partial": functools.partial(os.system, f"touch '{marker}'"),
        r"numpy\.load": Calls(np.load, str(marker), None, True),
        r"numpy\.fromfile": Calls(np.fromfile, str(marker)),
        r"numpy\.memmap": Calls(np.memmap, str(marker), np.uint8, "w+", 0, (1,)),
        r"numpy\S*\.runstring": Calls(np.testing.runstring, touch, {}),
        r"torch\._utils\._rebuild_tensor_v2": torch.ones(2),
        r"torch\._utils\._rebuild_parameter": torch.nn.Parameter(torch.ones(2)),
        r"torch\.storage\._load_from_bytes": Calls(torch.storage._load_from_bytes, b"anything"),
        r"pathlib\.PosixPath": marker,
    }
    for named, bomb in bombs.items():
        for content in (bomb, {"model": {"w": np.ones(2), "x": bomb}}, [bomb, np.ones(2)]):
            refused(tmp_path, pickle.dumps(content, protocol), named)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_only_arrays_of_numbers(tmp_path: Path, marker: Path, protocol: int):
    bomb = Calls(os.system, f"touch '{marker}'")
    arrays = {
        "an array of object": np.array([bomb, 1], dtype=object),
        "an array of <U3": np.array(["abc"]),
        r"an array of \|?S3": np.array([b"abc"]),
        r"an array of (\|V8|void|\[)": np.zeros(2, [("a", "f4"), ("b", "i4")]),
        "an array of complex64": np.ones(2, np.complex64),
        "an array of datetime64": np.array(["2026-11-23"], "datetime64[D]"),
    }
    for named, array in arrays.items():
        refused(tmp_path, pickle.dumps({"w": array}, protocol), named)


def opcodes(command: str) -> dict[str, bytes]:
    """Every way in which a pickle may come to a call of os.system, by its opcode."""
    text, short = f"S{command!r}\n".encode(), b"\x8c\x02os\x8c\x06system\x93"
    unicode = b"X" + struct.pack("<I", len(command)) + command.encode()
    return {
        "GLOBAL and REDUCE": b"cos\nsystem\n(" + text + b"tR.",
        "STACK_GLOBAL": b"\x80\x04" + short + unicode + b"\x85R.",
        "INST": b"(" + text + b"ios\nsystem\n.",
        "OBJ": b"(cos\nsystem\n" + text + b"o.",
        "NEWOBJ": b"\x80\x02cos\nsystem\n" + unicode + b"\x85\x81.",
        "NEWOBJ_EX": b"\x80\x04" + short + unicode + b"\x85}\x92.",
        "after STOP of an inner one": b"\x80\x04N0" + short + unicode + b"\x85R.",
        "EXT1": b"\x80\x02\x82\xf0" + unicode + b"\x85R.",
        "EXT2": b"\x80\x02\x83\xf0\x00" + unicode + b"\x85R.",
        "EXT4": b"\x80\x02\x84\xf0\x00\x00\x00" + unicode + b"\x85R.",
    }


@pytest.mark.parametrize("opcode", opcodes(""))
def test_no_opcode_comes_to_a_call(tmp_path: Path, marker: Path, opcode: str):
    copyreg.add_extension("os", "system", 0xF0)
    try:
        refused(tmp_path, opcodes(f"touch '{marker}'")[opcode], r"os\.system")
    finally:
        copyreg.remove_extension("os", "system", 0xF0)


def test_names_reach_no_further_than_they_say(tmp_path: Path, marker: Path):
    """With dots from protocol 4 on: through what is allowed to what it imports."""
    command = b"X" + struct.pack("<I", len(f"touch '{marker}'")) + f"touch '{marker}'".encode()
    for module, name in (
        ("numpy", "ndarray.__class__"),
        ("collections", "_sys.modules"),
        ("numpy", "os.system"),
    ):
        strings = b"".join(b"\x8c" + bytes([len(part)]) + part.encode() for part in (module, name))
        refused(
            tmp_path, b"\x80\x04" + strings + b"\x93" + command + b"\x85R.", rf"{module}\.{name}"
        )


def test_what_lies_outside_of_the_file_is_refused(tmp_path: Path):
    refused(tmp_path, b"P1\n.", "persistent")
    refused(tmp_path, b"\x80\x02K\x01Q.", "persistent")
    refused(tmp_path, b"\x80\x05\x97.", "buffer")


def test_classes_cannot_be_changed(tmp_path: Path):
    """BUILD sets the attributes of whatever lies on the stack."""
    before = dict(vars(OrderedDict))
    for name in (b"cnumpy\nndarray\n", b"cnumpy\ndtype\n", b"ccollections\nOrderedDict\n"):
        for state in (b"}X\x01\x00\x00\x00xK\x01s", b"N}X\x01\x00\x00\x00xK\x01s\x86"):
            refused(tmp_path, b"\x80\x02" + name + state + b"b.", "")
    assert dict(vars(OrderedDict)) == before
    assert np.array_equal(load_arrays(written(tmp_path, pickle.dumps(np.ones(2)))), np.ones(2))


@pytest.mark.long
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_damaged_file_is_told(tmp_path: Path, protocol: int):
    whole = pickle.dumps(
        {"model": OrderedDict(w=np.arange(3.0), b=np.float32(1)), "__author__": "me"}, protocol
    )
    for length in range(len(whole)):
        refused(tmp_path, whole[:length], "")
    flipped = np.random.default_rng(protocol)
    for _ in range(400):
        content = bytearray(whole)
        content[flipped.integers(len(whole))] ^= 1 << int(flipped.integers(8))
        try:
            load_arrays(written(tmp_path, bytes(content)))
        except UserError as error:
            assert "weights.pkl cannot be loaded" in str(error)
            assert "\n" not in str(error)


def test_a_damaged_number_takes_no_memory(tmp_path: Path):
    numbers = {
        "how many are remembered": b"\x80\x02Nr" + struct.pack("<I", 2**28) + b".",
        "bytes that can be changed": b"\x80\x05\x96" + struct.pack("<Q", 2**31) + b"abc.",
        "bytes": b"\x80\x05\x8e" + struct.pack("<Q", 2**31) + b"abc.",
    }
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in numbers.values():
        with contextlib.suppress(UserError):
            load_arrays(written(tmp_path, content))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # kilobytes


def test_what_is_no_pickle_is_told(tmp_path: Path):
    torch.save({"w": torch.ones(2)}, tmp_path / "zip.pkl")
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pkl", _use_new_zipfile_serialization=False)
    (tmp_path / "page.pkl").write_text("<!DOCTYPE html><html>Not found</html>")
    (tmp_path / "folder.pkl").mkdir()
    endless: list[Any] = []
    endless.append(endless)
    (tmp_path / "endless.pkl").write_bytes(pickle.dumps(endless))
    for name in ("page.pkl", "zip.pkl", "folder.pkl", "none.pkl", "endless.pkl"):
        with pytest.raises(UserError, match=rf"{name} cannot be loaded"):
            load_arrays(tmp_path / name)


def test_nested_references_are_bounded(tmp_path: Path):
    """400 bytes that stand for 2**40 lists."""
    shared: list[Any] = [1]
    for _ in range(40):
        shared = [shared, shared]
    file = tmp_path / "weights.pkl"
    file.write_bytes(pickle.dumps({"model": {"x": shared}}, protocol=2))
    assert file.stat().st_size < 1000
    content = load_arrays(file)
    assert content["model"]["x"][0] is content["model"]["x"][1]
