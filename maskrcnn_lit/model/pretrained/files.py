"""Reads files of weights from any source without executing code in them."""

import argparse
import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.sealed import zip_fault

EMA = "ema_state_dict"

ENTRIES = ("model", "state_dict", "model_state_dict", EMA)  # the first of them in a file is read

FORMS = f"a state dict, alone or as the entry {', '.join(ENTRIES[:-1])} or {EMA} of a file"

# Of DataParallel and averaged models, Lightning and torch.compile; left out if all names have it.
PREFIXES = ("module.", "model.", "_orig_mod.")

COUNTERS = ("steps", "n_averaged")  # of averaged models, beside names with a prefix

# Pickles of arrays, the format of Detectron2's weights, read without executing code in them.


class _Array:
    """A stand-in for an ndarray during unpickling: filled by its state, converted by `_plain`."""

    def __init__(self) -> None:
        self.value: NDArray[Any] | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        array = np.frombuffer(data, dtype.value).reshape(shape, order="F" if is_fortran else "C")
        self.value = array.astype(array.dtype.newbyteorder("="))


class _Dtype:
    """A stand-in for a numeric dtype."""

    def __init__(self, code: str, *_: Any) -> None:
        self.value = np.dtype(code)
        if self.value.kind not in "biuf":
            raise pickle.UnpicklingError(f"an array of {self.value}")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.value = self.value.newbyteorder(state[1])


def _array(*_: Any) -> _Array:
    return _Array()


def _from_buffer(
    data: Any,
    dtype: _Dtype,
    shape: tuple[int, ...],
    order: str,
    axes: tuple[int, ...] | None = None,
) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", bytes(data)))
    if axes is not None and array.value is not None:  # numpy 2.4 adds this for reordered axes
        array.value = array.value.transpose(axes)
    return array


def _scalar(dtype: _Dtype, data: Any) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(data, dtype.value)[0].item()


def _no_bytes() -> bytes:
    return b""


def _encode(text: str, encoding: str) -> bytes:
    return text.encode("latin1")


# Names in a pickle of arrays -> the stand-in to call. Nothing is ever imported.
STANDINS: dict[tuple[str, str], Any] = {
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Array,
    ("collections", "OrderedDict"): OrderedDict,
    ("_codecs", "encode"): _encode,
    **{(builtins, "bytes"): _no_bytes for builtins in ("__builtin__", "builtins")},
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _Unpickler(pickle._Unpickler):
    """Python's unpickler: the one in C would allocate as much memory as a damaged length asks
    for.
    """

    def load_bytearray8(self: Any) -> None:
        length = int.from_bytes(self.read(8), "little")
        self.append(bytearray(self.read(length)))  # the available bytes, not `bytearray(length)`

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,
        pickle.BYTEARRAY8[0]: load_bytearray8,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STANDINS:
            raise pickle.UnpicklingError(
                f"it names {module}.{name}, which is neither an array nor plain data"
            )
        return STANDINS[module, name]


def load_arrays(path: Path) -> Any:
    """The content of a pickle: dicts, lists, strings, numbers, and numeric arrays as ndarrays.

    Raises:
        UserError: it contains anything else, or is damaged.
    """
    try:
        with open(path, "rb") as file:
            return _plain(_Unpickler(file, encoding="latin1").load())
    except Exception as error:  # damaged bytes can raise anything
        raise UserError(
            f"{path} cannot be loaded ({error}): give weights with only arrays and plain data, as "
            "published"
        ) from error


def _plain(value: Any, done: dict[int, Any] | None = None) -> Any:
    """Replace the stand-ins by their values. Shared objects are converted once, or a few hundred
    bytes of nested references would take forever.
    """
    done = {} if done is None else done
    if isinstance(value, (_Array, _Dtype)):
        return value.value
    if not isinstance(value, (dict, list, tuple)):
        return value
    if id(value) not in done:
        if isinstance(value, dict):
            done[id(value)] = {key: _plain(item, done) for key, item in value.items()}
        else:
            done[id(value)] = [_plain(item, done) for item in value]
    return done[id(value)]


def read_file(path: Path) -> dict[str, Any]:
    """The content of a file of weights, on the CPU. No code in it is executed: it may contain only
    arrays, tensors and plain data (and the Namespace of arguments that torchvision's training
    script saves).

    Raises:
        UserError: the file does not exist, is damaged, or contains anything else.
    """
    if not path.is_file():
        raise UserError(f"{path} does not exist: give a file of weights")
    if path.suffix == ".pkl":
        content = load_arrays(path)
    else:
        load = _safetensors(path) if path.suffix == ".safetensors" else _torch_load
        try:
            content = load(path)
        except Exception as error:  # from torch, zip, safetensors: damaged bytes can raise anything
            raise UserError(f"{path} cannot be loaded, since {_reason(path, error)}") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{path} contains a {type(content).__name__}, not weights: give a file with a state "
            "dict"
        )
    return content


