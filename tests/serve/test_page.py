"""The page of the server: what is in it, and that it loads nothing from elsewhere. A browser shows
it in tests/test_serve_page.py.
"""

import json
import re
from dataclasses import replace

from report_sample import Page
from served import predictor

from maskrcnn_lit.data.coco.index import Category
from maskrcnn_lit.serve.page import LOWEST, serve_page

HARMFUL = "</script><b>class & 'co'"


def page_of(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_the_page_has_the_models_and_thresholds():
    model = predictor(threshold=0.3)
    data = page_of(serve_page({"a": model, "b": model}, []))
    assert data["models"] == [{"name": "a"}, {"name": "b"}]
    assert (data["lowest"], data["threshold"]) == (LOWEST, 0.3)
    assert len(set(data["colors"])) == len(data["colors"]) > 5


def test_names_cannot_end_the_script():
    model = replace(predictor(), categories=(Category(1, HARMFUL),) * 3)
    text = serve_page({HARMFUL: model}, [(HARMFUL, HARMFUL)])
    assert page_of(text)["models"] == [{"name": HARMFUL}]
    assert HARMFUL not in text


def test_nothing_is_loaded_from_elsewhere():
    text = serve_page({"a": predictor()}, [("a", "outputs/run")])
    assert [value for value in Page(text).loads if value != "data:,"] == []
    assert "http" not in re.sub(r"<code>.*?</code>", "", text)
    assert "outputs/run" in text
