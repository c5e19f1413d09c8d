"""The detections of every kind, from one forward pass."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from exported import lively
from models import make_batch

from maskrcnn_lit.callbacks.suppression_choices import SuppressionChoices, every_choice
from maskrcnn_lit.data.coco.categories import Category
from maskrcnn_lit.evaluation.coco.scores import to_coco_results
from maskrcnn_lit.model.mask_rcnn import Output
from maskrcnn_lit.model.postprocess import to_original
from maskrcnn_lit.model.suppression import KINDS, Suppression

CATEGORIES = tuple(Category(n, name) for n, name in enumerate(("a", "b", "c"), 1))
NOTHING: Any = SimpleNamespace()


def test_classes_decide_whether_they_may_be_joined():
    assert every_choice(1) == [Suppression(kind) for kind in KINDS]
    assert len(set(every_choice(2))) == 10
    assert every_choice(80) == every_choice(2)


@pytest.mark.long
def test_each_choice_gives_what_the_model_gives_with_it():
    model, batch = lively(), make_batch()
    model.choices = tuple(every_choice(3))
    callback = SuppressionChoices()
    callback.on_validation_epoch_start(NOTHING, NOTHING)
    with torch.no_grad():
        output = model(batch)
    callback.on_validation_batch_end(NOTHING, NOTHING, output, batch, 0)
    found = dict(callback.results(CATEGORIES))
    assert len(found) == 20
    assert model.suppression == Suppression()
    model.choices = ()
    for choice in (
        Suppression(),
        Suppression("mask", True),
        Suppression("soft", exclusive=True),
        Suppression("matrix"),
    ):
        model.set_suppression(choice)
        with torch.no_grad():
            alone = to_original(model(batch).detections or {}, batch)
        assert found[choice] == to_coco_results(alone, CATEGORIES)
        if choice == Suppression():
            assert found[choice] == to_coco_results(
                to_original(output.detections, batch), CATEGORIES
            )


def test_a_model_of_one_kind_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="set its `choices`"):
        SuppressionChoices().on_validation_batch_end(
            NOTHING, NOTHING, Output({}, {}, {}, None), make_batch(), 0
        )
