import json
from pathlib import Path

import pytest
from tiny_run import Score, TinyData, tiny_module, tiny_trainer


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
        assert not trace.exists() and "trainer.profile=4 has recorded nothing" in caplog.text
        return
    events = [event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]]
    assert len([name for name in events if name.startswith("ProfilerStep#")]) == profiled
    assert {"waiting for a batch", "forward", "backward", "optimizer"} <= set(events)
    assert "Self CPU" in (trace.with_name("operators.txt")).read_text()
