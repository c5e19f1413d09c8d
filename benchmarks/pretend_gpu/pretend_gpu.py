"""Python on a pretend GPU: what the host does for CUDA, checked without a GPU.

    python benchmarks/pretend_gpu/pretend_gpu.py FILE [ARGUMENT ...]
    python benchmarks/pretend_gpu/pretend_gpu.py -m MODULE [ARGUMENT ...]

torch sees one H200, of which only the shell is there: pretend_gpu.cpp takes the place of CUDA's
runtime, and convolutions and matrix products give empty tensors in the layout that cuDNN has. So
values and times mean nothing. What is real: the host's code, autograd, the allocator, torch's own
checks for waits (`torch.cuda.set_sync_debug_mode`), launches, and the kernels that torch.compile
writes. It needs g++ and a CUDA build of torch from PyPI, and no GPU and no driver.

In FILE, `import pretend_gpu` gives `counts()` and `reset()`. At the end the launches, copies and
waits are printed, and TFLOP of convolutions and products.
"""

import ctypes
import hashlib
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LIBRARY = "libcuda.so.1"
GIGABYTES = "150"

flops: Counter[str] = Counter()  # since the last `reset`, by kind
_operators: list[Any] = []  # torch forgets what it is told when the library object goes


def headers(site: Sequence[str] | None = None) -> Path:
    """The folder of CUDA's headers that the installed torch brought with it. site: where to look;
    None: the packages of this Python.
    """
    if site is None:
        package = importlib.util.find_spec("nvidia")
        site = list(package.submodule_search_locations or ()) if package else []
    files = sorted(file for part in site for file in Path(part).glob("*/include/driver_types.h"))
    if not files:
        sys.exit("pretend_gpu needs CUDA's headers, which torch from PyPI has on Linux: none here")
    return files[-1].parent  # cu13, cuda_runtime (of CUDA 12)


def build(folder: Path) -> Path:
    """Compile the library into `folder`, unless one of this code and these headers is there."""
    compiler, include, source = shutil.which("g++"), headers(), HERE / "pretend_gpu.cpp"
    if compiler is None:
        sys.exit("pretend_gpu needs g++: install it, or put it into PATH")
    state = hashlib.sha256(source.read_bytes() + str(include).encode()).hexdigest()[:12]
    target = folder / state / LIBRARY
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        unfinished = target.with_name(f"{LIBRARY}.{os.getpid()}")
        command = [compiler, "-O1", "-shared", "-fPIC", "-std=c++17", "-w", f"-I{HERE}"]
        command += [f"-I{include}", str(source), "-o", str(unfinished)]
        subprocess.run([*command, f"-Wl,-soname,{LIBRARY}"], check=True)
        os.replace(unfinished, target)
    return target


def counts() -> dict[str, int]:
    """How often each thing has happened since the last `reset`, by its name: "kernel ...",
    "sync ...", "cudaMemcpyAsync ...".
    """
    library = ctypes.CDLL(None)
    library.pretend_gpu_dump.restype = ctypes.c_long
    size = library.pretend_gpu_dump(None, ctypes.c_long(0)) + 4096
    text = ctypes.create_string_buffer(size)
    library.pretend_gpu_dump(text, ctypes.c_long(size))
    rows = [line.split("\t", 1) for line in text.value.decode().splitlines()]
    return {name: int(count) for count, name in rows}


def reset() -> None:
    ctypes.CDLL(None).pretend_gpu_reset()
    flops.clear()


def summary() -> dict[str, Any]:
    """Launches, waits and copies since the last `reset`."""
    found = counts()
    return {
        "launches": sum(n for name, n in found.items() if name.startswith("kernel")),
        "library_calls": {kind: found.get(kind, 0) for kind in sorted(flops)},
        "waits": {name: n for name, n in found.items() if name.startswith("sync")},
        "copies": {name: n for name, n in found.items() if name.startswith("cudaMemcpy")},
        "tflop": round(sum(flops.values()) / 1e12, 3),
    }


def _note(kind: str, operations: int) -> None:
    ctypes.CDLL(None).pretend_gpu_note(kind.encode())
    flops[kind] += operations


def _same_type(what: str, *tensors: Any) -> None:
    types = {tensor.dtype for tensor in tensors if tensor is not None}
    if len(types) > 1:
        raise RuntimeError(f"{what} of tensors of several types: {types}")


