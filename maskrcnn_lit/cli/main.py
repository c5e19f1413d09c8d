"""`maskrcnn-lit COMMAND [NAME=VALUE ...]`: compose the command's config, run it, report errors.

Exit codes: 0 success; 1 a bug (with a traceback), faults in the data (`data check`), different
metrics (`reproduce`), a failed job (sweeps) or a broken bound (`export`); 2 an error that the user
can fix; 130 interrupted.
"""

import importlib
import os
import re
import shlex
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from maskrcnn_lit import __version__
from maskrcnn_lit.cli.help import Command, command_help, overview, topic_help
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.launch.console import run_and_report_errors, show_library_logs, silence_libraries

# Each command is a module of this package with `run(config, overrides)` and a yaml of the same name
# in conf/ ("data stats": data_stats). `run` may return the exit code.
COMMANDS = {
    "train": Command(
        "train a model, score it, and write a run folder",
        (
            "maskrcnn-lit train experiment=demo",
            "maskrcnn-lit train data=coco2017 data.root=DIR backbone=resnet50 trainer.epochs=12",
            "maskrcnn-lit train -m backbone=resnet18,resnet50 seed=1,2,3 sweep_dir=DIR",
            "maskrcnn-lit train resume=RUN",
            "maskrcnn-lit train resume=FINISHED_RUN trainer.epochs=24 run_dir=DIR",
        ),
    ),
    "evaluate": Command(
        "compute COCO AP of a trained model, on its validation images or on other data",
        (
            "maskrcnn-lit evaluate run=RUN",
            "maskrcnn-lit evaluate run=RUN data=coco2017 data.root=DIR",
            "maskrcnn-lit evaluate run=RUN data=coco_json data.val.images=DIR "
            "data.val.annotations=FILE",
        ),
    ),
    "compare": Command(
        "report on many runs: tables, curves, trade-offs, and which differences are significant",
        (
            "maskrcnn-lit compare runs=outputs/sweeps/NAME",
            "maskrcnn-lit compare 'runs=[RUN,RUN]' out=DIR",
            "maskrcnn-lit compare runs=DIR rows=backbone columns=data.train_images "
            "metric=val/mask_ap seeds=mean±std",
        ),
    ),
    "top": Command(
        "watch a sweep in the terminal: jobs, progress, best so far, time left",
        (
            "maskrcnn-lit top sweep_dir=outputs/sweeps/NAME",
            "maskrcnn-lit top sweep_dir=DIR metric=val/box_ap once=true",
        ),
    ),
    "predict": Command(
        "detect objects in images and videos: drawn, as JSON Lines and as a COCO results json",
        (
            "maskrcnn-lit predict run=RUN source=photo.jpg",
            "maskrcnn-lit predict run=RUN source=photos/",
            "maskrcnn-lit predict run=RUN source=clip.mp4 track=mask_iou",
            "maskrcnn-lit predict run=RUN source=webcam:0",
            "maskrcnn-lit predict run=RUN 'source=photos/*.jpg' score_threshold=0.7",
        ),
    ),
    "serve": Command(
        "detect objects in pictures that a page or a program sends to this machine",
        (
            "maskrcnn-lit serve run=RUN",
            "maskrcnn-lit serve 'run=[RUN,RUN]' 'names=[small,large]' port=8080",
        ),
    ),
    "show": Command(
        "look at a run's validation images: predictions, errors, proposals, anchors, masks",
        ("maskrcnn-lit show run=RUN", "maskrcnn-lit show run=RUN checkpoint=last port=8080"),
    ),
    "export": Command(
        "write a run for ONNX Runtime, OpenVINO, PyTorch or a browser, with a proof of its scores",
        (
            "maskrcnn-lit export run=RUN",
            "maskrcnn-lit export run=RUN format=openvino precision=int8",
            "maskrcnn-lit export run=RUN 'sizes=[480x640,640x480]'",
            "maskrcnn-lit export run=RUN format=web",
        ),
    ),
    "publish": Command(
        "write a trained run for others: a folder with a model card, or a model on the hub",
        (
            "maskrcnn-lit publish run=RUN to=NEW license=cc-by-4.0",
            "maskrcnn-lit publish run=RUN to=hf:USER/NAME private=true",
        ),
    ),
    "import": Command(
        "take over a Mask R-CNN of MMDetection, Detectron2 or torchvision as a run folder",
        (
            "maskrcnn-lit import from=mmdetection config=FILE weights=FILE out=NEW",
            "maskrcnn-lit import from=detectron2 config=FILE weights=FILE out=NEW",
            "maskrcnn-lit import from=torchvision weights=FILE out=NEW",
        ),
    ),
    "data stats": Command(
        "measure the data: classes, sizes after the resize, crowding, anchor recall",
        (
            "maskrcnn-lit data stats data=coco2017 data.root=DIR",
            "maskrcnn-lit data stats data=shapes model=tiny out=stats.json",
        ),
    ),
    "data check": Command(
        "list every fault of the data by file and annotation id; exit 1 if there are any",
        (
            "maskrcnn-lit data check data=coco2017 data.root=DIR",
            "maskrcnn-lit data check data=coco_json data.train.images=DIR "
            "data.train.annotations=FILE cleaned=DIR",
            "maskrcnn-lit data check run=RUN",
        ),
    ),
    "data show": Command(
        "draw training samples as the model gets them: augmented, with boxes and masks",
        (
            "maskrcnn-lit data show data=shapes out=samples.png",
            "maskrcnn-lit data show data=coco2017 data.root=DIR augment.crop=0.5 epoch=1 count=9",
        ),
    ),
    "data convert": Command(
        "write the data in another form, and list the objects that it cannot hold",
        (
            "maskrcnn-lit data convert from=labelme data.root=DIR to=coco out=NEW",
            "maskrcnn-lit data convert from=coco2017 data.root=DIR to=yolo_seg out=NEW",
        ),
    ),
    "data merge": Command(
        "write one COCO json of several",
        ("maskrcnn-lit data merge 'jsons=[A.json,B.json]' 'folders=[A,B]' out=all.json",),
    ),
    "data split": Command(
        "write two COCO jsons, for training and validation, of one set of images",
        (
            "maskrcnn-lit data split data=coco_json data.annotations=FILE data.images=DIR "
            "data.val_share=0.2 out=NEW",
        ),
    ),
    "data subset": Command(
        "write a COCO json of some images or classes",
        (
            "maskrcnn-lit data subset data=coco2017 data.root=DIR data.train_images=1000 "
            "out=some.json",
        ),
    ),
    "download": Command(
        "download or draw a data set, or the part that a run uses",
        (
            "maskrcnn-lit download data=coco2017 data.train_images=1000",
            "maskrcnn-lit download data=coco2017 data.root=DIR data.mirror=http://HOST/PATH",
            "maskrcnn-lit download data=shapes",
        ),
    ),
    "bench": Command(
        "time the loader, the training step and inference here, and suggest changes",
        (
            "maskrcnn-lit bench experiment=demo",
            "maskrcnn-lit bench data=coco2017 data.root=DIR backbone=resnet50 against=torchvision "
            "out=bench.json",
            "maskrcnn-lit bench run=EXPORT",
            "maskrcnn-lit bench latency=33ms out=latency.json",
        ),
    ),
    "lr": Command(
        "find a learning rate to start from, by a short training with rising rates",
        (
            "maskrcnn-lit lr experiment=demo",
            "maskrcnn-lit lr data=coco2017 data.root=DIR backbone=resnet50 steps=200 out=rate.png",
        ),
    ),
    "backbones": Command(
        "list the backbones: parameters, FLOPs, channels, pretrained weights",
        ("maskrcnn-lit backbones", "maskrcnn-lit backbones size=800"),
    ),
    "reproduce": Command(
        "re-run a finished run from its saved config; exit 1 if the metrics differ",
        (
            "maskrcnn-lit reproduce run=RUN",
            "maskrcnn-lit reproduce run=RUN run_dir=DIR tolerance=0.01",
        ),
    ),
    "replay": Command(
        "recompute a training step whose loss was not finite, from the file that the run wrote",
        ("maskrcnn-lit replay file=RUN/nonfinite_step7.pt",),
    ),
}

