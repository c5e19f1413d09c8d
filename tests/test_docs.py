"""What README and the pages of docs/ tell a reader to type works, and what they name exists;
commands are composed, not run.
"""

import ast
import importlib
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from omegaconf import OmegaConf
from own_project import blocks as own_blocks
from own_project import write_project
from repository import REPOSITORY

from maskrcnn_lit.cli import main as cli
from maskrcnn_lit.config import compose as config
from maskrcnn_lit.config.overrides import flat, is_sweep
from maskrcnn_lit.config.schema import OF_RUN
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.grid import read_sweep
from maskrcnn_lit.launch.space import is_search, read_search

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
GENERATED = {"commands.md", "options.md", "contributing.md", "changelog.md"}  # docs/generate.py
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *(page for page in sorted((REPOSITORY / "docs").rglob("*.md")) if page.name not in GENERATED),
]
# Commands that are not ours; what they name is checked as a path.
OTHERS = {
    "git",
    "curl",
    "cd",
    "pip",
    "python",
    "pytest",
    "tensorboard",
    "source",
    "export",
    "mkdir",
    "eval",
    "benchmarks/gpu.sh",
    "torchrun",
    "srun",
    "pre-commit",
    ".ci/run",
}
OURS = {"make", "maskrcnn-lit"}
# Files that a run writes, and examples of what a user has.
NOT_OURS = {
    "config.yaml",
    "metrics.csv",
    "result.json",
    "detections.json",
    "subset_ids.json",
    "predictions.png",
    "report.md",
    "samples.png",
    "found.png",
    "rate.png",
    "profile/operators.txt",
    "profile/stages.txt",
    "list.txt",
}
FILE = re.compile(
    r"(?<![\w/.*-])(?:[\w.-]+/)*[\w-]+\.(?:py|yaml|toml|cff|txt|md|png|svg)\b(?![\w/])"
)


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """(language, content) of every fenced block, and ("", content) of every indented one."""
    for language, content in re.findall(
        r"^```(\w*)[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL
    ):
        yield language, content
    outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for content in re.findall(r"(?:^(?: {4}|\t).*\n?)+", outside, re.MULTILINE):
        yield "", "\n".join(line.strip() for line in content.splitlines())


def commands(text: str) -> list[list[str]]:
    """Every command of the text, in words: in its shell blocks, and in other blocks and `code` that
    begin with one.
    """
    lines = []
    for language, content in blocks(text):
        if language in ("", "bash", "sh", "shell", "console"):
            lines += [
                (language in ("bash", "sh", "shell"), line)
                for line in content.replace("\\\n", " ").splitlines()
            ]
    lines += [(False, code) for code in spans(text) if " " in code]
    found = []
    for is_shell, line in lines:
        for part in re.split(r" && | \| ", line.strip().removeprefix("$ ")):
            if is_shell or part.split(" ")[0] in OURS | OTHERS:
                found.append(shlex.split(part, comments=True))
    return [words for words in found if words]


def spans(text: str) -> list[str]:
    """What stands between single backticks."""
    return re.findall(
        r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    )


@cache
def options_of_train() -> set[str]:
    return {name for name, _ in flat(OmegaConf.to_container(config.show("train")))}


def options(text: str) -> set[str]:
    """NAME=VALUE of `train`, from the text's code in prose and tables."""
    known = options_of_train()
    words = {word for span in spans(text) if span.split()[0] not in OURS for word in span.split()}
    return {word for word in words if "=" in word and word.split("=")[0].split(".")[0] in known}


@cache
def project() -> TemporaryDirectory[str]:
    """The reader's folders, as docs/extend and the tutorial write them, until this process ends."""
    folder = TemporaryDirectory()
    write_project(Path(folder.name))
    for file, content in own_blocks(REPOSITORY / "docs/tutorial.md"):
        Path(folder.name, file).parent.mkdir(parents=True)
        Path(folder.name, file).write_text(content)
    return folder


