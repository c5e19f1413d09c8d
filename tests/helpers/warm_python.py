"""Python programs that begin with torch and Lightning imported: forked, not started.

Importing them takes 8 s of CPU time, most of what a short command takes. `install` lets
`subprocess.Popen` fork a Python program of this environment from a template process, which has
imported the libraries and nothing of this package, if the program's environment has WARM. It is a
process like any other: a child of the process that starts it, with its own arguments, working
directory, environment, streams, session, signals and exit code; what it starts itself (ranks, the
jobs of a sweep) is forked in the same way. WARM is "all", or "commands": not `python -c`, by which
the package measures memory. A program starts cold, as users start it, if its environment lacks
WARM or differs in what Python and the libraries read when they begin, or if coverage is measured.

What cold programs have alone: their own hash seed and the end of the interpreter.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any, NoReturn

WARM = "MASKRCNN_LIT_TESTS_WARM"

LIBRARIES = (
    "torch",
    "torch.distributed.launcher.api",
    "torch.distributed.run",
    "torch.utils.tensorboard",
    "torchvision",
    "lightning.pytorch",
    "lightning.pytorch.loggers",
    "hydra",
    "jinja2",
    "matplotlib.pyplot",
    "pycocotools.mask",
    "rich.progress",
    "scipy.sparse.csgraph",
    "scipy.stats",
)

# Variables with these beginnings are read when Python or a library begins; PYTHONPATH is apart.
AT_THE_START = ("PYTHON", "LD_", "MALLOC_", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "MPL")

# What a terminal or a scheduler sends to a whole group; the template ends when its asker does.
TO_ALL = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

SET_CHILD_SUBREAPER = 36  # of prctl
_python_path = os.environ.get("PYTHONPATH", "")  # of the template
_libc = ctypes.CDLL(None, use_errno=True)


class Template:
    """This process's end of its template process."""

    def __init__(self, end: socket.socket, pid: int) -> None:
        self.end, self.pid = end, pid
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=end.close)

    def start(self, request: dict[str, Any], streams: Sequence[int]) -> int:
        """Fork a program, a child of this process; returns its pid."""
        with self._lock:
            _libc.prctl(SET_CHILD_SUBREAPER, 1)  # a grandchild whose parent ends becomes a child
            try:
                text = json.dumps(request).encode()
                socket.send_fds(self.end, [len(text).to_bytes(8, "big")], list(streams))
                self.end.sendall(text)
                pid = _number(self.end)
            finally:
                _libc.prctl(SET_CHILD_SUBREAPER, 0)
        if not pid:
            raise RuntimeError("the template process has ended")
        return pid

    def close(self) -> None:
        """End it; it has no state to lose."""
        self.end.close()
        os.waitpid(self.pid, 0)


_template: Template | None = None
_starting = threading.Lock()
_begun_with: dict[str, str] = {}  # at_the_start of this process and of its template


def _number(end: socket.socket) -> int:
    """8 bytes, or 0 at the end of the stream."""
    return int.from_bytes(end.recv(8, socket.MSG_WAITALL), "big")


