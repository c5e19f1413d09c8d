import json
import math
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from coco_file import coco_dict, write_coco
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from wrong_values import CHOICE, COUNT, COUNT_OR_NONE, FLAG, NUMBER, TEXT, cases

from maskrcnn_lit.data.batch import BLANK_ID, Batch, check_batch
from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.data.coco.reading import Part
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.errors import UserError

AUGMENT = {"flip": 0.5, "scale": [0.8, 1.2], "crop": 0.8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_coco(root / "train", coco_dict(11))
    write_coco(root / "val", coco_dict(5))
    return root


def paths(part: str) -> dict[str, str]:
    return {"annotations": f"{part}/instances.json", "images": f"{part}/images"}


def data(folder: Path, **options: Any) -> CocoDataModule:
    defaults: dict[str, Any] = {
        "name": "test",
        "root": folder,
        "train": paths("train"),
        "val": paths("val"),
        "image_size": 64,
        "batch_size": 2,
        "workers": 0,
        "augment": AUGMENT,
        "mask_size": 28,
        "seed": 1,
    }
    made = CocoDataModule(**defaults | options)
    made.prepare_data()
    made.setup("fit")
    return made


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[k], b[k]) for a, b in zip(one, other, strict=True) for k in a
    )


def test_both_loaders_keep_the_contract(folder: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "maskrcnn_lit")
    made = data(folder)
    for loader, count in ((made.train_dataloader(), 6), (made.val_dataloader(), 3)):
        batches = list(loader)
        assert len(batches) == len(loader) == count
        for batch in batches:
            check_batch(batch, 3)
    assert [category.name for category in made.categories or ()] == ["ant", "mole", "zebra"]
    shown = torch.cat([batch["image_ids"] for batch in made.val_dataloader()])
    assert sorted(shown.tolist()) == [BLANK_ID, 1, 2, 3, 4, 5]  # two a batch: one slot is left
    assert "train: 11 images, 31 objects, 3 categories" in caplog.text


def graphs(batches: Iterable[Batch]) -> set[tuple[int, ...]]:
    """Of each part of a model that is compiled there is one for each of these."""
    return {(*batch["images"].shape[2:], batch["boxes"].shape[1]) for batch in batches}


@pytest.mark.long
def test_options_decide_how_much_there_is_to_compile(test_data: Path):
    """Of real images: with one length and 64 slots there is one graph an orientation."""
    options = {
        "train": {"images": "train2017", "annotations": "annotations/instances_train2017.json"},
        "val": {"images": "val2017", "annotations": "annotations/instances_val2017.json"},
        "image_size": (64, 107),
        "batch_size": 4,
    }
    many, few = (
        data(test_data / "coco_mini", **options, **more)
        for more in ({}, {"lengths": 1, "slots": 64})
    )
    assert len(graphs(many.train_dataloader())) > 6
    for loader in (few.train_dataloader(), few.val_dataloader()):
        assert graphs(loader) == {(64, 128, 64), (128, 64, 64)}


@pytest.mark.process
def test_workers_change_nothing_not_even_the_state_of_chance(folder: Path):
    epochs = {}
    for workers in (0, 1, 2):
        made = data(folder, workers=workers)
        loader = made.train_dataloader()
        state = torch.get_rng_state()
        found = list(loader)
        made._batches.set_epoch(1)  # persistent workers must hear of it
        epochs[workers] = [found, list(loader)]
        assert torch.equal(state, torch.get_rng_state())
    assert same(epochs[0][0], epochs[1][0])
    assert same(epochs[0][0], epochs[2][0])
    assert same(epochs[0][1], epochs[1][1])
    assert same(epochs[0][1], epochs[2][1])
    assert not torch.equal(epochs[0][0][0]["images"], epochs[0][1][0]["images"])


