"""The addresses by which the page looks into a run."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from box_scenes import scene
from PIL import Image
from served import predictor
from starlette.testclient import TestClient

from maskrcnn_lit.evaluation.analysis.image_errors import image_errors
from maskrcnn_lit.evaluation.analysis.pairs import image_pairs
from maskrcnn_lit.serve.app import build_app
from maskrcnn_lit.serve.service import Limits, Service
from maskrcnn_lit.serve.show import image_rows, kinds_of, run_facts, show_routes
from maskrcnn_lit.serve.validation import Validation

pytest_plugins = ("tiny_commands",)

ANT, SECOND, BEE = (0, 0, 20, 20), (24, 0, 20, 20), (60, 60, 20, 20)


@pytest.fixture(scope="module")
def validation(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Validation:
    run = tmp_path_factory.mktemp("shown") / "run"
    shutil.copytree(trained, run, ignore=shutil.ignore_patterns("last.ckpt", "events*"))
    return Validation(run, "best", [], "cpu")


@pytest.fixture(scope="module")
def client(validation: Validation) -> Iterator[TestClient]:
    service = Service({"run": predictor()}, Limits())
    app = build_app(service, page="", hosts=None, more=show_routes(validation))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as made:
        yield made
    service.close()


def test_kinds_and_rows_of_an_image():
    objects = [(1, "ant", ANT), (1, "ant", SECOND), (1, "bee", BEE)]
    detections = [
        (1, "ant", (0, 0, 44, 20), 0.9),
        (1, "ant", BEE, 0.8),
        (1, "ant", (0, 30, 32, 32), 0.7),
        (1, "ant", (40, 24, 9, 9), 0.2),
    ]
    truth, results = scene(objects, detections)
    (pairs,) = image_pairs(truth, results)
    errors = image_errors(pairs, np.full(3, 0.5))
    assert kinds_of(pairs, errors) == (
        [["missed"], ["missed"], []],
        [["false", "merged"], ["wrong class"], ["false"], []],
    )
    rows = image_rows(pairs, errors, 0.5)
    assert [row["score"] for row in rows] == [None, None, None, 0.9, 0.8, 0.7]
    assert [row["size"] for row in rows] == [0, 0, 0, 0, 0, 1]
    assert [row["class"] for row in rows] == [0, 0, 1, 0, 0, 0]


@pytest.mark.long
def test_all_images_have_rows(client: TestClient, validation: Validation):
    answer = client.get("/run/images?threshold=0.1").json()
    assert answer["threshold"] == 0.1
    assert len(answer["images"]) == len(validation) == run_facts(validation)["images"]
    for i, image in enumerate(answer["images"]):
        losses = validation.losses[i]
        assert losses is not None
        assert image["loss"] == pytest.approx(sum(losses.values()))
        found = [row for row in image["rows"] if row["score"] is not None]
        assert len(found) == int((validation.pairs[i].scores >= 0.1).sum())
        assert len(image["rows"]) - len(found) == len(validation.pairs[i].objects)


@pytest.mark.long
def test_an_image_has_its_truth_and_prediction(client: TestClient, validation: Validation):
    answer = client.get("/run/images/1?threshold=0.1").json()
    assert answer["losses"] == pytest.approx(validation.losses[1])
    truth, prediction = answer["truth"]["annotations"], answer["prediction"]["annotations"]
    assert [one["id"] for one in truth] == [
        one["id"] for one in validation.annotations_of(1).values()
    ]
    scores = [one["score"] for one in prediction]
    assert scores == sorted(scores, reverse=True) == validation.pairs[1].scores.tolist()
    best = np.round(validation.pairs[1].iou.max(axis=1), 3).tolist()
    assert [one["iou"] for one in prediction] == best
    assert all(
        kind in run_facts(validation)["kinds"] for one in prediction for kind in one["kinds"]
    )


@pytest.mark.long
def test_the_picture_is_lossless(client: TestClient, validation: Validation):
    answer = client.get("/run/images/0/picture")
    assert answer.headers["content-type"] == "image/png"
    pixels = np.asarray(Image.open(io.BytesIO(answer.content)))
    np.testing.assert_array_equal(pixels, validation.index.decode(0)[0])


@pytest.mark.long
def test_the_inside_is_in_pixels_of_the_image(client: TestClient, validation: Validation):
    answer = client.get("/run/images/1/inside").json()
    height, width = validation.index.size(1)
    boxes = np.array([one["box"] for one in answer["proposals"]])
    assert 0 < len(boxes) <= min(100, answer["count"])
    assert (boxes >= -0.01).all()
    assert (boxes <= np.array([width, height] * 2) + 0.01).all()
    scores = [one["score"] for one in answer["proposals"]]
    assert scores == sorted(scores, reverse=True)
    numbers = {one["id"] for one in validation.annotations_of(1).values() if not one["iscrowd"]}
    assert {one["annotation"] for one in answer["anchors"]} == numbers  # each has its best anchor
    assert len(answer["levels"]) == len(validation.inside(1)[0].detections["scores"])


@pytest.mark.long
def test_a_mask_is_the_output_of_the_mask_head(client: TestClient, validation: Validation):
    masks = validation.inside(1)[0].masks
    assert masks is not None
    answer = client.get("/run/images/1/masks/0").json()["mask"]
    np.testing.assert_allclose(answer, masks[0].numpy(), rtol=0, atol=6e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/run/images/99", 404, "there is no image 99"),
        ("/run/images/99/picture", 404, "there is no image 99"),
        ("/run/images/1/masks/5000", 404, "has no detection 5000"),
        ("/run/images?threshold=2", 400, "threshold=2 must be a number from 0 to 1"),
        ("/run/images?threshold=nan", 400, "threshold=nan must be a number from 0 to 1"),
    ],
)
def test_other_requests_are_a_sentence(client: TestClient, path: str, status: int, words: str):
    answer = client.get(path)
    assert answer.status_code == status
    assert words in answer.json()["error"]