@contextmanager
def config_dir(name: str) -> Iterator[None]:
    """Commands see the reader's folder of this name."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(config.CONFIG_DIR, str(Path(project().name, name)))
        yield


@cache
def check_choice(choice: str) -> None:
    """Raise if `train` does not take GROUP=CHOICE: once, however many pages name it."""
    with config_dir("conf"):
        config.show("train", [choice])


def check(words: list[str]) -> None:
    """Raise if a command could not work in a fresh clone."""
    while re.match(r"[A-Z]+=", words[0]):  # variables of the environment
        words = words[1:]
    first, *rest = words
    if "--config-dir" in rest:  # the folders are those that docs/extend and the tutorial write
        place = rest.index("--config-dir")
        with config_dir(rest[place + 1]):
            check([first, *rest[:place], *rest[place + 2 :]])
    elif first == "maskrcnn-lit":
        if not rest or rest[0].startswith("-") or "--help" in rest:
            assert cli.main(rest) == 0
            return
        if rest[0] == "completion":
            assert rest[1] in ("bash", "zsh", "fish")
            return
        count = 1 if rest[0] in cli.COMMANDS else 2
        command = " ".join(rest[:count])
        assert command in cli.COMMANDS, f"there is no command {command}"
        if "-m" in rest or (command == "train" and is_sweep(rest[count:])):
            typed = [word for word in rest[count:] if word != "-m"]
            assert read_search(typed).probes if is_search(typed) else read_sweep(typed).jobs
            return
        config.compose(command, [word for word in rest[count:] if word not in ("--cfg", "job")])
    elif first == "make":
        done = subprocess.run(["make", "-n", *rest], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    else:
        assert first in OTHERS, f"a page runs {first}, which this test does not know"
        for word in rest:
            if FILE.fullmatch(word) or word in (".ci/run",):
                assert (REPOSITORY / word).exists(), f"{word} is missing"


def files(text: str) -> set[str]:
    """Everything in the text that looks like a file of this repository, in prose, figures and
    links.
    """
    named = {match.group() for match in FILE.finditer(re.sub(r"https?://\S+", "", text))}
    return {name for name in named if name not in NOT_OURS}


def there(name: str) -> bool:
    """Whether a file lies at this path, or at a path that ends like it."""
    if (REPOSITORY / name).exists():
        return True
    folders = ("maskrcnn_lit", "conf", "tests", "benchmarks", "docs", "experiments")
    return any(
        str(path).endswith(f"/{name}")
        for folder in folders
        for path in (REPOSITORY / folder).rglob("*.*")
    )


def links(text: str) -> list[str]:
    targets = re.findall(r"\]\(([^)\s#]+)[^)]*\)", text) + re.findall(
        r"(?:src|href)=\"([^\"#]+)\"", text
    )
    return [target for target in targets if "://" not in target]


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def test_there_are_pages():
    assert len(PAGES) > 20


@pytest.mark.process  # make -n
@pytest.mark.parametrize(
    "words",
    list({" ".join(words): words for page in PAGES for words in commands(text_of(page))}.values()),
    ids=" ".join,
)
def test_a_command_works(words: list[str]):
    check(words)


def test_the_readme_has_the_commands_that_matter():
    listed = commands(README)
    assert ["make", "demo"] in listed
    assert {words[1] for words in listed if words[0] == "maskrcnn-lit"} >= {
        "train",
        "evaluate",
        "predict",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_files_it_names_exist(page: Path):
    own = {name for name, _ in own_blocks(page)}
    named = files(re.sub(r"\]\([^)]*\)", "", text_of(page)))  # links have a test of their own
    assert not {name for name in named - own if not there(name)}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page: Path):
    made = {page.parent / name for name in ("commands.md", "options.md")}
    made |= {(page.parent / f"../reference/{name}").resolve() for name in GENERATED}
    made |= {page.parent / f"reference/{name}" for name in GENERATED}
    targets = {(page.parent / target).resolve() for target in links(text_of(page))}
    assert not {
        target for target in targets - {path.resolve() for path in made} if not target.exists()
    }


def test_the_readme_names_the_files_of_the_model():
    assert len(files(README)) >= 8


def test_the_files_on_the_boxes_of_its_figure_are_there():
    figures = [REPOSITORY / target for target in links(README) if target.endswith(".svg")]
    named = {name for figure in figures for name in files(text_of(figure))}
    assert len(named) >= 8
    assert not {name for name in named if not there(name)}


SETS = [file.stem for file in (REPOSITORY / "conf" / "data").glob("*.yaml")]


def composes(overrides: list[str]) -> bool:
    try:
        config.show("train", overrides)
    except UserError:
        return False
    return True


# Options of docs/extend are of the reader's own project: tests/test_outside_project.py runs it.
@pytest.mark.long
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.parent.name != "extend"], ids=lambda page: page.name
)
def test_its_options_compose(page: Path):
    named = options(text_of(page))
    within = [option for option in named if "." in option.split("=")[0]]
    known = dict(flat(OmegaConf.to_container(config.show("train", ["data=coco2017"]))))
    of_run = [option for option in within if option.split("=")[0] in OF_RUN]
    for option in of_run:  # a run has these options, too, with more values
        config.show("evaluate", [option])
    own = [option for option in within if option.split("=")[0] in known and option not in of_run]
    config.show("train", ["data=coco2017", *sorted(own)])  # of the sets it has the most options
    for option in sorted(set(within) - set(own) - set(of_run)):
        bases = ["backbone=timm", *(f"data={data}" for data in SETS)]  # that have more options
        assert any(composes([base, option]) for base in bases), option
    for choice in named - set(within):
        check_choice(choice)


@pytest.mark.long
def test_the_pages_name_options():
    assert len({option for page in PAGES for option in options(text_of(page))}) >= 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_python_imports_what_exists(page: Path):
    for language, content in blocks(text_of(page)):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(content)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("maskrcnn_lit"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_readme_fits_on_a_few_screens():
    assert len(README.splitlines()) <= 130


SAMPLE = """
Text with `maskrcnn_lit/cli/main.py` and [a link](conf/train.yaml).

```bash
make demo   # minutes
$ maskrcnn-lit train experiment=demo \\
    seed=3 && make test
```

```
cli/main.py -> config/compose.py -> no_such_file.py
```

    maskrcnn-lit evaluate run=RUN

Or `make test`, `trainer.epochs=3 seed=1`, `other=3`.

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
        ["make", "test"],
    ]
    assert options(SAMPLE) == {"trainer.epochs=3", "seed=1"}
    assert files(SAMPLE) == {
        "maskrcnn_lit/cli/main.py",
        "conf/train.yaml",
        "cli/main.py",
        "config/compose.py",
        "no_such_file.py",
    }
    assert [name for name in sorted(files(SAMPLE)) if not there(name)] == ["no_such_file.py"]
    assert links(SAMPLE) == ["conf/train.yaml"]


@pytest.mark.process
@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("maskrcnn-lit trian", AssertionError),
        ("maskrcnn-lit data chekc", AssertionError),
        ("maskrcnn-lit data check sede=1", UserError),
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
