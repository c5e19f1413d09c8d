"""The service: the answers are those of the Python interface, whatever batch a picture is in."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from served import CATEGORIES, png, predictor

from maskrcnn_lit.predictor import Predictor
from maskrcnn_lit.serve.pictures import Refused
from maskrcnn_lit.serve.service import Limits, Service, Task, coco_json


@pytest.fixture(scope="module")
def model() -> Predictor:
    return predictor()


@pytest.fixture(scope="module")
def boxes_alone() -> Predictor:
    return predictor(masks=False)


@pytest.fixture
def service(model: Predictor, boxes_alone: Predictor) -> Iterator[Service]:
    made = Service({"masks": model, "boxes": boxes_alone}, Limits(batch_size=4, max_pixels=20_000))
    yield made
    made.close()


def ask(service: Service, *wanted: tuple[str, float | None, bytes]) -> list[Any]:
    """The answers, or errors, to requests that come at once."""

    async def all_at_once() -> list[Any]:
        tasks = [
            service.predict(model, threshold, Task(data, "a.png", n))
            for n, (model, threshold, data) in enumerate(wanted)
        ]
        return await asyncio.gather(*tasks, return_exceptions=True)

    answers = asyncio.run(all_at_once())
    return [json.loads(answer) if isinstance(answer, bytes) else answer for answer in answers]


def test_each_picture_gets_what_predict_detects(service: Service, model: Predictor):
    sizes = [(64, 96), (64, 96), (50, 70), (64, 96), (90, 40)]
    pictures = [png(size, seed) for seed, size in enumerate(sizes)]
    answers = ask(service, *(("masks", None, picture) for picture in pictures))
    for n, (picture, answer) in enumerate(zip(pictures, answers, strict=True)):
        (expected,) = model.predict(picture)
        assert len(answer["annotations"]) == len(expected) > 5
        for own, other in zip(answer["annotations"], expected.to_coco(n), strict=True):
            assert own["category_id"] == other["category_id"]
            assert own["score"] == pytest.approx(other["score"], abs=1e-5)
            np.testing.assert_allclose(own["bbox"], other["bbox"], atol=0.01)
        assert answer["images"] == [
            {"id": n, "file_name": "a.png", "height": sizes[n][0], "width": sizes[n][1]}
        ]


def test_the_threshold_is_of_each_request(service: Service):
    (low,) = ask(service, ("masks", 0.1, png()))
    scores = [annotation["score"] for annotation in low["annotations"]]
    middle = scores[len(scores) // 2]
    low, high = ask(service, ("masks", 0.1, png()), ("masks", middle - 1e-6, png()))
    assert [annotation["score"] for annotation in low["annotations"]] == scores
    assert [annotation["score"] for annotation in high["annotations"]] == [
        score for score in scores if score >= middle
    ]


def test_a_damaged_picture_leaves_the_others_of_its_batch(service: Service):
    answers = ask(service, *(("masks", None, data) for data in (png(), b"no", png((300, 300)))))
    assert answers[0]["annotations"]
    assert [(type(one), one.status) for one in answers[1:]] == [(Refused, 415), (Refused, 413)]


def test_a_batch_without_a_picture_is_answered(service: Service):
    (answer,) = ask(service, ("masks", None, b"no"))
    assert answer.status == 415


def test_models_are_chosen_by_name(service: Service):
    masks, boxes = ask(service, ("masks", None, png()), ("boxes", None, png()))
    assert masks["info"] == {"model": "masks"}
    assert "segmentation" in masks["annotations"][0]
    assert boxes["info"] == {"model": "boxes"}
    assert "segmentation" not in boxes["annotations"][0]


def test_the_slots_have_a_bound(service: Service):
    held = [service.slot() for _ in range(service.limits.queue)]
    for one in held:
        one.__enter__()
    with pytest.raises(Refused, match="send this one again later") as refused, service.slot():
        pass
    assert refused.value.status == 503
    assert refused.value.headers == {"Retry-After": "1"}
    held[0].__exit__(None, None, None)
    with service.slot():
        pass


def test_who_waits_too_long_gets_a_sentence(model: Predictor):
    service = Service({"masks": model}, Limits(seconds=0.001))
    try:
        (answer,) = ask(service, ("masks", None, png()))
    finally:
        service.close()
    assert answer.status == 504
    assert "waited 0.001 seconds" in str(answer)


def test_the_numbers_of_batches_are_counted(service: Service):
    ask(service, ("masks", None, png()), ("masks", None, b"no"))
    registry = service.metrics.registry
    assert registry.get_sample_value("maskrcnn_batch_images_sum") == 2
    assert registry.get_sample_value("maskrcnn_waiting") == 0


@pytest.mark.parametrize("name", ["masks", "boxes"])
def test_the_json_is_one_of_coco(name: str, service: Service):
    (found,) = service.models[name].predict(png())
    content = coco_json(found, Task(b"", "b.png", 5), {"model": name})
    assert [entry["id"] for entry in content["annotations"]] == list(range(1, len(found) + 1))
    assert {entry["image_id"] for entry in content["annotations"]} == {5}
    assert content["categories"] == [{"id": c.id, "name": c.name} for c in CATEGORIES]
    first = content["annotations"][0]
    if name == "masks":
        assert first["area"] == coco_mask.area(found.masks[0])
    else:
        assert first["area"] == pytest.approx(first["bbox"][2] * first["bbox"][3], rel=1e-4)
    json.dumps(content)
