import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import Score, TinyData, tiny_module, tiny_trainer
from torch.autograd import DeviceType

from maskrcnn_lit.training.profile import PARTS, stage_table, stage_times


@pytest.mark.parametrize(("steps", "profiled"), [(12, 4), (5, 3), (2, None)])
def test_a_trace_of_some_steps(
    tmp_path: Path, steps: int, profiled: int | None, caplog: pytest.LogCaptureFixture
):
    """Of four steps after the first three; a run that ends earlier has fewer, and its end, or
    none.
    """
    caplog.set_level("INFO")
    trainer = tiny_trainer(tmp_path, [Score()], steps=steps, profile=4)
    trainer.fit(tiny_module(), datamodule=TinyData())
    trace = tmp_path / "profile" / "trace.json"
    if profiled is None:
        assert not trace.exists()
        assert "trainer.profile=4 has recorded nothing" in caplog.text
        return
    events = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert len([name for name in events if name.startswith("ProfilerStep#")]) == profiled
    assert {"waiting for a batch", "forward", "backward", "optimizer"} <= set(events)
    assert "Self CPU" in (trace.with_name("operators.txt")).read_text()
    stages = trace.with_name("stages.txt").read_text()
    assert stages.startswith(f"{min(4, steps - 3)} batches of this run:")
    assert stages.strip() in caplog.text
    names = [line.split("  ")[1] for line in stages.splitlines()[1:]]
    assert names == ["milliseconds per batch", *PARTS, "all"]


def event(name: str, host: float, gpu: float, kind: DeviceType = DeviceType.CPU) -> Any:
    return SimpleNamespace(name=name, cpu_time_total=host, device_time_total=gpu, device_type=kind)


def test_the_table_of_the_stages():
    """Of three batches, and the beginning of a fourth."""
    events = [event(PARTS[0], 500, 0) for _ in range(4)]
    events += [event("forward", 1000 * n, 0) for n in (1, 2, 3)]
    for name in ("backward", "optimizer"):
        events += [event(name, 4000, 9000) for _ in range(3)]
        events += [event(name, 0, 9000, DeviceType.CUDA), event("aten::add", 5, 5)]
    times = stage_times(events)
    assert times["forward"] == [(1, 0), (2, 0), (3, 0)]
    assert times["backward"] == [(4, 9)] * 3
    assert times["all"] == [(9.5, 18), (10.5, 18), (11.5, 18)]
    assert stage_table(times, on_gpu=False) == [
        "3 batches of this run:",
        "  milliseconds per batch  5 %  median  95 %",
        "  waiting for a batch     0.5     0.5   0.5",
        "  forward                 1.1     2.0   2.9",
        "  backward                4.0     4.0   4.0",
        "  optimizer               4.0     4.0   4.0",
        "  all                     9.6    10.5  11.4",
    ]
    assert stage_table(times, on_gpu=True)[-1].split() == ["all", "9.6", "10.5", "11.4", "18.0"]
