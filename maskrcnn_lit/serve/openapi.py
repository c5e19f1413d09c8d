"""The description of the server's addresses, which /openapi.json shows (OpenAPI 3.1)."""

from collections.abc import Sequence
from typing import Any

from maskrcnn_lit import __version__
from maskrcnn_lit.serve.service import Limits

NUMBERS = {"type": "array", "items": {"type": "number"}}

SCHEMAS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string", "description": "One sentence"}},
    },
    "Category": {
        "type": "object",
        "required": ["id", "name"],
        "properties": {"id": {"type": "integer"}, "name": {"type": "string"}},
    },
    "Annotation": {
        "type": "object",
        "required": ["id", "image_id", "category_id", "bbox", "score", "area", "iscrowd"],
        "properties": {
            "id": {"type": "integer", "description": "From 1, the best score first"},
            "image_id": {"type": "integer"},
            "category_id": {"type": "integer"},
            "bbox": {
                **NUMBERS,
                "minItems": 4,
                "maxItems": 4,
                "description": "x, y, width, height in pixels",
            },
            "score": {"type": "number", "minimum": 0, "maximum": 1},
            "area": {"type": "number", "description": "Pixels of the mask, or of the box"},
            "iscrowd": {"const": 0},
            "segmentation": {
                "type": "object",
                "description": "The mask as compressed COCO RLE; missing for a model without masks",
                "required": ["size", "counts"],
                "properties": {
                    "size": {
                        "type": "array",
                        "items": {"type": "integer"},
                        "minItems": 2,
                        "maxItems": 2,
                        "description": "Height, width",
                    },
                    "counts": {"type": "string"},
                },
            },
        },
    },
    "Detections": {
        "type": "object",
        "required": ["info", "images", "annotations", "categories"],
        "properties": {
            "info": {
                "type": "object",
                "required": ["model"],
                "properties": {"model": {"type": "string"}},
            },
            "images": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "required": ["id", "file_name", "height", "width"],
                    "properties": {
                        "id": {"type": "integer"},
                        "file_name": {"type": "string"},
                        "height": {"type": "integer"},
                        "width": {"type": "integer"},
                    },
                },
            },
            "annotations": {"type": "array", "items": {"$ref": "#/components/schemas/Annotation"}},
            "categories": {"type": "array", "items": {"$ref": "#/components/schemas/Category"}},
        },
    },
    "Health": {
        "type": "object",
        "required": ["status", "models"],
        "properties": {
            "status": {"enum": ["ok", "failed"]},
            "models": {"type": "array", "items": {"type": "string"}},
        },
    },
}


def _json(description: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


def openapi(models: Sequence[str], limits: Limits) -> dict[str, Any]:
    """The document of a server with these models and limits."""
    statuses = {
        "400": "A parameter has a wrong value",
        "403": "The request comes from a page of another server",
        "404": "There is no such model",
        "408": f"The body took longer than {limits.seconds:g} seconds",
        "413": f"Over {limits.max_bytes:,} bytes or {limits.max_pixels:,} pixels",
        "415": "The body is not an image file, or a damaged one",
        "500": "The model failed; the log of the server has the reason",
        "503": f"{limits.queue} requests are being answered; Retry-After has the seconds to wait",
        "504": f"The model had no time within {limits.seconds:g} seconds",
    }
    predict = {
        "summary": "Detect objects in a picture",
        "operationId": "predict",
        "parameters": [
            _parameter(
                "model",
                "The model that looks at it; by default the first one",
                {"type": "string", "enum": list(models), "default": models[0]},
            ),
            _parameter(
                "score_threshold",
                "Detections below it are left out; by default the server's",
                {"type": "number", "minimum": 0, "maximum": 1},
            ),
            _parameter(
                "image_id", "The id of the picture in the answer", {"type": "integer", "default": 1}
            ),
            _parameter(
                "file_name",
                "The name of the picture in the answer",
                {"type": "string", "default": "picture"},
            ),
        ],
        "requestBody": {
            "required": True,
            "description": "The content of one image file, as it is",
            "content": {"image/*": {}, "application/octet-stream": {}},
        },
        "responses": {
            "200": _json("The detections as COCO json", "Detections"),
            **{status: _json(text, "Error") for status, text in statuses.items()},
        },
    }
    health = {
        "200": _json("The server answers pictures", "Health"),
        "503": _json("The thread of the models has ended", "Health"),
    }
    metrics = {
        "description": "Numbers in the text form of Prometheus",
        "content": {"text/plain": {}},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "maskrcnn_lit serve", "version": __version__},
        "paths": {
            "/predict": {"post": predict},
            "/healthz": {
                "get": {
                    "summary": "Whether it works",
                    "operationId": "healthz",
                    "responses": health,
                }
            },
            "/metrics": {
                "get": {
                    "summary": "Numbers of the server",
                    "operationId": "metrics",
                    "responses": {"200": metrics},
                }
            },
        },
        "components": {"schemas": SCHEMAS},
    }