WITHOUT_TORCH = ("backbones", "top")  # commands that do not import torch


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line `arguments` (those of the process by default) and return the exit
    code.
    """
    # OpenMP reads this once, when torch is loaded, so no import of this file may import torch.
    # Threads that spin while they wait take the cores from the loader processes and other programs
    # (a step took ten times as long). Sleeping threads cost almost nothing, so torch may have one
    # per core.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return run_and_report_errors(
        lambda: _run(list(sys.argv[1:] if arguments is None else arguments))
    )


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview(COMMANDS))
        return 0
    if arguments[0] == "help":  # `help train` is `train --help`
        return _run([*arguments[1:], "--help"])
    if arguments[0] == "completion":
        from maskrcnn_lit.cli.completion import complete  # Hydra

        return complete(arguments[1:], list(COMMANDS))
    if arguments[0] in ("-V", "--version"):
        print(f"maskrcnn-lit {__version__}")
        return 0
    family = {
        name: command for name, command in COMMANDS.items() if name.startswith(f"{arguments[0]} ")
    }
    if family and (len(arguments) == 1 or arguments[1] in ("-h", "--help", "help")):
        print(overview(family))
        return 0
    from maskrcnn_lit.config.overrides import suggest  # Hydra; it would delay the lines above

    words = 2 if family else 1
    command, remaining = " ".join(arguments[:words]), arguments[words:]
    if command not in COMMANDS:
        known = family or COMMANDS
        raise UserError(
            f"there is no command '{command}'{suggest(command, known)}; the commands are "
            f"{', '.join(known)}"
        )
    flags, overrides = _split(command, remaining)
    return _run_command(command, flags, overrides)


def _split(command: str, words: list[str]) -> tuple[set[str], list[str]]:
    """The flags of a command line, and the remaining words; `--config-dir` is applied and
    removed.
    """
    flags: set[str] = set()
    overrides: list[str] = []
    known = {"-h": "--help", "--help": "--help", "--cfg": "--cfg", "-c": "--cfg"}
    if command == "train":
        known |= {"-m": "--multirun", "--multirun": "--multirun"}
    remaining = deque(words)
    while remaining:
        word = remaining.popleft()
        flag, equals, value = word.partition("=")
        if flag in ("--config-dir", "-cd"):
            add_config_dir(value if equals else remaining.popleft() if remaining else "")
        elif flag in known and (not equals or known[flag] == "--cfg"):
            flags.add(known[flag])
            if known[flag] == "--cfg":  # Hydra's --cfg takes an argument
                kind = value if equals else remaining[0] if remaining else "job"
                _check_config_kind(kind, equals)
                if not equals and kind == "job" and remaining:
                    remaining.popleft()
        elif equals and re.match(r"--[\w.]+=", word):  # as `wandb agent` writes an option
            _check_list(word[2:], overrides)
            overrides.append(word[2:])
        elif word.startswith("-"):
            raise UserError(
                f"{command} does not have the flag '{word}': it has "
                f"{', '.join([*dict.fromkeys(known.values()), '--config-dir DIR'])} "
                "and options NAME=VALUE"
            )
        else:
            _check_list(word, overrides)
            overrides.append(word)
    return flags, overrides


def _check_config_kind(kind: str, equals: str) -> None:
    if kind in ("hydra", "all") or (equals and kind != "job"):
        raise UserError(
            f"--cfg={kind} is not supported: use --cfg (or --cfg job) to print the config"
        )


def _check_list(word: str, before: list[str]) -> None:
    """Raise UserError for `runs=A B`: several values of one option need brackets."""
    from maskrcnn_lit.config.schema import OPTIONS

    name, _, value = before[-1].partition("=") if before else ("", "", "")
    rule = OPTIONS.get(name)
    if "=" in word or word.startswith("~") or rule is None or rule.count is None:
        return
    values = ",".join([*value.strip("[]").split(","), word])
    typed = shlex.quote(f"{name}=[{values}]")
    raise UserError(
        f"'{word}' is not NAME=VALUE: write several values of {name} in brackets, {typed}"
    )


def add_config_dir(folder: str) -> None:
    """Search `folder` for yaml files before MASKRCNN_LIT_CONFIG_DIR and the package's conf/."""
    from maskrcnn_lit.config.compose import CONFIG_DIR, config_dirs

    if not folder:
        raise UserError("--config-dir needs a folder: --config-dir my_conf")
    path = str(Path(folder).expanduser().absolute())
    named = [text for text in os.environ.get(CONFIG_DIR, "").split(os.pathsep) if text]
    os.environ[CONFIG_DIR] = os.pathsep.join([path, *(text for text in named if text != path)])
    config_dirs()  # raises UserError if it is not a folder