class Recorder(LightningModule):
    """Trains one number and notes what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[tuple[int, list[int], int]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.seen.append(
            (self.current_epoch, batch["image_ids"].tolist(), int(batch["images"].sum()))
        )
        return self.weight.sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer(folder: Path, **options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


@pytest.mark.process
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("workers", "workers_later"), [(0, 0), (1, 2), (2, 0)])
def test_lightning_goes_on_where_it_stopped(
    folder: Path, tmp_path: Path, workers: int, workers_later: int
):
    """Lightning tells our sampler the epoch, and after a stop in mid-epoch shows the rest of it,
    then whole epochs, however many processes load before and after.
    """
    whole = Recorder()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(
        whole, datamodule=data(folder, workers=workers)
    )
    assert [epoch for epoch, *_ in whole.seen] == [0] * 6 + [1] * 6 + [2] * 6
    epochs = [whole.seen[k : k + 6] for k in (0, 6, 12)]
    assert epochs[0][0][1:] != epochs[1][0][1:] != epochs[2][0][1:]

    saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=8, save_top_k=-1)
    trainer(tmp_path, max_epochs=2, callbacks=[saver]).fit(
        Recorder(), datamodule=data(folder, workers=workers)
    )
    rest, resumed = Recorder(), data(folder, workers=workers_later)
    resumed.resume(1, 2)
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(
        rest, datamodule=resumed, ckpt_path=tmp_path / "step=8.ckpt"
    )
    assert rest.seen == whole.seen[8:]


def test_subsets_are_nested_and_told(folder: Path):
    few, more = (data(folder, train_images=n, val_images=2).subset_ids() for n in (3, 7))
    assert set(few["train"]) < set(more["train"])
    assert len(few["train"]) == 3
    assert len(few["val"]) == 2
    first = data(folder, train_images=4, subset="first")
    assert first.subset_ids()["train"] == [1, 2, 3, 4]
    with pytest.raises(UserError, match=r"12 images were requested, but .* has 11"):
        data(folder, train_images=12)


class Looked(Callback):
    """Notes what validations see."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def on_validation_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: Batch, *args: Any
    ) -> None:
        self.ids += [image_id for image_id in batch["image_ids"].tolist() if image_id != BLANK_ID]


def looked_at(folder: Path, images: int | None, seed: int = 1) -> list[int]:
    """The ids that a Trainer's validations during fit see; one of its own sees all."""
    made, seen = data(folder, seed=seed), Looked()
    made.validation_subset_size = images
    options = {
        "max_epochs": 1,
        "limit_train_batches": 1,
        "num_sanity_val_steps": 0,
        "enable_checkpointing": False,
    }
    quiet = trainer(folder, callbacks=[seen], **options)
    quiet.fit(Recorder(), datamodule=made)
    during = sorted(seen.ids)
    assert during == made.validation_subset.image_ids.tolist()
    seen.ids.clear()
    quiet.validate(Recorder(), datamodule=made, verbose=False)
    assert sorted(seen.ids) == made.val_index.image_ids.tolist(), "everything, outside of fit"
    return during


def test_quick_looks_are_nested_and_the_same_with_every_seed(folder: Path):
    found = {n: looked_at(folder, n) for n in (1, 2, 3, 4)}
    assert [len(ids) for ids in found.values()] == [1, 2, 3, 4]
    assert set(found[1]) < set(found[2]) < set(found[3]) < set(found[4])
    assert (
        looked_at(folder, None) == looked_at(folder, 5) == looked_at(folder, 500) == [1, 2, 3, 4, 5]
    )
    assert len({tuple(looked_at(folder, 2, seed=seed)) for seed in range(4)}) == 1


def test_processes_share_a_quick_look(folder: Path):
    made = data(folder)
    made.validation_subset_size = 3
    shares = []
    for rank in range(2):
        made.trainer = SimpleNamespace(
            global_rank=rank,
            world_size=2,
            state=SimpleNamespace(fn=TrainerFn.FITTING),
            strategy=SimpleNamespace(root_device=torch.device("cpu")),
        )
        ids = torch.cat([batch["image_ids"] for batch in made.val_dataloader()]).tolist()
        shares.append([image_id for image_id in ids if image_id != BLANK_ID])
    assert sorted(shares[0] + shares[1]) == made.validation_subset.image_ids.tolist()
    assert all(shares)