def product_operators() -> dict[str, Callable[..., Any]]:
    """Matrix products, by the name of the operator."""

    def product(a: Any, b: Any, out: Any = None) -> Any:
        _same_type("a product", a, b)
        _note("mm", 2 * a.shape[0] * a.shape[1] * b.shape[1])
        return a.new_empty(a.shape[0], b.shape[1]) if out is None else out

    def batched(a: Any, b: Any, out: Any = None) -> Any:
        _same_type("a product", a, b)
        _note("bmm", 2 * a.shape[0] * a.shape[1] * a.shape[2] * b.shape[2])
        return a.new_empty(a.shape[0], a.shape[1], b.shape[2]) if out is None else out

    return {
        "mm": product,
        "mm.out": lambda a, b, *, out: product(a, b, out),
        "addmm": lambda c, a, b, **_: product(a, b),
        "addmm.out": lambda c, a, b, *, out, **_: product(a, b, out),
        "_addmm_activation": lambda c, a, b, **_: product(a, b),
        "bmm": batched,
        "bmm.out": lambda a, b, *, out: batched(a, b, out),
    }


def convolution_operators() -> dict[str, Callable[..., Any]]:
    """Convolutions, in the layout that cuDNN gives."""
    import torch

    def layout(*tensors: Any) -> Any:
        last = torch.channels_last
        wide = [t.is_contiguous(memory_format=last) and not t.is_contiguous() for t in tensors]
        return last if any(wide) else torch.contiguous_format

    def convolution(x: Any, weight: Any, bias: Any, *options: Any) -> Any:
        _same_type("a convolution", x, weight, bias)
        meta = [x.to("meta"), weight.to("meta"), None if bias is None else bias.to("meta")]
        shape = torch.ops.aten.convolution(*meta, *options).shape
        transposed = options[3]
        cells = (x if transposed else torch.empty(shape, device="meta"))[:, 0].numel()
        _note("conv", 2 * cells * weight.numel())
        return x.new_empty(shape).contiguous(memory_format=layout(x, weight))

    def backward(
        gradient: Any, x: Any, weight: Any, bias_size: Sequence[int] | None, *options: Any
    ) -> tuple[Any, ...]:
        wanted = options[-1]
        form = layout(x, weight)
        for kind, asked in zip(("conv_dgrad", "conv_wgrad"), wanted[:2], strict=True):
            if asked:
                _note(kind, 2 * gradient[:, 0].numel() * weight.numel())
        return (
            torch.empty_like(x, memory_format=form) if wanted[0] else None,
            torch.empty_like(weight, memory_format=form) if wanted[1] else None,
            gradient.sum((0, 2, 3)) if wanted[2] else None,
        )

    return {"convolution": convolution, "convolution_backward": backward}


def batch_norm_operators() -> dict[str, Callable[..., Any]]:
    """cuDNN's, in training: empty maps, means and variances."""
    import torch

    def normalise(x: Any, weight: Any, *options: Any) -> tuple[Any, ...]:
        ctypes.CDLL(None).pretend_gpu_note(b"kernel batch_norm")
        statistics = [torch.empty_like(weight, dtype=torch.float32) for _ in range(2)]
        return torch.empty_like(x), *statistics, x.new_empty(0, dtype=torch.uint8)

    def backward(x: Any, gradient: Any, weight: Any, *options: Any) -> tuple[Any, ...]:
        ctypes.CDLL(None).pretend_gpu_note(b"kernel batch_norm_backward")
        return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)

    return {"cudnn_batch_norm": normalise, "cudnn_batch_norm_backward": backward}


def fill(tensor: Any, value: Any) -> Any:
    """Small ones get their value, as the host may ask for it."""
    import torch

    ctypes.CDLL(None).pretend_gpu_note(b"kernel fill")
    if 0 < tensor.numel() <= 4096 and tensor.is_contiguous():
        content = torch.full(tensor.shape, value, dtype=tensor.dtype)
        size = content.numel() * content.element_size()
        ctypes.memmove(tensor.data_ptr(), content.data_ptr(), size)
    return tensor


def install() -> None:
    """Give torch's CUDA operators whose libraries need a GPU others that only have shapes."""
    import torch

    table = {**product_operators(), **convolution_operators(), **batch_norm_operators()}
    table["fill_.Scalar"] = fill
    operators = torch.library.Library("aten", "IMPL")
    for name, function in table.items():
        operators.impl(name, function, "CUDA")
    _operators.append(operators)


def main() -> None:
    if len(sys.argv) < 2 or (sys.argv[1] == "-m" and len(sys.argv) < 3):
        sys.exit(f"pretend_gpu.py needs a program:\n{__doc__}")
    if os.environ.get("PRETEND_GPU_GB") is None:
        library = build(Path(tempfile.gettempdir()) / f"pretend_gpu_{os.getuid()}")
        more = {"LD_PRELOAD": str(library), "LD_LIBRARY_PATH": str(library.parent)}
        more["PRETEND_GPU_GB"] = GIGABYTES
        # Inductor's processes would have to be pretended too: it compiles in this one.
        more["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | more)
    sys.modules["pretend_gpu"] = sys.modules["__main__"]
    install()
    code: Any = 0
    try:
        if sys.argv[1] == "-m":
            sys.argv = sys.argv[2:]
            runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = sys.argv[1:]
            sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    print(summary(), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))  # its memory is not real


if __name__ == "__main__":
    main()
