"""The OpenAPI document holds together; tests/serve/test_app.py checks answers against it."""

import json
import re

import jsonschema

from maskrcnn_lit.serve.app import PARAMETERS
from maskrcnn_lit.serve.openapi import SCHEMAS, openapi
from maskrcnn_lit.serve.service import Limits

DOCUMENT = openapi(["a", "b"], Limits())


def test_every_reference_is_there():
    names = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(DOCUMENT))
    assert set(names) == set(SCHEMAS)


def test_schemas_are_json_schemas():
    for schema in SCHEMAS.values():
        jsonschema.Draft202012Validator.check_schema(schema)


def test_required_properties_are_described():
    for schema in SCHEMAS.values():
        assert set(schema["required"]) <= set(schema["properties"])


def test_the_parameters_are_those_of_the_server():
    named = [entry["name"] for entry in DOCUMENT["paths"]["/predict"]["post"]["parameters"]]
    assert tuple(named) == PARAMETERS
    assert DOCUMENT["paths"]["/predict"]["post"]["parameters"][0]["schema"]["enum"] == ["a", "b"]


def test_operations_have_answers_and_ids_of_their_own():
    operations = [one for path in DOCUMENT["paths"].values() for one in path.values()]
    assert len({one["operationId"] for one in operations}) == len(operations) == 3
    for operation in operations:
        for answer in operation["responses"].values():
            assert answer["description"]
