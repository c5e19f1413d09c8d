"""What the README tells a reader to type works, and what it names is there; commands are read, not run."""

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from maskrcnn_lit import cli, config
from maskrcnn_lit.errors import UserError

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
# Commands that are not ours; what they name is checked as a path.
OTHERS = {"git", "cd", "pip", "python", "pytest", "tensorboard", "source", "export", "open", "bash", ".ci/run"}
# Files that a run writes, and examples of what a user has.
NOT_OURS = {"config.yaml", "metrics.csv", "result.json", "detections.json", "subset_ids.json", "mine.yaml"}
FILE = re.compile(r"(?<![\w/.*-])(?:[\w.-]+/)*[\w-]+\.(?:py|yaml|toml|cff|txt|md|png|svg)\b(?![\w/])")


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of every fenced block, and ("", content) of every indented one."""
    for language, content in re.findall(r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield language, content
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for content in re.findall(r"(?:^(?: {4}|\t).*\n?)+", outside, re.MULTILINE):
        yield "", "\n".join(line.strip() for line in content.splitlines())


def commands(text: str) -> list[list[str]]:
    """Every command of the text's shell blocks, and of those without a language that begin with one, in words."""
    known = OTHERS | {"make", "maskrcnn-lit"}
    found = []
    for language, content in blocks(text):
        for line in content.replace("\\\n", " ").splitlines():
            for part in line.strip().removeprefix("$ ").split(" && "):
                if language not in ("", "bash", "sh", "shell", "console"):
                    continue
                words = shlex.split(part, comments=True) if language or part.split()[:1] else []
                if words and (language in ("bash", "sh", "shell") or words[0] in known):
                    found.append(words)
    return found


def check(words: list[str]) -> None:
    """Raise if a command could not work in a fresh clone."""
    first, *rest = words
    if first == "maskrcnn-lit":
        verb = rest[0] if rest else "--help"
        if verb.startswith("-") or "--help" in rest:
            assert cli.main(rest) == 0
            return
        assert verb in cli.VERBS, f"there is no verb {verb}"
        config.compose(verb, [word for word in rest[1:] if word != "--cfg"])
    elif first == "make":
        done = subprocess.run(["make", "-n", *rest], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        assert first in OTHERS, f"the README runs {first}, which this test does not know"
        for word in rest:
            if FILE.fullmatch(word) or word in (".ci/run",):
                assert (REPOSITORY / word).exists(), f"{word} is missing"


def files(text: str) -> set[str]:
    """Everything in the text that looks like a file of this repository, in prose, figures and links."""
    named = {match.group() for match in FILE.finditer(re.sub(r"https?://\S+", "", text))}
    return {name for name in named if name not in NOT_OURS}


def there(name: str) -> bool:
    """Whether a file lies at this path, or at a path that ends like it."""
    if (REPOSITORY / name).exists():
        return True
    folders = ("maskrcnn_lit", "conf", "tests", "benchmarks", "docs", "experiments")
    return any(str(path).endswith(f"/{name}") for folder in folders for path in (REPOSITORY / folder).rglob("*.*"))


def links(text: str) -> list[str]:
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) + re.findall(r"(?:src|href)=\"([^\"#]+)\"", text)
    return [target for target in targets if "://" not in target]


@pytest.mark.parametrize("words", commands(README), ids=" ".join)
def test_a_command_works(words: list[str]):
    check(words)


def test_the_readme_has_the_commands_that_matter():
    found = commands(README)
    assert len(found) >= 8
    assert ["make", "demo"] in found and ["make", "test"] in found
    assert {words[1] for words in found if words[0] == "maskrcnn-lit" and len(words) > 1} >= set(cli.VERBS)


def test_the_files_it_names_are_there():
    named = files(README)
    assert len(named) >= 8
    assert not {name for name in named if not there(name)}
    assert not [target for target in links(README) if not (REPOSITORY / target).exists()]


def test_its_python_imports_what_exists():
    for language, content in blocks(README):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names)


SAMPLE = """
Text with `maskrcnn_lit/cli.py` and [a link](conf/train.yaml).

```bash
make demo   # minutes
$ maskrcnn-lit train experiment=demo \\
    seed=3 && make test
```

```
 cli.py -> config.py -> no_such_file.py
```

    maskrcnn-lit evaluate run=RUN

```python
from maskrcnn_lit.config import compose
```
"""


def test_commands_and_files_are_found_wherever_they_stand():
    assert commands(SAMPLE) == [
        ["make", "demo"],
        ["maskrcnn-lit", "train", "experiment=demo", "seed=3"],
        ["make", "test"],
        ["maskrcnn-lit", "evaluate", "run=RUN"],
    ]
    assert files(SAMPLE) == {"maskrcnn_lit/cli.py", "conf/train.yaml", "cli.py", "config.py", "no_such_file.py"}
    assert [name for name in sorted(files(SAMPLE)) if not there(name)] == ["no_such_file.py"]
    assert links(SAMPLE) == ["conf/train.yaml"]


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("maskrcnn-lit trian", AssertionError),
        ("maskrcnn-lit train optimiser.lr=1", UserError),
        ("maskrcnn-lit train experiment=none_such", UserError),
        ("make tset", AssertionError),
        ("python benchmarks/none_such.py", AssertionError),
        ("npm install", AssertionError),
    ],
)
def test_a_command_that_cannot_work_is_found(command: str, error: type[Exception]):
    with pytest.raises(error):
        check(shlex.split(command))
