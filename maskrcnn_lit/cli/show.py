"""`maskrcnn-lit show`: the page of `serve` on the validation images of a run."""

from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.cli.serve import check_packages, model_names
from maskrcnn_lit.predictor import load_model


def run(config: DictConfig, overrides: list[str]) -> None:
    """Serve until Ctrl-C; `config` is conf/show.yaml composed with `overrides`."""
    check_packages("show")
    from maskrcnn_lit.serve.app import build_app
    from maskrcnn_lit.serve.page import serve_page
    from maskrcnn_lit.serve.server import allowed_hosts, listen, run_server
    from maskrcnn_lit.serve.service import Limits, Service
    from maskrcnn_lit.serve.show import run_facts, show_routes
    from maskrcnn_lit.serve.validation import Validation

    with listen(config.host, config.port) as listener:
        validation = Validation(
            Path(config.run), config.checkpoint, config.trust, config.accelerator
        )
        model = load_model(
            config.run,
            score_threshold=config.score_threshold,
            accelerator=config.accelerator,
            checkpoint=config.checkpoint,
            trust=config.trust,
        )
        (name,) = model_names([config.run], None)
        limits = Limits()
        service = Service({name: model}, limits)
        facts = [("run", config.run), ("checkpoint", config.checkpoint)]
        page = serve_page(service.models, facts, run_facts(validation))
        hosts = allowed_hosts(config.host, config.hosts)
        app = build_app(service, page=page, hosts=hosts, more=show_routes(validation))
        try:
            run_server(app, listener, queue=limits.queue)
        finally:
            service.close()
