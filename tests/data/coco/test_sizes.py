from pycocotools.cocoeval import Params

from maskrcnn_lit.data.coco.sizes import AREAS, LIMITS, SIZES


def test_the_areas_are_pycocotools():
    theirs = dict(zip(Params().areaRngLbl, Params().areaRng, strict=True))
    del theirs["all"]
    assert {name: list(area) for name, area in AREAS.items()} == theirs


def test_the_limits_lie_between_the_sizes():
    assert LIMITS == (32, 96)
    assert [low for low, _ in SIZES.values()][1:] == [high for _, high in SIZES.values()][:-1]