def test_labels_of_validation_follow_training(folder: Path, tmp_path: Path):
    content = coco_dict(5)
    for category in content["categories"]:
        category["id"] += 70
    for annotation in content["annotations"]:
        annotation["category_id"] += 70
    content["categories"].reverse()
    annotations, images = write_coco(tmp_path, content)
    other = data(folder, val={"annotations": annotations, "images": images})
    assert [c.name for c in other.val_index.categories] == [c.name for c in other.categories]
    assert sorted(c.id for c in other.val_index.categories) == [71, 72, 73]
    expected = list(data(folder).val_dataloader())
    assert same(list(other.val_dataloader()), expected)
    content["categories"][0]["name"] = "yak"  # was mole
    annotations, images = write_coco(tmp_path, content)
    with pytest.raises(UserError, match=r"objects of yak.*ant, yak, zebra.*ant, mole, zebra"):
        data(folder, val={"annotations": annotations, "images": images})


def test_validation_alone_uses_the_table_of_the_model(folder: Path):
    made = CocoDataModule(
        name="test", root=folder, train={"annotations": "no", "images": "no"}, val=paths("val")
    )
    made.use_categories([Category(5, "zebra"), Category(6, "ant"), Category(7, "mole")])
    made.setup("validate")
    assert made.train_index is None
    assert [c.name for c in made.val_index.categories] == [
        "zebra",
        "ant",
        "mole",
    ]
    assert list(made.subset_ids()) == ["val"]


def test_prepare_is_called_before_anything_is_read(tmp_path: Path):
    made = data(
        tmp_path,
        prepare=lambda: [write_coco(tmp_path / part, coco_dict(4)) for part in ("train", "val")],
    )
    assert len(made.train_index) == 4


def test_the_official_layout(test_data: Path):
    made = data(
        test_data / "coco_mini",
        train={"annotations": "annotations/instances_train2017.json", "images": "train2017"},
        val={"annotations": "annotations/instances_val2017.json", "images": "val2017"},
        batch_size=8,
        val_images=8,
    )
    assert len(made.train_index) == 86
    assert len(made.categories) == 80
    batch = next(iter(made.train_dataloader()))
    check_batch(batch, 80)
    assert batch["images"].shape == (8, 3, 64, 64)


def test_faults_are_told_once(test_data: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "maskrcnn_lit")
    corrupt = {"annotations": "annotations/instances_corrupt.json", "images": "images"}
    data(test_data / "corrupt", train=corrupt, val=corrupt, on_bad="skip")
    assert caplog.text.count("train: 12 faulty entries left out (data.on_bad=skip):") == 1
    assert "  1 x missing file (missing.jpg: no such file: " in caplog.text
    with pytest.raises(UserError, match="12 faults"):
        data(test_data / "corrupt", train=corrupt, val=corrupt, on_bad="error")


def test_mistakes_are_told(folder: Path):
    for options, said in (
        ({"batch_size": 0}, "data.batch_size=0 must be a whole number, 1 or more"),
        ({"image_size": [9, 3]}, "data.image_size=.9, 3. must be"),
        ({"augment": {"flop": 1}}, "augment.flop is unknown"),
        ({"train": {"annotations": "x.json", "images": "."}}, "no annotation file .*x.json"),
        ({"train": {"annotations": "train/instances.json"}}, r"data.train.images is missing"),
    ):
        with pytest.raises(UserError, match=said):
            data(folder, **options)
    with pytest.raises(UserError, match=r"data\.workers=many must be auto or a number"):
        data(folder, workers="many").train_dataloader()


