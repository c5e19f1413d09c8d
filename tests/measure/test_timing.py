"""The clock of `bench` and `benchmarks/`."""

import torch
from models import make_batch, make_model

from maskrcnn_lit.measure.timing import (
    StageTimer,
    autocast,
    time_calls,
    time_inference,
    time_loading,
    time_training,
)

CPU = torch.device("cpu")


def test_laps_follow_one_another() -> None:
    laps = StageTimer(CPU)
    for _ in range(2):
        laps.start()
        laps.lap("first")
        laps.lap("second")
    assert list(laps.rows) == ["first", "second"]
    assert all(len(row) == 2 for row in laps.rows.values())
    assert all(0 <= seconds < 1 for row in laps.rows.values() for seconds in row)


def test_batches_are_kept_and_those_of_the_warm_up_not_counted() -> None:
    batches = [make_batch(1) for _ in range(4)]
    rows, kept = time_loading(iter(batches), warmup=1, steps=2)
    assert [len(row) for row in rows.values()] == [2]
    assert len(kept) == 3
    assert kept[0] is batches[0]


def test_a_step_has_three_stages() -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    seen: list[int] = []

    def losses(number: int) -> dict[str, torch.Tensor]:
        seen.append(number)
        return {"a": weight.sum(), "b": weight.square().sum()}

    rows = time_training(losses, optimizer, precision="32-true", device=CPU, warmup=1, steps=2)
    assert seen == [0, 1, 2]
    assert weight.max() < 1
    assert {name: len(row) for name, row in rows.items()} == {
        "forward": 2,
        "backward": 2,
        "optimizer": 2,
    }


def test_an_inference_has_a_stage_for_each_part() -> None:
    torch.manual_seed(0)
    model = make_model().eval()
    rows, found = time_inference(
        model, [make_batch()], precision="32-true", device=CPU, warmup=0, steps=2
    )
    assert next(iter(rows)) == "normalisation"
    assert list(rows)[-1] == "masks to RLE"
    assert {"backbone", "fpn", "rpn", "box_head", "mask_head"} < set(rows)
    assert {len(row) for row in rows.values()} == {2}
    assert found > 0
    assert not model.backbone._forward_hooks


def test_other_models_are_timed_as_a_whole() -> None:
    assert {
        name: len(row) for name, row in time_calls(abs, device=CPU, warmup=1, steps=3).items()
    } == {"whole": 3}


def test_precision_is_that_of_lightning() -> None:
    product = {}
    for precision in ("32-true", "bf16-mixed"):
        with autocast(precision, CPU):
            product[precision] = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product["32-true"].dtype == torch.float32
    assert product["bf16-mixed"].dtype == torch.bfloat16
