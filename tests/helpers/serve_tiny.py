"""A process that serves a model of a few weights on a free port; it prints its address.

Usage: serve_tiny.py
"""

import sys
from pathlib import Path

import torch


def main() -> None:
    from served import predictor

    from maskrcnn_lit.serve.app import build_app
    from maskrcnn_lit.serve.page import serve_page
    from maskrcnn_lit.serve.server import allowed_hosts, listen, run_server
    from maskrcnn_lit.serve.service import Limits, Service

    torch.set_num_threads(1)
    models = {"small": predictor(), "boxes": predictor(masks=False)}
    service = Service(models, Limits(batch_size=4, queue=12, seconds=5))
    app = build_app(service, page=serve_page(models, []), hosts=allowed_hosts("127.0.0.1", None))
    with listen("127.0.0.1", 0) as listener:
        run_server(app, listener, queue=12)
    service.close()


if __name__ == "__main__":
    folders = Path(__file__).resolve().parents
    sys.path[:0] = [str(folders[2]), str(folders[0])]
    main()