def at_the_start(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that Python and the libraries read when they begin, but PYTHONPATH."""
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(AT_THE_START) and name != "PYTHONPATH"
    }


def restore() -> None:
    """Give the variables of `at_the_start` the values that they had at `install`."""
    for name in at_the_start(os.environ):
        del os.environ[name]
    os.environ.update(_begun_with)


def request(
    words: Sequence[str], cwd: str | None, environment: Mapping[str, str], session: bool
) -> dict[str, Any] | None:
    """What a template needs to fork this program; None: it has to start cold."""
    measured = any(name.startswith("COV") for name in environment)
    if WARM not in environment or measured or at_the_start(environment) != _begun_with:
        return None
    here = os.path.abspath(cwd or os.getcwd())
    program, *rest = words
    flags = set()
    while rest and rest[0] in ("-P", "-u"):
        flags.add(rest.pop(0))
    if program == str(Path(sys.executable).with_name("maskrcnn-lit")):
        module, folder, rest = False, str(Path(program).parent), list(words)
    elif program == sys.executable and rest[:1] == ["-m"]:
        module, folder, rest = True, here, rest[1:]
    elif program == sys.executable and rest and rest[0].endswith(".py"):
        module, folder = False, str(Path(here, rest[0]).parent)
    elif program == sys.executable and rest[:1] == ["-c"] and environment[WARM] == "all":
        module, folder = False, ""
    else:
        return None
    return {
        "module": module,
        "words": rest,
        "folders": [] if "-P" in flags else [folder],
        "unbuffered": "-u" in flags,
        "cwd": here,
        "environment": dict(environment),
        "session": session,
    }


def install() -> None:
    """Let Popen of this process fork programs whose environment has WARM."""
    _begun_with.update(at_the_start(os.environ))
    cold: Callable[..., None] = subprocess.Popen._execute_child

    def execute(  # its parameters are those of Python 3.11 to 3.13
        self: Any,
        args: Any,
        executable: Any,
        preexec_fn: Any,
        close_fds: bool,
        pass_fds: Sequence[int],
        cwd: Any,
        env: Mapping[str, str] | None,
        startupinfo: Any,
        creationflags: int,
        shell: bool,
        *streams: Any,
    ) -> None:
        pipes, start_new_session, process_group = streams[:6], streams[-2], streams[-1]
        plain = executable is None and preexec_fn is None and not pass_fds and not shell
        plain = plain and close_fds and process_group in (-1, None)
        asked = None
        if plain and not isinstance(args, str | bytes | os.PathLike):
            given = os.environ if env is None else env
            folder = None if cwd is None else os.fspath(cwd)
            asked = request([os.fspath(word) for word in args], folder, given, start_new_session)
        if asked is None:
            cold(
                self, args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo,
                creationflags, shell, *streams,
            )  # fmt: skip
            return
        read, _, _, out, _, error = pipes
        chosen = [own if end == -1 else end for own, end in enumerate((read, out, error))]
        self.pid = _the_template().start(asked, chosen)
        self._child_created = True
        self._close_pipe_fds(*pipes)

    subprocess.Popen._execute_child = execute


def _the_template() -> Template:
    global _template
    with _starting:
        if _template is None:
            ours, its = socket.socketpair()
            words = [sys.executable, "-P", __file__, str(its.fileno())]
            inherited = [(os.POSIX_SPAWN_DUP2, its.fileno(), its.fileno())]
            pid = os.posix_spawn(words[0], words, os.environ, file_actions=inherited)
            its.close()
            _template = Template(ours, pid)
            atexit.register(_template.close)
        return _template


# The template process


def serve(end: socket.socket) -> None:
    """Fork what the other end asks for, until it closes."""
    for number in TO_ALL:
        signal.signal(number, signal.SIG_IGN)
    os.chdir("/")
    while True:
        message, streams, _, _ = socket.recv_fds(end, 8, 3)
        if not message:
            return
        size = int.from_bytes(message, "big")
        asked = json.loads(end.recv(size, socket.MSG_WAITALL))
        told, tells = os.pipe()
        between = os.fork()
        if not between:
            forked_by = os.getpid()
            pid = os.fork()
            if pid:
                os.write(tells, pid.to_bytes(8, "big"))
                os._exit(0)
            while os.getppid() == forked_by:  # until the program is a child of the asking process
                time.sleep(0.001)
            end.close()
            os.close(told)
            os.close(tells)
            begin(asked, streams)
        os.waitpid(between, 0)
        end.sendall(os.read(told, 8))
        for descriptor in (told, tells, *streams):
            os.close(descriptor)


def begin(asked: dict[str, Any], streams: Sequence[int]) -> NoReturn:
    """Be the program, in a process that was forked for it."""
    global _template
    if asked["session"]:
        os.setsid()
    ours, its = socket.socketpair()
    pid = os.fork()
    if not pid:
        ours.close()
        for descriptor in streams:
            os.close(descriptor)
        serve(its)
        os._exit(0)
    its.close()
    _template = Template(ours, pid)
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    for descriptor in streams:
        if descriptor > 2:
            os.close(descriptor)
    code = _exit_code(lambda: _run(asked))
    for last in (threading._shutdown, atexit._run_exitfuncs, _flush, _template.close):
        _exit_code(last)
    if code < 0:
        signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code & 0xFF)


def _run(asked: dict[str, Any]) -> None:
    for number in TO_ALL:
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(number, "rw"[number > 0]) for number in range(3))
    sys.stdout.reconfigure(write_through=asked["unbuffered"])
    sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["environment"] | {WARM: "commands"})
    random.seed()
    sys.modules["numpy"].random.seed()
    _search(asked["folders"])
    sys.meta_path.insert(0, _OnePass())
    first, *rest = asked["words"]
    sys.argv = [first, *rest]
    if asked["module"]:
        runpy._run_module_as_main(first)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if first == "-c":
        code = compile(sys.argv.pop(1), "<string>", "exec")
    else:
        main.__file__ = first
        code = compile(Path(first).read_bytes(), first, "exec")
    exec(code, vars(main))


def _search(folders: Sequence[str]) -> None:
    """Search `folders` and PYTHONPATH for modules, as a Python that begins now."""
    before, now = (
        [os.path.abspath(path) for path in text.split(os.pathsep) if path]
        for text in (_python_path, os.environ.get("PYTHONPATH", ""))
    )
    sys.path[:] = [*folders, *now, *(path for path in sys.path if path not in before)]
    if now != before:
        sys.modules.pop("sitecustomize", None)
        with suppress(ModuleNotFoundError):
            importlib.import_module("sitecustomize")


class _OnePass(MetaPathFinder):
    """What inference takes is measured on one pass, not on ten, as in `tiny_commands.run_command`:
    the package is imported after the fork.
    """

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name == "maskrcnn_lit.measure.cost" else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def once(module: types.ModuleType) -> None:
                execute(module)
                vars(module).update(ROUNDS=1, WARM_UP=0)

            spec.loader.exec_module = once  # type: ignore[method-assign]
        return spec


def _exit_code(action: Callable[[], object]) -> int:
    """That with which Python would end after `action`; negative: the signal that ends it."""
    try:
        action()
    except SystemExit as end:
        if isinstance(end.code, int | None):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        traceback.print_exc()
        return -signal.SIGINT
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


if __name__ == "__main__":
    sys.modules["warm_python"] = sys.modules["__main__"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in LIBRARIES:
            importlib.import_module(name)
    install()
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=int(sys.argv[1])))