@pytest.mark.parametrize(
    ("option", "value"),
    cases(
        name=[None, *TEXT],
        root=[1, True, [], {"a": 1}],
        **{key: [None, 1, True, "folder", ["folder"]] for key in ("train", "val")},
        image_ids=[1, "1", [], [1.5], ["1"], [True], [None], {"a": 1}, [2**70]],
        **dict.fromkeys(("train_images", "val_images"), COUNT[1:]),
        **{key: [*COUNT, 10**9] for key in ("batch_size", "mask_size", "slots")},
        lengths=[*COUNT, 4],
        **{key: [None, *CHOICE] for key in ("subset", "on_bad", "image_cache", "feature_cache")},
        keep_empty=FLAG,
        image_size=[None, 0, -800, "800", True, [], [800, math.nan]],
        workers=[None, True, -1, 1.5, "many", []],
        seed=[*COUNT_OR_NONE, 2**63],
        augment=[1, True, "flip", ["flip"]],
        cache_gb=NUMBER,
        prepare=[1, True, "shapes", {"root": "data"}],
        download=FLAG[1:],
        mirror=TEXT,
    ),
)
def test_options_of_the_wrong_kind_are_named(folder: Path, option: str, value: Any):
    """When the module is built, before anything is read."""
    options = {"name": "test", "train": paths("train"), "val": paths("val"), option: value}
    with pytest.raises(UserError) as caught:
        CocoDataModule(root=folder, **options) if option != "root" else CocoDataModule(**options)
    where = "augment" if option == "augment" else f"data.{option}"
    assert str(caught.value).startswith(where)
    assert " must " in str(caught.value)


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize("value", [1, True, ["folder"], {"a": 1}])
def test_paths_of_the_wrong_kind_are_named(part: str, value: Any):
    options: dict[str, Any] = {"name": "test", "train": paths("train"), "val": paths("val")}
    for key in ("images", "annotations"):
        options[part] = paths(part) | {key: value}
        with pytest.raises(UserError, match=f"data.{part}.{key}=.* must be "):
            CocoDataModule(**options)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {}),
        ({"download": False}, {"download": False, "mirror": None}),
        (
            {"download": True, "mirror": "http://host"},
            {"download": True, "mirror": "http://host"},
        ),
    ],
)
def test_what_prepares_is_told_whether_it_may_download(
    folder: Path, given: dict[str, Any], expected: dict[str, Any]
):
    calls: list[dict[str, Any]] = []
    data(folder, prepare=lambda **options: calls.append(options), **given)
    assert calls == [expected]


def test_the_start_says_what_cannot_be_learnt_and_what_is_read_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    content = coco_dict(5)
    content["annotations"][0]["bbox"][2] = 0.2
    content["annotations"][1]["iscrowd"] = "0"
    for part in ("train", "val"):
        write_coco(tmp_path / part, content)
    made = data(tmp_path)
    printed = caplog.text
    assert printed.count("train: 1 of 9 objects cannot be learned") == 1
    assert printed.count("1 x too small to be learned (annotation 1 of 01.jpg") == 1
    assert (
        printed.count("1 x number in quotes (annotation 2 of 02.jpg: iscrowd)") == 2
    )  # a part each
    batches = list(made.train_dataloader())
    assert sum(int(batch["valid"].sum()) for batch in batches) <= 8


