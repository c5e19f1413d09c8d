"""`maskrcnn-lit data check` from end to end: every fault of the corrupt set, by file and annotation
id.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_commands import MODEL, coco_data, ground_truth, run_command, run_script, save_ground_truth

pytest_plugins = ("tiny_commands",)

# Of the README of `corrupt`: file -> kind, the annotation (None: the whole image), what the user
# reads.
FAULTS = {
    "truncated.jpg": ("pixels cannot be decoded", None, "image file is truncated"),
    "zero_byte.jpg": ("empty file", None, "0 bytes"),
    "missing.jpg": ("missing file", None, "no such file"),
    "wrong_size.jpg": ("size differs", None, "the json says 200 x 100, the file is 160 x 120"),
    "bbox_zero_width.jpg": ("box without area", 12, "bbox [43.74, 46.67, 0.0, 50.22]"),
    "bbox_negative.jpg": ("negative box", 14, "bbox [20.95, 95.56, -13.16, -40.93]"),
    "bbox_outside.jpg": (
        "box outside of the image",
        16,
        "bbox [180.0, 135.0, 30.0, 25.0] in 160 x 125",
    ),
    "bbox_nan.jpg": ("box not finite", 18, "bbox [nan, 4.81, 49.13, 60.88]"),
    "polygon_two_points.jpg": ("polygon under 3 points", 20, "4 numbers"),
    "rle_size_mismatch.jpg": (
        "RLE of another size",
        22,
        "size [117, 180], the image has [107, 160]",
    ),
    "unknown_category.jpg": ("unknown category", 24, "category_id 9999 is not in categories"),
    "duplicate_annotation_id.jpg": (
        "duplicate annotation id",
        12,  # what it is called from now on
        "an earlier annotation has id 25; it is 12 here",
    ),
    "image id 999999": ("unknown image", 28, "no such id in images"),
    "../outside_of_the_folder.jpg": (
        "file name outside of the folder",
        None,
        "never read, it leaves ",
    ),
}
RENUMBERED = "duplicate_annotation_id.jpg"  # both of its annotations stay
SOUND = {
    *("valid.jpg", "no_annotations.jpg", "grayscale.jpg", "cmyk.jpg", "gray16.png", "rgb16.png"),
    *(
        "exif_rotated_upright_json.jpg",
        "exif_rotated_stored_json.jpg",
        "annotation_of_unknown_image.jpg",
    ),
}


def check(*arguments: object, code: int) -> None:
    run_command("data", "check", *arguments, code=code)


def corrupt(test_data: Path, annotations: Path | None = None) -> tuple[str, ...]:
    folder = test_data / "corrupt"
    file = annotations or folder / "annotations" / "instances_corrupt.json"
    return (
        "data=coco_json",
        f"data.train.images={folder / 'images'}",
        f"data.train.annotations={file}",
    )


def test_the_table_is_that_of_the_set(test_data: Path):
    """What the README of `corrupt` lists is in the table above or sound."""
    text = (test_data / "corrupt" / "README.md").read_text()
    rows = re.findall(r"^\| (\d+) \| `([^`]+)` \| ([^|]*) \|", text, re.MULTILINE)
    assert len(rows) == 22
    assert {name for _, name, _ in rows} == (set(FAULTS) - {"image id 999999"}) | SOUND
    for _, name, numbers in rows:
        bold = re.findall(r"\*\*(\d+)\*\*", numbers)
        if bold:
            assert FAULTS[name][1] == int(bold[0]) or name == RENUMBERED, name
    assert "annotation **28**" in text


def test_every_fault_of_the_set_is_told_by_file_and_annotation(
    test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    check(*corrupt(test_data), f"out={tmp_path}/faults.json", code=1)
    printed = capsys.readouterr().out
    listed = json.loads((tmp_path / "faults.json").read_text())
    assert len(listed["faults"]) == len(FAULTS) == 14
    for fault in listed["faults"]:
        kind, annotation, what = FAULTS[fault["image"]]
        assert (fault["part"], fault["kind"], fault["annotation"]) == ("train", kind, annotation)
        assert fault["what"].startswith(what)
    for name, (kind, annotation, what) in FAULTS.items():
        number = "" if annotation is None else f", annotation {annotation}"
        assert f"\n  1 x {kind}\n    {name}{number}: {what}" in printed
    assert printed.startswith(
        "train: 18 images decoded, 26 annotations compared with their masks; 14 faults\n"
    )
    assert printed.endswith("\n14 faults\n")
    assert f"The full list is in {tmp_path}/faults.json" in printed
    assert "note: train: 64 of 80 categories have no annotation: airplane, apple" in printed
    assert listed["notes"][0].startswith("train: 64 of 80 categories")


def test_the_cleaned_json_has_no_fault_and_is_else_the_same(
    test_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    original = test_data / "corrupt" / "annotations" / "instances_corrupt.json"
    before = original.read_bytes()
    check(*corrupt(test_data), f"cleaned={tmp_path}/clean", code=1)
    written = tmp_path / "clean" / "instances_corrupt.json"
    assert f"train without them: data.train.annotations={written}" in capsys.readouterr().out
    assert original.read_bytes() == before
    assert [file.name for file in (tmp_path / "clean").iterdir()] == [written.name]

    content, cleaned = json.loads(before), json.loads(written.read_text())
    gone = {name for name, (_, annotation, _) in FAULTS.items() if annotation is None}
    bad = {annotation for _, annotation, _ in FAULTS.values() if annotation is not None}
    images = [image for image in content["images"] if image["file_name"] not in gone]
    ids = {image["id"] for image in images}
    bad -= {12}  # a new number: annotation 12 of the file has a box without area
    first_25 = next(a for a in content["annotations"] if a["id"] == 25)
    annotations = [
        a | {"id": 12} if a["id"] == 25 and a is not first_25 else a
        for a in content["annotations"]
        if a["image_id"] in ids and a["id"] not in bad | {FAULTS["bbox_zero_width.jpg"][1]}
    ]
    assert cleaned == content | {
        "images": images,
        "annotations": annotations,
    }  # every other key, id and digit
    assert len(images) == 17
    assert len(annotations) == 24

    check(*corrupt(test_data, written), code=0)
    assert capsys.readouterr().out.endswith("\nNo faults in the data.\n")


@pytest.mark.long
@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_alone_is_found_and_goes(name: str, test_data: Path, tmp_path: Path):
    """An image with one fault and the sound one: nothing else is told, nothing else goes."""
    content = json.loads((test_data / "corrupt/annotations/instances_corrupt.json").read_text())
    kind, annotation, _ = FAULTS[name]
    renumbered = name == RENUMBERED
    chosen = [i for i in content["images"] if i["file_name"] in ("valid.jpg", name)]
    ids = {image["id"] for image in chosen} | ({999999} if annotation == 28 else set())
    content = content | {
        "images": chosen,
        "annotations": [a for a in content["annotations"] if a["image_id"] in ids],
    }
    (tmp_path / "one.json").write_text(json.dumps(content))
    options = (f"out={tmp_path}/faults.json", f"cleaned={tmp_path}/clean")
    check(*corrupt(test_data, tmp_path / "one.json"), *options, code=1)
    (fault,) = json.loads((tmp_path / "faults.json").read_text())["faults"]
    assert (fault["kind"], fault["image"]) == (kind, name)
    assert fault["annotation"] == (3 if renumbered else annotation)  # the first number that is free
    cleaned = json.loads((tmp_path / "clean" / "one.json").read_text())
    lost = 2 if annotation is None else 1 - renumbered
    assert len(cleaned["annotations"]) == len(content["annotations"]) - lost
    assert len(cleaned["images"]) == len(chosen) - (annotation is None)
    check(*corrupt(test_data, tmp_path / "clean" / "one.json"), code=0)


@pytest.mark.long
def test_the_cleaned_json_trains(test_data: Path, tmp_path: Path, run_dir: Path):
    check(*corrupt(test_data), f"cleaned={tmp_path}", code=1)
    train = corrupt(test_data, tmp_path / "instances_corrupt.json")
    val = [option.replace("data.train.", "data.val.") for option in train[1:]]
    schedule = ("trainer.epochs=1", "data.on_bad=error", "trainer.log_every_n_steps=1")
    run_command("train", *train, *val, *MODEL, *schedule, f"run_dir={run_dir}")
    assert json.loads((run_dir / "result.json").read_text())["status"] == "finished"


def test_a_sound_set_is_exit_code_0(shapes: Path, capsys: pytest.CaptureFixture):
    check(*coco_data(shapes), code=0)
    printed = capsys.readouterr().out
    assert printed.startswith("train: 8 images decoded, ")
    assert "\nval: 3 images decoded, " in printed
    assert "3 file names are in both train and val" in printed  # 000000.png, of other content
    assert printed.endswith("\nNo faults in the data.\n")


@pytest.fixture
def leaky(shapes: Path, tmp_path: Path) -> Path:
    """The first validation image is a training image too, under another name."""
    root = tmp_path / "leaky"
    shutil.copytree(shapes, root)
    shutil.copy(root / "val" / "000000.png", root / "train" / "other.png")
    content = ground_truth(root, "train")
    content["images"].append(content["images"][0] | {"id": 77, "file_name": "other.png"})
    save_ground_truth(root, content, "train")
    return root


def test_a_training_image_that_is_in_val_too(
    leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    check(*coco_data(leaky), f"cleaned={tmp_path}/clean", code=1)
    printed = capsys.readouterr().out
    assert (
        "\n  1 x training image in val too\n    other.png: same content as val's 000000.png"
        in f"\n{printed}"
    )
    files = [tmp_path / "clean" / f"instances_{part}.json" for part in ("train", "val")]
    assert json.loads(files[1].read_text()) == ground_truth(leaky, "val")
    assert 77 not in [image["id"] for image in json.loads(files[0].read_text())["images"]]
    options = [option for option in coco_data(leaky) if ".annotations=" not in option]
    options += [f"data.train.annotations={files[0]}", f"data.val.annotations={files[1]}"]
    check(*options, code=0)


def test_at_most_20_of_a_kind_are_shown(leaky: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    content = ground_truth(leaky, "val")
    one = content["annotations"][0]
    content["annotations"] += [one | {"id": 10**6 + n} for n in range(23)]
    save_ground_truth(leaky, content, "val")
    check(
        *coco_data(leaky)[:2], *coco_data(leaky)[4:], f"out={tmp_path}/a.json", code=1
    )  # val alone
    printed = capsys.readouterr().out
    assert "  23 x same annotation twice\n" in printed
    assert printed.count("same class, box and mask as annotation") == 20
    assert "    and 3 more: out=FILE lists them all\n" in printed
    assert "train" not in printed
    assert len(json.loads((tmp_path / "a.json").read_text())["faults"]) == 23


def test_fewer_images_than_the_json_has(leaky: Path, capsys: pytest.CaptureFixture):
    """The faults of images that would not be used are none; all images is what any larger number
    means.
    """
    (leaky / "val" / "000001.png").write_bytes(b"")
    options = [*coco_data(leaky)[:2], *coco_data(leaky)[4:], "data.subset=first"]
    check(*options, "data.val_images=1", code=0)
    check(*options, "data.val_images=3", code=1)
    assert "1 x empty file" in capsys.readouterr().out


@pytest.mark.process
def test_the_exit_code_of_the_program(test_data: Path, tmp_path: Path):
    done = run_script("data", "check", *corrupt(test_data), cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.endswith("14 faults\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["cleaned={folder}/annotations"],
            "annotations/instances_corrupt.json: give another",
        ),
        (["data.train.annotations=none.json"], "there is no annotation file none.json"),
        (["data.train.images=null"], "data.train.images is missing"),
        (["data.train.images=nowhere"], "neither the image folder nowhere"),
        (
            ["data.train.images=null", "data.train.annotations=null"],
            "the data have neither train nor val",
        ),
    ],
)
def test_a_mistake_is_told(
    arguments: list[str], message: str, test_data: Path, capsys: pytest.CaptureFixture
):
    given = [text.format(folder=test_data / "corrupt") for text in arguments]
    names = {text.split("=")[0] for text in given}
    kept = [option for option in corrupt(test_data) if option.split("=")[0] not in names]
    check(*kept, *given, code=2)
    assert message in capsys.readouterr().err


def test_a_file_that_is_written_is_whole_or_not_there(
    test_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", fails)
    check(*corrupt(test_data), f"cleaned={tmp_path}/clean", code=130)
    assert list((tmp_path / "clean").iterdir()) == []


def test_a_set_of_crowd_regions_is_not_clean(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    root = tmp_path / "crowd"
    shutil.copytree(shapes, root)
    content = ground_truth(root, "train")
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    save_ground_truth(root, content, "train")
    check(*coco_data(root), f"out={tmp_path}/faults.json", code=1)
    printed = capsys.readouterr().out
    total = len(content["annotations"])
    assert (
        f"note: train: no object to learn from: all {total} annotations are crowd regions"
        in printed
    )
    listed = json.loads((tmp_path / "faults.json").read_text())["faults"]
    assert [fault["kind"] for fault in listed] == ["nothing to learn"]


def test_objects_that_are_too_small_are_noted_and_no_fault(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    root = tmp_path / "small"
    shutil.copytree(shapes, root)
    content = ground_truth(root, "train")
    content["annotations"][0]["bbox"][2:] = [0.2, 0.2]
    content["annotations"][0]["segmentation"] = [[30, 30, 30.2, 30, 30.2, 30.2, 30, 30.2]]
    content["annotations"][0]["bbox"][:2] = [30, 30]
    content["annotations"][0]["area"] = 0.04
    save_ground_truth(root, content, "train")
    check(*coco_data(root), "data.image_size=64", code=0)
    printed = capsys.readouterr().out
    assert "note: train: 1 x too small to be learned (annotation " in printed
    assert printed.endswith("0 faults, but 1 object cannot be learned: see the notes\n")


def test_chosen_classes_are_looked_at_and_written(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    names = sorted(category["name"] for category in ground_truth(shapes)["categories"])
    merged = f"data.classes=[{{{names[0]}:thing,{names[1]}:thing}}]"
    run_command("data", "check", *coco_data(shapes), merged, f"cleaned={tmp_path}")
    said = capsys.readouterr().out
    assert f"val: data.classes: {names[0]}, {names[1]} -> thing" in said
    cleaned = json.loads((tmp_path / "instances_val.json").read_text())
    assert [category["name"] for category in cleaned["categories"]] == ["thing"]
    used = {entry["category_id"] for entry in cleaned["annotations"]}
    assert used == {cleaned["categories"][0]["id"]}
    run_command("data", "check", *coco_data(shapes), f"data.classes=[{names[0]},nothing]", code=2)
    assert "data.classes has nothing" in capsys.readouterr().err


def test_train_says_how_to_divide_one_json_and_chosen_ids_divide_it_too(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    train = [option for option in coco_data(shapes) if option.startswith("data.train.")]
    run_command("train", "data=coco_json", f"data.root={shapes}", *train, code=2)
    advice = "data.annotations=FILE data.images=DIR data.val_share=0.2"
    assert advice in capsys.readouterr().err
    ids = [image["id"] for image in ground_truth(shapes, "train")["images"]]
    for name, some in (("val", ids[:1]), ("train", ids[1:])):
        chosen = f"data.image_ids=[{','.join(map(str, some))}]"
        options = ("data=coco_json", f"data.root={shapes}", *train, chosen)
        run_command("data", "check", *options, f"cleaned={tmp_path / name}")
        (file,) = (tmp_path / name).iterdir()
        assert [image["id"] for image in json.loads(file.read_text())["images"]] == some


@pytest.mark.long
def test_faults_of_a_class_that_is_left_out_are_none_of_the_data(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture
):
    root = tmp_path / "data"
    shutil.copytree(shapes, root)
    content = ground_truth(root, "train")
    faulty = content["annotations"][0]
    faulty["segmentation"] = 7
    save_ground_truth(root, content, "train")
    names = {category["id"]: category["name"] for category in content["categories"]}
    name = names[faulty["category_id"]]
    check(*coco_data(root), code=1)
    assert "1 x broken segmentation" in capsys.readouterr().out
    check(*coco_data(root), f"data.classes={{{name}:null}}", code=0)
    printed = capsys.readouterr().out
    assert "broken segmentation" not in printed
    assert "and 1 faulty annotation of theirs" in printed
    for command in (["data", "stats"], ["data", "show", "count=1", f"out={tmp_path}/a.png"]):
        run_command(*command, *coco_data(root), code=2)
        assert "1 x broken segmentation" in capsys.readouterr().err
        run_command(*command, *coco_data(root), f"data.classes={{{name}:null}}")
