"""Training on coco_mini from a web server, with nothing on the disk at the beginning."""

import json
from collections import Counter
from pathlib import Path

import pytest
from local_server import Server, offer_archive
from tiny_commands import MODEL, metric_rows, result, run_command

from maskrcnn_lit.storage.sources import ANNOTATION_ARCHIVE

pytest_plugins = ("local_server", "tiny_commands")
pytestmark = pytest.mark.process

TRAIN, VAL = 6, 3
RUN = (*MODEL, "trainer.epochs=2", f"data.train_images={TRAIN}", f"data.val_images={VAL}")


@pytest.fixture
def mini(test_data: Path, server: Server) -> Path:
    folder = test_data / "coco_mini"
    for file in [
        *(folder / "train2017").iterdir(),
        *(folder / "val2017").iterdir(),
        *(folder / "annotations").iterdir(),
    ]:
        server.offer(file.read_bytes(), file.name)
    return folder


def names_asked(server: Server) -> Counter[str]:
    return Counter(path.rsplit("/", 1)[-1] for path in server.asked)


def of_the_run(run_dir: Path, mini: Path) -> set[str]:
    """File names of the images that the run has used."""
    ids = json.loads((run_dir / "subset_ids.json").read_text())
    names = set()
    for part in ("train", "val"):
        content = json.loads((mini / "annotations" / f"instances_{part}2017.json").read_text())
        names |= {image["file_name"] for image in content["images"] if image["id"] in ids[part]}
    assert len(names) == TRAIN + VAL
    return names


def test_from_nothing(server: Server, mini: Path, tmp_path: Path, run_dir: Path):
    """The archive once and the images of the subset alone; then the network is not needed any
    more.
    """
    md5 = offer_archive(server, mini, tmp_path)
    data = (
        "data=coco2017",
        f"data.root={tmp_path / 'coco'}",
        f"data.cache_dir={tmp_path / 'cache'}",
    )
    fetched = (f"data.mirror={server.address}/mirror", f"+data.prepare.archive_md5={md5}")
    run_command("train", *data, *fetched, *RUN, f"run_dir={run_dir}")
    assert result(run_dir)["status"] == "finished"
    trained = [row for row in metric_rows(run_dir) if row["train/loss"]]
    assert [row["epoch"] for row in trained] == ["0", "1"]
    assert names_asked(server) == Counter([ANNOTATION_ARCHIVE, *of_the_run(run_dir, mini)])

    server.asked.clear()
    run_command("train", *data, "data.download=false", *RUN, f"run_dir={run_dir / 'offline'}")
    assert server.asked == []
    assert of_the_run(run_dir / "offline", mini) == of_the_run(run_dir, mini)
    losses = [
        [row["val/loss"] for row in metric_rows(folder)]
        for folder in (run_dir, run_dir / "offline")
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("workers", [0, 1])
def test_from_a_url_each_file_comes_once_for_all_epochs(
    server: Server, mini: Path, tmp_path: Path, run_dir: Path, workers: int
):
    options = (
        f"data.cache_dir={tmp_path / 'cache'}",
        f"data.workers={workers}",
        "data.image_cache=off",
    )
    run_command(
        "train",
        "data=coco2017",
        f"data.root={server.address}/coco",
        *RUN,
        *options,
        f"run_dir={run_dir}",
    )
    assert result(run_dir)["status"] == "finished"
    jsons = [f"instances_{part}2017.json" for part in ("train", "val")]
    assert names_asked(server) == Counter([*jsons, *of_the_run(run_dir, mini)])
    server.asked.clear()
    run_command("evaluate", f"run={run_dir}", f"run_dir={run_dir / 'again'}")
    assert not {name for name in names_asked(server) if name.endswith(".jpg")}  # the cache has them


def test_what_cannot_be_had_is_told(
    server: Server, mini: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    del mini
    server.files.pop("instances_val2017.json")
    options = (f"data.cache_dir={tmp_path / 'cache'}", f"run_dir={tmp_path / 'run'}")
    run_command(
        "train", "data=coco2017", f"data.root={server.address}/coco", *RUN, *options, code=2
    )
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"{server.address}/coco/annotations/instances_val2017.json" in last
