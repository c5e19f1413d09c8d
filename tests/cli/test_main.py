"""The command line as a user meets it: what it prints, where, and the exit code."""

import os
import pty
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from maskrcnn_lit import __version__
from maskrcnn_lit.cli import main as cli
from maskrcnn_lit.config import compose as config
from maskrcnn_lit.errors import UserError

PACKAGE = Path(cli.__file__).parent


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A stand-in for the module of `train`, which records what it was run with."""
    module = types.ModuleType("maskrcnn_lit.cli.train")
    module.calls = []
    module.run = lambda config, overrides: module.calls.append((config, overrides))
    monkeypatch.setitem(sys.modules, "maskrcnn_lit.cli.train", module)
    return module


def fail_with(module: types.ModuleType, error: BaseException) -> None:
    def run(config: object, overrides: object) -> None:
        raise error

    module.run = run


def whole_lines(printed: str) -> str:
    """A text with what was wrapped put together again."""
    return re.sub(r"( \\)?\n +", " ", printed)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_alone_it_lists_every_command_with_an_example(
    arguments: list[str], capsys: pytest.CaptureFixture
):
    assert cli.main(arguments) == 0
    printed = whole_lines(capsys.readouterr().out)
    for name, command in cli.COMMANDS.items():
        assert name in printed
        assert command.summary in printed
        assert f"$ {command.examples[0]}" in printed


def test_commands_are_modules_with_a_yaml():
    yamls = {path.stem for path in config.conf_dir().glob("*.yaml")}
    names = [config.yaml_name(command) for command in cli.COMMANDS]
    assert set(names) == yamls
    assert len(names) == len(yamls)
    for name in names:
        found = re.search(
            r"^def run\(config: DictConfig, overrides: list\[str\]\) -> (None|int):",
            (PACKAGE / f"{name}.py").read_text(),
            re.MULTILINE,
        )
        assert found is not None, name


@pytest.mark.long
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("name", cli.COMMANDS)
def test_the_help_of_a_command_shows_examples_groups_and_options(
    name: str, width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setenv("COLUMNS", str(width))
    assert cli.main([*name.split(), "--help"]) == 0
    printed = capsys.readouterr().out
    described = config.describe(name)
    for example in cli.COMMANDS[name].examples:
        assert f" {example} " in whole_lines(printed).replace("\n", " ")
    for group, (choices, _) in described.groups.items():
        words = (
            printed[printed.index(f"\n  {group} ") :].replace("*", "").split()
        )  # broken into lines where it is long
        assert words[: 1 + len(choices)] == [group, *choices]
    assert described.options
    for option in described.options:
        assert f"\n  {option.name} = " in printed
    assert max(map(len, printed.splitlines())) <= width


def test_the_help_has_a_heading_for_each_group(capsys: pytest.CaptureFixture):
    assert cli.main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    for group in ("augment", "data", "model", "optimizer", "trainer"):
        assert f"\n\n{group}\n  {group}." in printed
    assert "model.rpn.*  13 more: maskrcnn-lit train --help model.rpn" in printed


@pytest.mark.parametrize(
    ("topic", "names"),
    [
        ("model.rpn", {"model.rpn.nms_iou", "model.rpn.post_nms.train"}),
        ("anchors", {"model.anchors.sizes", "model.anchors.ratios"}),
        ("trainer.epochs", {"trainer.epochs"}),
    ],
)
def test_the_help_of_a_name_shows_options_at_any_depth(
    topic: str, names: set[str], capsys: pytest.CaptureFixture
):
    assert cli.main(["train", "--help", topic]) == 0
    found = re.findall(r"^  (\S+) = ", capsys.readouterr().out, re.MULTILINE)
    assert names <= set(found)
    assert all(topic in name for name in found)


def test_the_help_of_evaluate_lists_the_options_of_data(capsys: pytest.CaptureFixture):
    assert cli.main(["evaluate", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "\n  data.val.images = ???\n" in printed
    assert "\n  data.image_size = " in printed
    assert "data.train.images" not in printed


@pytest.mark.parametrize(
    "arguments", [["data"], ["data", "--help"], ["data", "-h"], ["data", "help"]]
)
def test_the_first_word_of_several_commands_lists_these(
    arguments: list[str], capsys: pytest.CaptureFixture
):
    assert cli.main(arguments) == 0
    printed = capsys.readouterr().out
    assert [line.split("  ")[1] for line in printed.splitlines() if line.startswith("  data")] == [
        "data stats",
        "data check",
        "data show",
        "data convert",
        "data merge",
        "data split",
        "data subset",
    ]
    assert "train a model" not in printed


@pytest.mark.parametrize(("returned", "code"), [(None, 0), (0, 0), (1, 1)])
def test_what_a_command_returns_is_the_exit_code(
    returned: int | None, code: int, monkeypatch: pytest.MonkeyPatch
):
    module = types.ModuleType("maskrcnn_lit.cli.data_check")
    module.run = lambda config, overrides: returned
    monkeypatch.setitem(sys.modules, "maskrcnn_lit.cli.data_check", module)
    assert cli.main(["data", "check", "seed=3"]) == code


def test_the_help_shows_what_overrides_make_of_it(capsys: pytest.CaptureFixture):
    cli.main(["train", "seed=41", "optimizer=sgd", "--help"])
    printed = capsys.readouterr().out
    assert "sgd*" in printed
    assert "optimizer.momentum" in printed
    assert "\n  seed = 41\n" in printed


def test_version(capsys: pytest.CaptureFixture):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"maskrcnn-lit {__version__}\n"


def test_a_command_gets_the_config_and_the_overrides(
    command: types.ModuleType, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert cli.main(["train", "data=shapes", "data.root=x", "seed=3"]) == 0
    ((config, overrides),) = command.calls
    assert config.seed == 3
    assert overrides == ["data=shapes", "data.root=x", "seed=3"]
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"


def test_an_option_may_have_hyphens(command: types.ModuleType):
    assert cli.main(["train", "--optimizer.lr=0.1", "--seed=3", "data=shapes"]) == 0
    ((config, overrides),) = command.calls
    assert (config.seed, config.optimizer.lr) == (3, 0.1)
    assert overrides == ["optimizer.lr=0.1", "seed=3", "data=shapes"]


@pytest.mark.parametrize("flags", [["--cfg"], ["--cfg", "job"], ["--cfg=job"], ["-c", "job"]])
def test_cfg_prints_the_config_and_runs_nothing(
    flags: list[str], command: types.ModuleType, capsys: pytest.CaptureFixture
):
    assert cli.main(["train", *flags, "seed=3", "data=coco_json"]) == 0
    printed = capsys.readouterr().out
    assert "\nseed: 3\n" in f"\n{printed}"
    assert "annotations: ???" in printed
    assert command.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["trian"],
            "maskrcnn-lit: there is no command 'trian'; did you mean train?; the commands are "
            "train, evaluate,",
        ),
        (["xyz"], "there is no command 'xyz'; the commands are"),
        (
            ["data", "chekc"],
            "no command 'data chekc'; did you mean data check?; the commands are data stats, data "
            "check, data",
        ),
        (
            ["data", "stats", "sede=1"],
            "data stats has no option 'sede'; did you mean seed?; `maskrcnn-lit data stats --",
        ),
        (
            ["train", "-x"],
            "flag '-x': it has --help, --cfg, --multirun, --config-dir DIR and options NAME",
        ),
        (
            ["predict", "-m"],
            "flag '-m': it has --help, --cfg, --config-dir DIR and options",
        ),
        (["train", "--optimizer.rl=1"], "train has no option 'optimizer.rl'"),
        (["train", "--epochs", "3"], "train does not have the flag '--epochs'"),
        (
            ["train", "--cfg", "hydra"],
            "--cfg=hydra is not supported: use --cfg (or --cfg job) to print the",
        ),
        (
            ["train", "--help", "xyz"],
            "train has no option with 'xyz' in its name: `maskrcnn-lit tr",
        ),
        (["train", "epochs=3"], "has no option 'epochs'; did you mean trainer.epochs?; `mask"),
        (["completion", "tcsh"], "completion needs the name of a shell, bash, zsh, fish"),
        (["train", "optimiser.lr=1"], "did you mean optimizer.lr?"),
        (["train", "backbone=resnet5"], "did you mean resnet50?"),
        (["predict", "source=a.jpg"], "predict needs run, which has no default: add run=..."),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(
    arguments, message, command, capsys: pytest.CaptureFixture
):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert err.startswith("maskrcnn-lit: ")
    assert err.count("\n") == 1
    assert out == ""
    assert command.calls == []


class FailingDataset:
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise UserError("image 7 is missing")


@pytest.mark.process
def test_a_mistake_found_in_a_loader_process_is_the_same_sentence(
    command, capsys: pytest.CaptureFixture
):
    from torch.utils.data import DataLoader

    command.run = lambda config, overrides: next(iter(DataLoader(FailingDataset(), num_workers=1)))
    assert cli.main(["train"]) == 2
    assert capsys.readouterr().err == "maskrcnn-lit: image 7 is missing\n"


@pytest.mark.process
def test_help_and_mistakes_do_not_load_torch():
    code = (
        "import sys; from maskrcnn_lit.cli.main import main\n"
        "assert main([]) == 0 and 'hydra' not in sys.modules\n"
        "assert main(['train', '--help']) == 0 and main(['train', 'sede=1']) == 2\n"
        "assert not {'torch', 'lightning'} & set(sys.modules), 'torch is loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.process
def test_the_console_script_is_installed():
    script = Path(sys.executable).with_name("maskrcnn-lit")
    done = subprocess.run([script, "trian"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean train?" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.long
@pytest.mark.parametrize("flag", [["--config-dir", "own"], ["--config-dir=own"], ["-cd", "own"]])
def test_a_config_folder_is_a_flag(
    flag: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(config.CONFIG_DIR, "")
    (tmp_path / "own" / "augment").mkdir(parents=True)
    (tmp_path / "own" / "augment" / "mine.yaml").write_text("flip: 0.25\n")
    assert cli.main(["train", *flag, "augment=mine", "--cfg"]) == 0
    assert "flip: 0.25" in capsys.readouterr().out
    assert cli.main(["train", "--config-dir=nowhere", "--cfg"]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err


def test_help_of_a_command_is_asked_for_in_two_ways(capsys: pytest.CaptureFixture):
    texts = []
    for arguments in (["help", "predict"], ["predict", "--help"]):
        assert cli.main(arguments) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "maskrcnn-lit predict" in texts[0]


@pytest.mark.process
def test_a_terminal_has_a_line_before_torch_is_loaded():
    main_end, terminal = pty.openpty()
    command = [sys.executable, "-m", "maskrcnn_lit", "replay", "file=nowhere"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, stdin=terminal)
    os.close(terminal)
    lines = os.read(main_end, 4096).decode().splitlines()
    assert done.returncode == 2
    assert done.stdout == b""
    assert lines[0] == "loading PyTorch ..."
    assert lines[1].startswith("maskrcnn-lit: nowhere ")


@pytest.mark.process
def test_a_log_file_does_not_have_that_line():
    command = [sys.executable, "-m", "maskrcnn_lit", "replay", "file=nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("maskrcnn-lit: nowhere ")
