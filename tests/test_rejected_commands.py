"""A rejected command leaves nothing behind: no folder, no file, no change to a run (F16)."""

import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_commands import BACKBONE, MODEL, coco_data, refused, whole_run

from maskrcnn_lit.cli.main import COMMANDS

pytest_plugins = ("tiny_commands",)

pytestmark = [pytest.mark.long, pytest.mark.process]  # bench starts loaders


def everything(*folders: Path) -> dict[str, int]:
    """Every path under the folders with the checksum of its content."""
    return {
        str(path): zlib.crc32(path.read_bytes()) if path.is_file() else 0
        for folder in folders
        for path in folder.rglob("*")
    }


@pytest.fixture(scope="module")
def small_run(strange: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run without its large files but best.ckpt, which is read before and after each command."""
    for run in whole_run(strange, tmp_path_factory.mktemp("rejected"), BACKBONE):
        for file in [run / "checkpoints" / "last.ckpt", *run.glob("events*")]:
            file.unlink()
        (run / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
        yield run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: empty."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


FINETUNE = ("experiment=finetune", "data.train.images=a", "data.train.annotations=a.json")
DATA = ("data=coco_json", "data.train.images=a", "data.train.annotations=none.json")
ONE = ("data=coco_json", "data.annotations=none.json", "data.images=a")
NEEDED = {  # what a command needs besides the wrong option
    "predict": ("run={run}", "source={images}"),
    "evaluate": ("run={run}",),
    "compare": ("runs={run}",),
    "top": ("sweep_dir={run}",),
    "reproduce": ("run={run}",),
    "replay": ("file={run}/none.pt",),
    "serve": ("run={run}", "port=0"),
    "show": ("run={run}", "port=0"),
    "export": ("run={run}",),
    "publish": ("run={run}", "to=new"),
    "import": ("from=torchvision", "weights={run}/checkpoints/best.ckpt", "out=new"),
    "data check": ("data=shapes",),
    "data stats": ("data=shapes",),
    "data show": ("data=shapes",),
    "data convert": ("data=shapes", "out=new"),
    "data merge": ("jsons={run}/config.yaml", "folders={images}", "out=new/all.json"),
    "data split": ("data=shapes", "out=new"),
    "data subset": ("data=shapes", "out=new/some.json"),
    "download": ("data=shapes",),
}
VALUES = {  # a wrong value of an option that the command has
    "train": ("trainer.epochs=-1", "trainer.precision=fp16", "data.workers=many", "seed=-1"),
    "evaluate": ("checkpoint=worst", "data.batch_size=0", "metrics=none", "tta=rotate", "tile=8"),
    "predict": (
        "score_threshold=2",
        "max_detections=0",
        "page=0",
        "batch_size=x",
        "track=sort",
        "tta=1",
        "tile=x",
        "overlap=0.7",
    ),
    "compare": (
        "metric=speed",
        "rows=speed",
        "columns=seed",
        "seeds=std",
        "overwrite=maybe",
        "out=[a]",
    ),
    "top": ("seconds=0", "metric=[a]", "once=2", "sweep_dir=null"),
    "download": ("data.train_images=0", "data.root=[a]"),
    "lr": ("steps=5", "low=-1", "high=0", "out=[a]"),
    "bench": ("steps=0", "model.num_classes=-1", "trainer.precision=fp16"),
    "backbones": ("measure=perhaps",),
    "reproduce": ("run_dir=[a]",),
    "replay": ("file=[a]",),
    "export": (
        "format=tflite",
        "precision=fp16",
        "sizes=[0x64]",
        "batch_size=0",
        "web_runtime=[a]",
    ),
    "serve": ("port=-1", "queue=0", "seconds=0", "megapixels=-1", "names=a", "run=[]"),
    "show": ("port=-1", "checkpoint=worst", "score_threshold=2", "hosts=a"),
    "publish": ("private=2", "pictures=x", "license=[a]", "checkpoint=worst"),
    "import": ("from=caffe", "config=x.py", "weights=[a]", "overwrite=2"),
    "data check": ("data.image_size=0", "overwrite=2", "cleaned=[a]"),
    "data stats": ("data.image_size=-5", "seed=-1"),
    "data show": ("count=0", "epoch=-1", "part=test"),
    "data convert": ("to=voc", "copy_images=2", "data.image_size=0"),
    "data merge": ("jsons=[]", "folders=none", "overwrite=2"),
    "data split": ("data.val_share=0", "data.split_seed=-1", "out=[a]"),
    "data subset": ("part=test", "data.train_images=0"),
}
MISSING: dict[str, tuple[tuple[str, ...], ...]] = {  # files that are not there
    "train": (
        ("resume=none",),
        (*DATA, *("data.val.images=a", "data.val.annotations=none.json")),
        (*FINETUNE, "data.val.images=a", "data.val.annotations=a.json", "model.weights=none.pth"),
        (*FINETUNE,),
        ("{coco}", "backbone.weights=none.pth"),
        ("{coco}", "model.weights=none.pth"),
        ("-m", "{coco}", "seed=1,-2"),
        ("-m", "{coco}", "trainer.epochs=1,-1"),
        ("-m", "{coco}", "backbone=resnet18,resnet5"),
        ("-m", "{coco}", "nosuchoption=1,2"),
        ("resume={run}", "data.root=none"),
    ),
    "evaluate": (("run=none",), ("run={run}/predictions.png",), ("run={run}", "results=none")),
    "predict": (
        ("run=none", "source={images}"),
        ("run={run}", "source=none.jpg"),
        ("run={run}", "source=webcam:99"),
        ("run={run}", "source=rtsp://127.0.0.1:9/1"),
        ("run={run}", "source={run}/config.yaml"),
        ("run={run}/checkpoints/best.ckpt", "source={run}/broken.png"),
        ("run={run}", "source={images}", "score_threshold=best"),
    ),
    "compare": (("runs=none",), ("runs=[{run},none]",), ("runs={images}",)),
    "top": (("sweep_dir=none",), ("sweep_dir={images}",)),
    "reproduce": (("run=none",), ("run={images}",)),
    "replay": (("file=none.pt",),),
    "export": (
        ("run=none",),
        ("run={images}",),
        ("run={run}/predictions.png",),
        ("run={run}", "format=web", "web_runtime=none.tgz"),
    ),
    "serve": (("run=none",), ("run=[{run},{run}]",), ("run={run}", "host=192.0.2.1")),
    "show": (("run=none",), ("run={run}", "host=192.0.2.1")),
    "lr": ((*DATA,), ("data=shapes", "low=1", "high=0.1"), ("data=shapes", "out=rate.txt")),
    "publish": (("run=none", "to=new"), ("run={run}", "to=hf:alone"), ("run={images}", "to=new")),
    "bench": ((*DATA,), ("run=none",)),
    "import": (
        ("from=torchvision", "weights=none.pth", "out=new"),
        ("from=mmdetection", "config=none.py", "weights=none.pth", "out=new"),
        ("from=detectron2", "config=none.yaml", "weights=none.pkl", "out=new"),
    ),
    "data check": ((*DATA,),),
    "data stats": ((*DATA,), (*DATA, "out=stats.json")),
    "data show": ((*DATA,), (*DATA, "out=new/a.png")),
    "data convert": (
        (*DATA, "out=new"),
        ("from=yolo_seg", "data.root=none", "out=new"),
        ("from=hf_parquet", "data.root={images}", "out=new"),
        ("from=labelme", "data.root={images}", "out=new"),
        ("from=mask_folder", "data.root={images}", "out=new"),
        ("from=voc_xml", "data.root={images}", "out=new"),
    ),
    "data merge": (("jsons=none.json", "folders={images}", "out=new/all.json"),),
    "data split": (
        (*ONE, "data.val_share=0.2", "out=new"),
        ("data=yolo_seg", "data.root={images}", "data.val_share=0.2", "out=new"),
    ),
    "data subset": ((*DATA, "out=new/some.json"), (*ONE, "out=new/some.json")),
    "download": (("data=none",), ("data=coco_json",)),
}


def cases() -> list[tuple[str, tuple[str, ...]]]:
    listed: list[tuple[str, tuple[str, ...]]] = []
    for command in COMMANDS:
        needed = NEEDED.get(command, ())
        faults = ["nosuchoption=1", "--nosuchflag", "seed=[", *VALUES[command]]
        listed += [(command, (*needed, fault)) for fault in faults]
        listed += [(command, options) for options in MISSING.get(command, ())]
    return listed


def test_every_command_is_here():
    assert set(VALUES) == set(COMMANDS)
    assert set(MISSING) == set(COMMANDS) - {"backbones"}


@pytest.mark.parametrize(("command", "options"), cases())
def test_a_rejected_command_leaves_nothing(
    command: str, options: tuple[str, ...], here: Path, small_run: Path, strange: Path
):
    places = {"run": small_run, "images": strange / "val"}
    words = command.split()
    for option in options:
        if option == "{coco}":
            words += [*coco_data(strange), *MODEL]
        else:
            for name, place in places.items():
                option = option.replace(f"{{{name}}}", str(place))
            words.append(option)
    before = everything(here, small_run, strange)
    refused(*words)
    assert everything(here, small_run, strange) == before


@pytest.mark.parametrize(
    "options",
    [
        ("trainer.epochs=-1",),
        ("nosuchoption=1",),
        ("trainer.num_nodes=2",),
        ("trainer.accelerator=cpu", "trainer.devices=[0]"),
        ("experiment=backbones",),
    ],
)
def test_nor_does_one_with_a_folder_of_its_own(options: tuple[str, ...], here: Path, strange: Path):
    refused("train", *coco_data(strange), *MODEL, *options, "run_dir=new")
    assert everything(here) == {}