def _run_command(command: str, flags: set[str], overrides: list[str]) -> int:
    from maskrcnn_lit.config import compose as config
    from maskrcnn_lit.config.overrides import is_sweep

    if "--help" in flags:
        print(_help(command, overrides))
    elif "--cfg" in flags:
        print(config.to_yaml(config.show(command, overrides)), end="")
    elif command == "train" and ("--multirun" in flags or is_sweep(overrides)):
        _say_loading()
        from maskrcnn_lit.launch import search, sweep

        silence_libraries()
        show_library_logs()
        return (search if search.is_search(overrides) else sweep).run(overrides)
    else:
        composed = config.compose(
            command, overrides
        )  # before torch is loaded, to report mistakes at once
        if command not in WITHOUT_TORCH:
            _say_loading()
        module = importlib.import_module(f"maskrcnn_lit.cli.{config.yaml_name(command)}")
        silence_libraries()
        show_library_logs()
        return module.run(composed, overrides) or 0
    return 0


def _say_loading() -> None:
    """In a terminal, explain the wait of some seconds."""
    if "torch" not in sys.modules and sys.stderr.isatty():
        print("loading PyTorch ...", file=sys.stderr, flush=True)


def _help(command: str, words: list[str]) -> str:
    """Help with the values of the overrides in `words`, limited to the names in it
    (`model.rpn`).
    """
    from maskrcnn_lit.config.compose import describe

    topics = [word for word in words if "=" not in word and not word.startswith("~")]
    overrides = [word for word in words if word not in topics]
    deeper = describe(command, overrides, deep=True).options
    if topics:
        return topic_help(command, topics, deeper)
    return command_help(command, COMMANDS[command], describe(command, overrides), deeper)
