"""The rules of the house, held: who imports whom, how long a file and a function may be, where tests lie."""

import ast
import tokenize
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "maskrcnn_lit"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")
PYTHON = sorted(
    path for folder in ("maskrcnn_lit", "tests", "benchmarks") for path in (REPOSITORY / folder).rglob("*.py")
)
FOLDERS = ("data", "model", "training", "evaluation", "report")  # each imports only from itself and from its left
VERBS = {path.stem for path in (REPOSITORY / "conf").glob("*.yaml")}
# The only ones that know Hydra: the command line, the config, the verbs, and what gives a verb's model to Python.
TOP = {
    "by_size",
    "cli",
    "config",
    "grid",
    "job",
    "overrides",
    "plan",
    "pretrained",
    "predictor",
    "run_folder",
    "sweep",
    "targets",
    "trial",
} | VERBS


def name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, anywhere in it; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}:{node.lineno} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path: Path) -> Iterator[list[str]]:
    """What a file imports from this package, in parts: ["data", "index", ...]."""
    for module in imports(path):
        if module.startswith("maskrcnn_lit."):
            yield module.split(".")[1:]


def test_the_tree_is_the_one_that_these_tests_know():
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders <= set(FOLDERS)
    assert len(MODULES) > 20 and len(VERBS) >= 3


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_folder_imports_only_from_its_left(path: Path):
    own = path.relative_to(PACKAGE).parts[0]
    if own not in FOLDERS:
        return
    for first, *_ in ours(path):
        assert first not in FOLDERS or FOLDERS.index(first) <= FOLDERS.index(own), f"{own} imports {first}"
        assert first not in TOP, f"{name(path)} imports {first}, which stands above it"


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name)
def test_nobody_imports_a_verb(path: Path):
    assert not [module for module in ours(path) if module[0] in VERBS]


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_only_the_top_knows_hydra(path: Path):
    if path.parent == PACKAGE and path.stem in TOP:
        return
    assert not [module for module in imports(path) if module.split(".")[0] in ("hydra", "omegaconf", "antlr4")]


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_a_file_has_at_most_250_lines(path: Path):
    if path.parent.name == "tests" or "tests" in path.relative_to(REPOSITORY).parts:
        return
    assert len(path.read_text().splitlines()) <= 250


@pytest.mark.parametrize("path", PYTHON, ids=name)
def test_a_function_has_at_most_60_lines(path: Path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"


def code_lines(path: Path) -> int:
    """Lines that hold code: no blank ones, comments or docstrings."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        line
        for node in ast.walk(tree)
        if isinstance(node, documented) and ast.get_docstring(node) is not None
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    silent = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    with path.open("rb") as file:
        tokens = [token for token in tokenize.tokenize(file.readline) if token.type not in (*silent, tokenize.ENCODING)]
    return len({line for t in tokens for line in range(t.start[0], t.end[0] + 1)} - docstrings)


def test_code_lines_are_counted_as_said(tmp_path: Path):
    file = tmp_path / "a.py"
    file.write_text(
        '"""Doc\n\nstring."""\n\nimport os  # why\n\n\n# alone\ndef f():\n    """Doc."""\n    return """a\nb"""\n'
    )
    assert code_lines(file) == 4


def test_the_model_is_short():
    counted = {name(path): code_lines(path) for path in (PACKAGE / "model").glob("*.py")}
    assert 300 < sum(counted.values()) <= 1200, counted


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_has_its_test_at_the_same_path(path: Path):
    relative = path.relative_to(PACKAGE)
    test = REPOSITORY / "tests" / relative.with_name(f"test_{relative.name}")
    assert test.is_file(), f"{name(test)} is missing"
    assert "def test_" in test.read_text()


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=name)
def test_checks_are_errors_not_asserts(path: Path):
    """A bare assert says nothing to the one who meets it, and is gone under `python -O`."""
    assert not [node.lineno for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)]


def test_imports_are_declared():
    """Every package that the code imports stands in pyproject.toml, and with an exact version in constraints.txt."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    declared = {line.split(">")[0] for line in project["dependencies"]}
    declared |= {line.split(">")[0] for line in project["optional-dependencies"]["timm"]}
    declared |= {line.split(">")[0] for line in project["optional-dependencies"]["slurm"]}
    packages = {"PIL": "pillow", "yaml": "omegaconf", "hydra": "hydra-core"}  # omegaconf reads and writes with PyYAML
    standard = {"maskrcnn_lit", *__import__("sys").stdlib_module_names}
    used = {module.split(".")[0] for path in MODULES for module in imports(path)} - standard
    assert {packages.get(module, module) for module in used} <= declared
    pinned = {line.split("==")[0] for line in (REPOSITORY / "constraints.txt").read_text().splitlines() if "==" in line}
    extras = project["optional-dependencies"]
    installed = [line for name in ("dev", "slurm", "wandb", "mlflow") for line in extras[name] if "[" not in line]
    assert declared | {line.split(">")[0] for line in installed} <= pinned
    assert "://" not in (REPOSITORY / "constraints.txt").read_text()