def _reason(path: Path, error: Exception) -> str:
    names: list[str] = []
    with suppress(Exception):  # damaged bytes can raise anything
        if zip_fault(path) is None:
            names = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if names:
        more = " and so on" if len(names) > 3 else ""
        return (
            f"it contains more than tensors and plain data ({', '.join(names[:3])}{more}), and "
            "objects are never made from a file: save the state dict alone where it was made, "
            "torch.save(model.state_dict(), FILE)"
        )
    return (
        "it is damaged or contains more than tensors and plain data "
        f"({type(error).__name__}): give published weights, or a checkpoint that `maskrcnn-lit "
        "train` wrote"
    )


def _torch_load(path: Path) -> Any:
    fault = zip_fault(path)  # torch does not verify the checksums of its files
    if fault is not None:
        raise ValueError(fault)
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True)


class _Placeholder:
    """Stands in for an object of a class that is never imported."""

    def __new__(cls, *_: Any, **__: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


def read_with_placeholders(path: Path) -> dict[str, Any]:
    """As `read_file`, for files of other frameworks: objects in them, such as a log of the
    training, are replaced by placeholders. No code in it is executed.
    """
    if path.is_file() and path.suffix not in (".pkl", ".safetensors"):
        with suppress(Exception):  # damaged bytes can raise anything; `read_file` reports them
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            stand_ins: list[Any] = [(type(name, (_Placeholder,), {}), name) for name in names]
            with torch.serialization.safe_globals(stand_ins):
                return read_file(path)
    return read_file(path)


def _safetensors(path: Path) -> Callable[[Path], Any]:
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f"{path} needs safetensors: pip install 'maskrcnn_lit[timm]'") from None
    return load_file


def entry_of(saved: Mapping[str, Any]) -> str | None:
    """The entry of a file's content that has the state dict; None: the content is one."""
    return next((key for key in ENTRIES if isinstance(saved.get(key), Mapping)), None)


def state_of(saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict in a file's content (see FORMS), without the prefixes of wrappers."""
    entry = entry_of(saved)
    inner = saved if entry is None else saved[entry]
    numbers, copies = (Tensor, np.ndarray, int, float), ema_buffers(inner)
    state = {
        n: torch.as_tensor(v)
        for n, v in inner.items()
        if isinstance(n, str) and isinstance(v, numbers) and n not in copies
    }
    return _without_prefixes(state)


def ema_buffers(state: Mapping[Any, Any]) -> set[str]:
    """The names ema_* of MMDetection 2: copies of the weights, which it swaps with these after an
    epoch, so that those of a checkpoint are the averaged ones.
    """
    names = {f"ema_{name.replace('.', '_')}" for name in state if isinstance(name, str)}
    return names & state.keys()


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = [name for name in state if name not in COUNTERS]
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return _without_prefixes({name.removeprefix(prefix): state[name] for name in names})
    return state


def check_finite(state: Mapping[str, Any], where: str | Path) -> None:
    """Raise UserError for weights that are NaN or infinite.

    where: their file or folder, for messages.
    """
    bad = [name for name, tensor in state.items() if not _is_finite(tensor)]
    if bad:
        more = f" and {len(bad) - 1} more tensors" if len(bad) > 1 else ""
        raise UserError(
            f"the weights of {where} are not finite (NaN or infinite in {bad[0]}{more}): use "
            "others, for example an earlier checkpoint of the run"
        )


def _is_finite(value: Any) -> bool:
    """Whether `value` is not a floating point tensor, or all of its values are finite."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return True
    return bool(torch.isfinite(value).all())
