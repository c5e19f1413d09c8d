import re
from typing import Any

from maskrcnn_lit.report.certificate import certificate_page, certificate_table

PARITY = {"images": 16, "detections": 300, "unmatched": 0}
RECORD: dict[str, Any] = {
    "run": "a<b>",
    "checkpoint": "best",
    "format": "onnx",
    "precision": "int8",
    "config_sha256": "0" * 64,
    "overrides": ["run=a<b>"],
    "files": [{"name": "model_64x96.onnx", "bytes": 3 * 2**20, "sha256": "1"}],
    "images": 100,
    "bounds": [{"name": "val/mask_ap", "value": -0.007, "bound": 0.005, "holds": False}],
    "holds": False,
    "parity": {"real": PARITY | {"boxes": 0.5, "scores": 0.02, "masks": 0.1}},
    "ap": {
        "original": {"val/mask_ap": 0.3, "val/box_ap": 0.4},
        "exported": {"val/mask_ap": 0.293, "val/box_ap": 0.4},
        "intervals": {"val/mask_ap": [0.25, 0.33], "val/box_ap": None},
        "differences": {"val/mask_ap": {"value": -0.007, "interval": [-0.01, -0.004]}},
    },
    "latency_milliseconds": {
        name: {stage: [1.0, 2.0] for stage in ("resize", "model", "masks", "all")}
        for name in ("exported", "pytorch")
    },
    "peak_bytes": 200 * 2**20,
    "float_layers": ["fpn.lateral.1"],
    "tries": [
        {"float_layers": 0, "ap_difference": -0.02},
        {"float_layers": 1, "ap_difference": -0.007},
    ],
    "threads": 2,
    "processor": "a processor (2 threads)",
    "versions": {"torch": "2.14"},
    "commit": None,
}


def test_the_lines_say_what_is_broken_and_by_how_much():
    text = "\n".join(certificate_table(RECORD))
    assert "The certificate BROKEN: onnx, int8" in text
    (line,) = [row for row in text.splitlines() if "val/mask_ap" in row]
    assert line.split() == ["val/mask_ap", "-0.0070", ">=", "-0.0050", "NO"]
    assert "fpn.lateral.1" in text
    assert "200.0 MB" in text
    assert "1.0 / 2.0" in text
    assert "layers" not in "\n".join(certificate_table(RECORD | {"tries": []}))


def test_a_library_has_rows_of_its_own():
    own = {"parity": {"real": PARITY | {"boxes": 0.25, "scores": 0.03, "masks": 0.2}}}
    own["ap"] = RECORD["ap"] | {"differences": {"val/mask_ap": {"value": -1, "interval": [-1, 0]}}}
    page = certificate_page(RECORD | {"library": own})
    rows = [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in page.split("<tr>")]
    assert any(row.startswith("library, real 16 300 0 0.25 0.03 0.2") for row in rows)
    assert any(row.startswith("library, mask AP 0.3000 0.2930 -1.0000") for row in rows)
    assert "library" not in certificate_page(RECORD | {"library": None})


def test_a_float_export_may_not_score_better_either():
    bounds = [
        {"name": "parity, real", "value": "equal", "bound": "equal", "holds": True},
        {"name": "val/mask_ap", "value": 0.0001, "bound": 0.0005, "holds": True},
    ]
    text = certificate_table(RECORD | {"precision": "f32", "bounds": bounds})
    rows = [" ".join(line.split()) for line in text]
    assert "val/mask_ap +0.0001 within 0.0005 yes" in rows
    assert "parity, real equal equal yes" in rows


def test_the_page_begins_with_the_verdict():
    verdict = "<dt>all bounds hold</dt><dd>"
    page = certificate_page(RECORD)
    assert f'{verdict}NO</dd><dd class="note">val/mask_ap</dd>' in page
    assert f"{verdict}yes</dd></div>" in certificate_page(RECORD | {"holds": True, "bounds": []})


def test_the_page_shows_the_same_and_escapes_names():
    page = certificate_page(RECORD)
    assert "Export of a&lt;b&gt;" in page
    assert "a<b>" not in page
    for text in ("-0.0070", "-0.0100 to -0.0040", "fpn.lateral.1", "model_64x96.onnx", "3.0 MB"):
        assert text in page
    assert 'src="http' not in page


def test_the_page_of_a_model_without_masks_speaks_of_boxes():
    boxes = {"val/box_ap": 0.4}
    ap = {"original": boxes, "exported": boxes, "intervals": {"val/box_ap": None}}
    ap["differences"] = {"val/box_ap": {"value": -0.001, "interval": [-0.01, 0.0]}}
    page = certificate_page(RECORD | {"ap": ap})
    assert "mask AP" not in page
    assert "box AP, exported" in page
    assert "box AP difference" in page
    rows = [" ".join(re.sub("<[^>]*>", " ", row).split()) for row in page.split("<tr>")]
    assert any(row.startswith("real 16 300 0 0.5 0.02 -") for row in rows)
