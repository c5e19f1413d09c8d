import re
from typing import Any

import yaml

from maskrcnn_lit.report.model_card import model_card

FACTS: dict[str, Any] = {
    "categories": [[1, "cell: big"], [2, "cell"]],
    "checkpoint": "best",
    "weights": "as trained",
    "model": {
        "backbone": "resnet50",
        "image_size": 640,
        "parameters": 44_400_000,
        "flops": None,
        "masks": True,
    },
    "metrics": {"val/mask_ap": 0.41234, "val/mask_ap50": 0.6, "val/box_ap": 0.5, "val/loss": 2.0},
    "intervals": {"val/mask_ap": [0.3, 0.5], "val/box_ap": None},
    "data": {"name": "cells", "val": {"images": 7, "ids_sha256": "a" * 64}},
    "command": ["maskrcnn-lit", "train", "data.root=DIR"],
    "config_sha256": "b" * 64,
    "versions": {"torch": "2"},
    "commit": None,
}


def card(**more: Any) -> str:
    options = {"name": "lab/cells", "license": "mit", "plot": "scores.png", "picture": None}
    return model_card(FACTS, **{**options, **more})


def header(text: str) -> dict[str, Any]:
    return yaml.safe_load(re.split(r"^---$", text, flags=re.MULTILINE)[1])


def test_the_header_of_the_hub():
    facts = header(card())
    assert facts["license"] == "mit"
    assert facts["library_name"] == "maskrcnn_lit"
    (result,) = facts["model-index"][0]["results"]
    assert facts["model-index"][0]["name"] == "cells"
    assert result["dataset"]["name"] == "cells"
    assert {row["type"]: row["value"] for row in result["metrics"]} == {
        "mask_ap": 0.4123,
        "mask_ap50": 0.6,
        "box_ap": 0.5,
    }


def test_scores_classes_and_how_to_load_it():
    text = card()
    assert "| mask | 0.412 (0.300 to 0.500) | 0.600 |" in text
    assert "| box | 0.500 | - |" in text
    assert "COCO AP on 7 validation images" in text
    assert 'load_model("hf:lab/cells")' in text
    assert "cell: big, cell" in text
    assert "maskrcnn-lit train data.root=DIR" in text
    assert "44.4 million parameters" in text
    assert "License of the weights: mit" in text
    assert "predictions" not in text


def test_a_folder_without_a_license():
    text = card(name="run", license=None, picture="predictions.png")
    assert "license" not in header(text)
    assert "none is given" in text
    assert 'load_model("DIR")' in text
    assert "](predictions.png)" in text


def test_a_card_of_boxes_alone_says_nothing_of_masks():
    boxes = {"model": FACTS["model"] | {"masks": False}, "metrics": {"val/box_ap": 0.5}}
    text = model_card(
        FACTS | boxes, name="lab/cells", license=None, plot="scores.png", picture=None
    )
    facts = header(text)
    assert facts["pipeline_tag"] == "object-detection"
    assert facts["tags"] == ["faster-rcnn", "object-detection"]
    (result,) = facts["model-index"][0]["results"]
    assert result["task"] == {"type": "object-detection", "name": "object detection"}
    assert "A Faster R-CNN, which detects boxes alone, of maskrcnn_lit" in text
    assert "![AP of boxes](scores.png)" in text
    assert "mask" not in text.lower().replace("maskrcnn", "")
    assert "A Mask R-CNN of" in card()
    assert header(card())["pipeline_tag"] == "image-segmentation"
