"""The rules of the house: who imports whom, what stands at the root, where tests lie.

Each test checks one rule on every file and lists all offenders. Complexity and line length are
ruff's (pyproject.toml).
"""

import ast
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from repository import REPOSITORY

PACKAGE = REPOSITORY / "maskrcnn_lit"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

# A module imports only from its own room and from rooms to its left.
ROOMS = (
    *(
        "errors",
        "terminal",
        "storage",
        "config",
        "data",
        "model",
        "training",
        "evaluation",
        "measure",
        "export",
    ),
    *("runs", "report", "callbacks", "predictor", "launch", "serve", "cli", "__main__"),
)
# The same inside a room: groups of its modules and folders, from left to right. Those of one group
# may import each other.
FLOORS = {
    "data": (
        {"batch", "image_size", "warp", "transforms", "paste", "buckets", "samplers"},
        {"coco"},
        {"stores"},
        {"coco_data", "dataset", "collate", "loaders", "datamodule"},
        {"datasets", "inspection"},
    ),
}
# Folders of one room that do not know each other.
STRANGERS = (("data", "datasets", "inspection"), ("report", "evaluation", "comparison"))
KNOWS_HYDRA = {"config", "runs", "predictor", "launch", "cli"}


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module}.{alias.name}" for alias in node.names)


def our_imports(path: Path) -> Iterator[list[str]]:
    """What a file imports from this package, in parts: ["data", "coco", "index", ...]."""
    for module in imports(path):
        if module.startswith("maskrcnn_lit."):
            yield module.split(".")[1:]


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(path: Path) -> str:
    """The module or folder inside of its room that a file belongs to."""
    parts = path.relative_to(PACKAGE).parts
    return parts[1].removesuffix(".py") if len(parts) > 1 else ""


def offenders(paths: list[Path], faults: Callable[[Path], Iterator[str]]) -> str:
    """One line a fault; empty where there is none."""
    return "\n".join(f"{name(path)}: {fault}" for path in paths for fault in faults(path))


def test_the_root_has_three_modules_and_the_rooms():
    modules = {path.stem for path in PACKAGE.glob("*.py")}
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert modules == {"__init__", "__main__", "errors", "predictor"}
    assert folders | (modules - {"__init__"}) == set(ROOMS)


def test_a_room_imports_only_from_its_left():
    def faults(path: Path) -> Iterator[str]:
        own = ROOMS.index(room(path))
        for first, *_ in our_imports(path):
            if first in ROOMS and ROOMS.index(first) > own:
                yield f"imports {first}, which stands to the right of {ROOMS[own]}"

    assert not offenders(MODULES, faults)


def test_a_floor_imports_only_from_its_left():
    def faults(path: Path) -> Iterator[str]:
        floors = FLOORS.get(room(path), ())
        level = {member: number for number, group in enumerate(floors) for member in group}
        if floors and floor(path) not in level:
            yield f"{floor(path)} has no place in FLOORS"
            return
        for first, *rest in our_imports(path):
            if first == room(path) and rest and level.get(rest[0], -1) > level[floor(path)]:
                yield f"imports {rest[0]}, which stands to the right of {floor(path)}"

    assert not offenders([path for path in MODULES if room(path) in FLOORS], faults)


def test_some_folders_do_not_know_each_other():
    def faults(path: Path) -> Iterator[str]:
        for house, *pair in STRANGERS:
            if room(path) == house and floor(path) in pair:
                other = next(member for member in pair if member != floor(path))
                if [house, other] in [parts[:2] for parts in our_imports(path)]:
                    yield f"imports {house}/{other}"

    assert not offenders(MODULES, faults)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or not (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for neighbor in graph[node]:
            if neighbor not in index:
                visit(neighbor)
            if neighbor in stack:
                low[node] = min(low[node], low[neighbor])
        if low[node] == index[node]:
            members = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(members) > 1:
                groups.append(sorted(members))

    for node in graph:
        if node not in index:
            visit(node)
    return groups


def import_graph() -> dict[str, set[str]]:
    dotted = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in MODULES}
    graph: dict[str, set[str]] = {module: set() for module in dotted}
    for module, path in dotted.items():
        for parts in our_imports(path):
            heads = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            target = next((head for head in heads if head in dotted), module)
            graph[module] |= {target} - {module}
    return graph


def test_no_modules_import_each_other():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    graph = import_graph()
    assert sum(map(len, graph.values())) > 300
    assert circles(graph) == []


def test_imports_are_absolute():
    def faults(path: Path) -> Iterator[str]:
        yield from (f"imports {module}" for module in imports(path) if module.startswith("."))

    assert not offenders(MODULES, faults)


def test_only_some_rooms_know_hydra():
    def faults(path: Path) -> Iterator[str]:
        for module in imports(path):
            if module.split(".")[0] in ("hydra", "omegaconf", "antlr4"):
                yield f"imports {module}"

    assert not offenders([path for path in MODULES if room(path) not in KNOWS_HYDRA], faults)


def test_a_module_has_its_test_at_the_same_path():
    def faults(path: Path) -> Iterator[str]:
        relative = path.relative_to(PACKAGE)
        test = REPOSITORY / "tests" / relative.with_name(f"test_{relative.name}")
        if not test.is_file() or "def test_" not in test.read_text():
            yield f"{name(test)} is missing"

    assert not offenders(MODULES, faults)


def test_checks_are_errors_not_asserts():
    """A bare assert says nothing to the one who meets it, and is gone under `python -O`."""

    def faults(path: Path) -> Iterator[str]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assert):
                yield f"line {node.lineno} asserts"

    assert not offenders(MODULES, faults)


def test_one_module_renames_files():
    def renames(path: Path) -> Iterator[str]:
        if name(path) == "maskrcnn_lit/storage/files.py":
            return
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and (
                node.attr in ("rename", "mkstemp", "mkdtemp", "fsync", "NamedTemporaryFile")
                or ast.unparse(node) == "os.replace"
            ):
                yield f"{name(path)}:{node.lineno} uses {ast.unparse(node)}, see storage/files.py"

    assert not offenders(MODULES, renames)


def test_imports_are_declared():
    """Every package that the code imports stands in pyproject.toml, and with an exact version in
    constraints.txt.
    """
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = (
        "timm",
        "slurm",
        "wandb",
        "onnx",
        "openvino",
        "hf",
        "heic",
        "video",
        "track",
        "search",
        "tiles",
        "serve",
    )
    lines = [*project["dependencies"], *(line for name in optional for line in extras[name])]
    lines = [line for line in lines if "[" not in line]
    declared = {line.split(">")[0] for line in lines}
    # omegaconf reads and writes with PyYAML
    packages = {"PIL": "pillow", "yaml": "omegaconf", "hydra": "hydra-core"}
    standard = {"maskrcnn_lit", *sys.stdlib_module_names}
    used = {module.split(".")[0] for path in MODULES for module in imports(path)} - standard
    without_version = {"trackio"}  # its version of today has no room beside pillow's
    assert without_version == {line.split(">")[0] for line in extras["trackio"]}
    assert {packages.get(module, module) for module in used} <= declared | without_version
    constraints = (REPOSITORY / "constraints.txt").read_text()
    pinned = {line.split("==")[0] for line in constraints.splitlines() if "==" in line}
    installed = [
        line
        for extra in ("dev", "slurm", "wandb", "mlflow")
        for line in extras[extra]
        if "[" not in line
    ]
    assert declared | {line.split(">")[0] for line in installed} <= pinned
    assert "://" not in constraints
