"""The numbers of the server in Prometheus' text form."""

from maskrcnn_lit.serve.metrics import Metrics


def test_the_text_has_every_number():
    metrics = Metrics(lambda: 3)
    metrics.requests.labels("/predict", "200").inc(2)
    metrics.batch_images.observe(5)
    metrics.seconds.observe(0.2)
    lines = metrics.text().decode().splitlines()
    assert 'maskrcnn_requests_total{path="/predict",status="200"} 2.0' in lines
    assert "maskrcnn_waiting 3.0" in lines
    assert 'maskrcnn_batch_images_bucket{le="4.0"} 0.0' in lines
    assert 'maskrcnn_batch_images_bucket{le="8.0"} 1.0' in lines
    assert "maskrcnn_predict_seconds_sum 0.2" in lines


def test_two_servers_of_a_process_do_not_share_numbers():
    first, second = Metrics(lambda: 0), Metrics(lambda: 0)
    first.requests.labels("/", "200").inc()
    assert b'path="/"' not in second.text()