def test_validation_images_that_are_trained_on_are_told(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    data(folder)
    assert "training images too" not in caplog.text
    data(folder, val=paths("train"))
    assert "validation images are training images too" in caplog.text
    caplog.clear()
    made = data(folder, val=paths("train"), image_ids=[7, 11])
    assert made.val_index is not None
    assert "training images too" not in caplog.text


def test_validation_data_may_lack_a_class_and_list_one_too_many(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    content = coco_dict(5)
    gone = content["categories"].pop()
    content["annotations"] = [
        entry for entry in content["annotations"] if entry["category_id"] != gone["id"]
    ]
    content["categories"].append({"id": 99, "name": "objects"})  # an unused super-category
    annotations, images = write_coco(tmp_path, content)
    made = data(folder, val={"annotations": annotations, "images": images})
    assert [c.name for c in made.val_index.categories] == [c.name for c in made.categories]
    assert f"val: the classes {gone['name']} have no objects" in caplog.text
    assert "val: the classes objects are left out" in caplog.text
    assert len(list(made.val_dataloader())) > 0


def test_classes_are_chosen_in_both_parts_and_counted(
    folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO")
    made = data(folder, classes=["ant", {"zebra": "mammal"}])
    assert [c.name for c in made.categories] == ["ant", "mammal"]
    assert [c.name for c in made.val_index.categories] == ["ant", "mammal"]
    for part, images in (("train", 11), ("val", 5)):
        moles = sum(entry["category_id"] == 3 for entry in coco_dict(images)["annotations"])
        line = f"{part}: data.classes leaves out {moles} objects of 1 class (mole {moles})"
        assert caplog.text.count(line) == 1
    assert max(int(batch["labels"].max()) for batch in made.train_dataloader()) == 2


def test_capitals_that_differ_between_the_jsons_are_renamed(folder: Path, tmp_path: Path):
    content = coco_dict(5)
    content["categories"][0]["name"] = "Zebra"
    annotations, images = write_coco(tmp_path, content)
    val = {"annotations": annotations, "images": images}
    with pytest.raises(UserError, match=r"did you mean zebra\? 'data.classes={Zebra: zebra}'"):
        data(folder, val=val)
    made = data(folder, val=val, classes={"Zebra": "zebra"})
    assert [c.name for c in made.val_index.categories] == ["ant", "mole", "zebra"]


def test_a_class_that_neither_json_has_is_named_with_its_likes(folder: Path):
    with pytest.raises(UserError, match=r"has zebr, .*ant, mole, zebra; did you mean zebra\?"):
        data(folder, classes=["ant", "zebr"])


def test_the_model_names_what_validation_alone_may_lack(folder: Path):
    def validated(classes: list[Any]) -> CocoDataModule:
        made = CocoDataModule(
            name="test", root=folder, train=paths("train"), val=paths("val"), classes=classes
        )
        made.use_categories([Category(5, "ant"), Category(6, "bee")])
        made.setup("validate")
        return made

    index = validated(["ant", "bee"]).val_index
    assert [c.name for c in index.categories] == ["ant", "bee"]
    assert [c.name for c in index.listed_categories] == ["ant"]
    assert [c["name"] for c in index.coco_ground_truth()["categories"]] == ["ant"]
    with pytest.raises(UserError, match=r"has beee, but the classes of the data are"):
        validated(["ant", "beee"])


def one_json(folder: Path, **options: Any) -> CocoDataModule:
    """The training json of `folder`, divided."""
    given = {"annotations": "train/instances.json", "images": "train/images"}
    return data(folder, **{"train": None, "val": None, "val_share": 0.3, **given, **options})


def test_one_json_is_divided(folder: Path, tmp_path: Path):
    made = one_json(folder, cache_dir=tmp_path)
    ids = made.subset_ids()
    assert len(ids["val"]) == 3
    assert sorted(ids["train"] + ids["val"]) == list(range(1, 12))
    assert one_json(folder, cache_dir=tmp_path, seed=7).subset_ids() == ids
    assert one_json(folder, cache_dir=tmp_path, split_seed=1).subset_ids() != ids
    evaluated = CocoDataModule(**{**ONE, "root": folder, "cache_dir": tmp_path})
    evaluated.setup("validate")
    assert evaluated.val_index.image_ids.tolist() == ids["val"]


ONE = {
    "name": "one",
    "annotations": "train/instances.json",
    "images": "train/images",
    "val_share": 0.3,
}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val_share": None}, "instances.json has no validation part: .*data.val_share=0.2"),
        ({"val_share": 0}, "data.val_share=0 must be a number from 0.001 to 0.999"),
        ({"val_share": 1.0}, "data.val_share=1.0 must be"),
        ({"images": None}, "data.images is missing: give both"),
        ({"annotations": None}, "data.annotations is missing: give both"),
        ({"annotations": None, "images": None}, "data.val_share divides one json: give it with"),
        ({"annotations": "none.json"}, "data.annotations=.*none.json must be a file on this"),
        ({"group_by": "patient"}, "have no field 'patient': choose data.group_by from file_name"),
        ({"group_by": 3}, "data.group_by=3 must be text"),
        ({"reader": "voc"}, "data.annotations and data.images are of data=coco_json"),
    ],
)
def test_what_cannot_be_divided(options: dict[str, Any], message: str, folder: Path):
    with pytest.raises(UserError, match=message):
        one_json(folder, **options)


class _Reader:
    """Reads the set of `folder`, which has both parts."""

    def __init__(self, *has: str) -> None:
        self.has = has

    def parts(self, root: Path) -> tuple[str, ...]:
        return self.has

    def sources(self, root: Path) -> tuple[Path, ...]:
        return (root,)

    def read(self, root: Path, part: str) -> Part:
        name = part if self.has else "train"
        content = json.loads((root / name / "instances.json").read_text())
        return Part(content, root / name / "images")

    def __repr__(self) -> str:
        return f"_Reader{self.has}"


def test_a_reader_gives_the_parts_that_it_has(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"train": None, "val": None, "cache_dir": tmp_path}
    both = data(folder, reader=_Reader("train", "val"), **options)
    assert both.parts == ["train", "val"]
    assert (len(both.train_index), len(both.val_index)) == (11, 5)
    with pytest.raises(UserError, match="has no part 'train': give one beside val, or divide"):
        data(folder, reader=_Reader("val"), **options)
    for has in ((), ("train",)):
        with pytest.raises(UserError, match="has no validation part: divide its images"):
            data(folder, reader=_Reader(*has), **options)
    divided = data(folder, reader=_Reader(), val_share=0.3, **options)
    assert (len(divided.train_index), len(divided.val_index)) == (8, 3)
    whole = CocoDataModule(name="x", root=folder, reader=_Reader(), cache_dir=tmp_path)
    whole.setup("validate")  # evaluation of all images
    assert whole.parts == ["train"]
    assert len(whole.val_index) == 11
    with pytest.raises(UserError, match=r"data.reader=3 must be null or a reader"):
        data(folder, reader=3, **options)
    with pytest.raises(UserError, match=r"data\.root=s3://bucket must be a folder on this machine"):
        data(folder, reader=_Reader(), val_share=0.3, **options | {"root": "s3://bucket"})
    monkeypatch.chdir(folder)
    here = data(folder, reader=_Reader(), val_share=0.3, **options | {"root": None})
    assert here.subset_ids() == divided.subset_ids()


def test_rare_classes_are_drawn_more_often(folder: Path, caplog: pytest.LogCaptureFixture):
    """By the share of the images with each class; crowds do not count. The loader's length is that
    of every epoch, and a resume in the middle gives the same batches.
    """
    caplog.set_level("INFO", "maskrcnn_lit")
    made = data(folder, repeat_threshold=0.9)
    content = json.loads((folder / "train" / "instances.json").read_text())
    of_class: dict[int, set[int]] = {}
    for a in content["annotations"]:
        if not a["iscrowd"]:
            of_class.setdefault(a["category_id"], set()).add(a["image_id"])
    factors = dict.fromkeys((image["id"] for image in content["images"]), 1.0)
    for images in of_class.values():
        for image in images:
            factors[image] = max(factors[image], math.sqrt(0.9 / (len(images) / len(factors))))
    loader = made.train_dataloader()
    assert "of 11 training images are drawn more than once" in caplog.text
    batches = list(loader)
    assert len(batches) == len(loader)
    ids = torch.cat([batch["image_ids"] for batch in batches]).tolist()
    for image, factor in factors.items():
        assert math.floor(factor) <= ids.count(image) <= math.ceil(factor)
    assert len(ids) - ids.count(BLANK_ID) > len(factors)
    again = data(folder, repeat_threshold=0.9)
    again.resume(0, 3)
    assert same(list(again.train_dataloader()), batches[3:])
    with pytest.raises(UserError, match=r"data.repeat_threshold=2 must be a number from 0 to 1"):
        data(folder, repeat_threshold=2)
