"""The addresses of the server: answers, refusals with a status and a sentence, and its document."""

import io
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest
from PIL import Image
from pycocotools.coco import COCO
from served import bomb, png, predictor
from starlette.testclient import TestClient

from maskrcnn_lit.predictor import Predictor
from maskrcnn_lit.serve.app import build_app
from maskrcnn_lit.serve.openapi import openapi
from maskrcnn_lit.serve.server import allowed_hosts
from maskrcnn_lit.serve.service import Limits, Service

LIMITS = Limits(max_bytes=100_000, max_pixels=1_000_000)


@pytest.fixture(scope="module")
def model() -> Predictor:
    return predictor()


@pytest.fixture
def service(model: Predictor) -> Iterator[Service]:
    made = Service({"small": model, "large": model}, LIMITS)
    yield made
    made.close()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    app = build_app(service, page="<h1>page</h1>", hosts=allowed_hosts("127.0.0.1", None))
    with TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False) as made:
        yield made


def document() -> dict[str, Any]:
    return openapi(["small", "large"], LIMITS)


def check(name: str, content: Any) -> None:
    """`content` follows the schema of this name in the document."""
    schema = {"$ref": f"#/components/schemas/{name}", **document()}
    jsonschema.Draft202012Validator(schema).validate(content)


def counted(client: TestClient, path: str, status: int) -> bool:
    line = f'maskrcnn_requests_total{{path="{path}",status="{status}"}} 1.0'
    return line in client.get("/metrics").text.splitlines()


def test_a_picture_is_answered_with_coco_json(client: TestClient, tmp_path: Any):
    answer = client.post("/predict?file_name=a.png&image_id=4", content=png())
    assert answer.status_code == 200
    content = answer.json()
    check("Detections", content)
    assert content["info"]["model"] == "small"
    assert content["images"][0]["file_name"] == "a.png"
    (tmp_path / "a.json").write_text(answer.text)
    coco = COCO(tmp_path / "a.json")
    (first, *_) = coco.loadAnns(coco.getAnnIds(imgIds=4))
    assert coco.annToMask(first).sum() == first["area"]
    assert counted(client, "/predict", 200)


def test_another_model_and_threshold_are_parameters(client: TestClient):
    answer = client.post("/predict?model=large&score_threshold=0.1", content=png()).json()
    assert answer["info"] == {"model": "large"}
    scores = [entry["score"] for entry in answer["annotations"]]
    assert scores[-1] < 0.3 < scores[0]  # 0.3 is the server's


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("model=huge", 404, "there is no model huge: use small or large"),
        ("threshold=1", 400, "there is no parameter threshold"),
        ("score_threshold=2", 400, "score_threshold=2 must be a number from 0 to 1"),
        ("score_threshold=nan", 400, "must be a number from 0 to 1"),
        ("score_threshold=low", 400, "score_threshold=low must be a number"),
        ("image_id=1.5", 400, "image_id=1.5 must be a whole number"),
    ],
)
def test_wrong_parameters_are_refused(client: TestClient, query: str, status: int, words: str):
    answer = client.post(f"/predict?{query}", content=png())
    assert answer.status_code == status
    assert words in answer.json()["error"]
    check("Error", answer.json())


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 415, "the body cannot be read as an image (no image; 0 bytes)"),
        (b"text", 415, "no image; 4 bytes"),
        (png((200, 200))[:5000], 415, "5000 bytes"),
        (bomb(30_000)[:90_000], 413, "up to 1,000,000: send a smaller one"),
        (bytes(100_001), 413, "the body has more than 100,000 bytes: send a smaller file"),
    ],
)
def test_wrong_bodies_are_refused(client: TestClient, content: bytes, status: int, words: str):
    answer = client.post("/predict", content=content)
    assert answer.status_code == status
    assert words in answer.json()["error"]
    assert counted(client, "/predict", status)


def test_a_body_without_a_length_is_bounded(client: TestClient):
    answer = client.post("/predict", content=iter([bytes(60_000)] * 3))
    assert answer.status_code == 413


def test_a_form_is_refused_with_the_way_to_do_it(client: TestClient):
    answer = client.post("/predict", files={"file": png()})
    assert answer.status_code == 415
    assert "curl --data-binary @photo.jpg" in answer.json()["error"]


def test_no_more_requests_than_the_queue_holds(client: TestClient, service: Service):
    service._inside = LIMITS.queue
    answer = client.post("/predict", content=png())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8000"])
def test_another_name_of_this_machine_is_refused(client: TestClient, host: str):
    answer = client.get("/healthz", headers={"host": host})
    assert answer.status_code == 400


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000"])
def test_its_own_names_are_answered(client: TestClient, host: str):
    assert client.get("/healthz", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:9", "null"])
def test_pages_of_other_servers_are_refused(client: TestClient, origin: str):
    answer = client.post("/predict", content=png(), headers={"origin": origin})
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_its_own_page_is_answered(client: TestClient):
    headers = {"origin": "http://127.0.0.1:8000"}
    assert client.post("/predict", content=png(), headers=headers).status_code == 200


def test_a_failure_is_a_sentence_and_a_line_of_the_log(
    client: TestClient, service: Service, caplog: pytest.LogCaptureFixture
):
    service.models["small"] = None  # type: ignore[assignment]
    answer = client.post("/predict", content=png())
    assert answer.status_code == 500
    assert answer.json() == {"error": "the server failed on this request; its log has the reason"}
    assert "POST /predict failed" in caplog.text
    assert "NoneType" in caplog.text
    assert counted(client, "/predict", 500)
    assert client.post("/predict?model=large", content=png()).status_code == 200


def test_the_page_and_its_policy(client: TestClient):
    answer = client.get("/")
    assert answer.text == "<h1>page</h1>"
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_health_says_whether_the_thread_runs(client: TestClient, service: Service):
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    check("Health", answer.json())
    service.close()
    answer = client.get("/healthz")
    assert (answer.status_code, answer.json()["status"]) == (503, "failed")
    check("Health", answer.json())


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/predict", 405), ("GET", "/docs", 404)]
)
def test_other_addresses_are_a_sentence(client: TestClient, method: str, path: str, status: int):
    answer = client.request(method, path)
    assert answer.status_code == status
    assert f"{method} {path}: " in answer.json()["error"]


def test_the_document_is_served(client: TestClient):
    assert client.get("/openapi.json").json() == document()


def test_a_picture_with_gray_and_alpha_is_read(client: TestClient):
    buffer = io.BytesIO()
    Image.new("LA", (50, 40)).save(buffer, "PNG")
    answer = client.post("/predict", content=buffer.getvalue())
    assert json.loads(answer.text)["images"][0]["width"] == 50
