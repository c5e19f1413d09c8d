"""The page of `serve` and `show`."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from maskrcnn_lit.export.runtime import ExportedModel
from maskrcnn_lit.predictor import Predictor
from maskrcnn_lit.report.draw import PALETTE
from maskrcnn_lit.report.elements import render_page

LOWEST = 0.05  # score of a detection on the page; its slider begins here

NAMED = 8  # classes in the line below the title


def serve_page(
    models: Mapping[str, Predictor],
    facts: Sequence[tuple[str, str]],
    run: Mapping[str, Any] | None = None,
) -> str:
    """The page as HTML.

    Args:
        models: by name, as the server has them.
        facts: name, value; at the end of the page.
        run: what the page knows of the images of a run, as JSON; None: it shows none.
    """
    names = list(
        dict.fromkeys(category.name for model in models.values() for category in model.categories)
    )
    more = f" and {len(names) - NAMED} more classes" if len(names) > NAMED else ""
    first = next(iter(models.values()))
    data = {
        "models": [{"name": name} for name in models],
        "colors": [f"rgb({r}, {g}, {b})" for r, g, b in PALETTE],
        "lowest": max(lowest_score(model) for model in models.values()),
        "threshold": float(first.score_thresholds.min()),
        **({} if run is None else {"run": run}),
    }
    return render_page(
        "serve.html",
        title="Mask R-CNN" if run is None else "A run, image by image",
        lead=f"It finds {', '.join(names[:NAMED])}{more}.",
        data=json.dumps(data).replace("<", "\\u003c"),  # no class name ends the script
        facts=list(facts),
        run=run is not None,
    )


def lowest_score(model: Predictor) -> float:
    """The lowest score that the page asks of a model."""
    if isinstance(model.model, ExportedModel):
        return max(LOWEST, model.model.metadata.score_threshold)
    return LOWEST
