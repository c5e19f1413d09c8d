"""`maskrcnn-lit serve`: models behind a page and an address of this machine."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.predictor import Predictor, load_model
from maskrcnn_lit.storage.packages import import_package

PACKAGES = ("starlette", "uvicorn", "prometheus_client")


def run(config: DictConfig, overrides: list[str]) -> None:
    """Serve until Ctrl-C; `config` is conf/serve.yaml composed with `overrides`."""
    check_packages("serve")
    from maskrcnn_lit.serve.app import build_app
    from maskrcnn_lit.serve.page import serve_page
    from maskrcnn_lit.serve.server import allowed_hosts, listen, run_server
    from maskrcnn_lit.serve.service import Limits, Service

    runs = [config.run] if isinstance(config.run, str) else list(map(str, config.run))
    names = model_names(runs, config.names)
    with listen(config.host, config.port) as listener:
        models = {name: load(config, source) for name, source in zip(names, runs, strict=True)}
        limits = Limits(
            batch_size=config.batch_size,
            queue=config.queue,
            seconds=config.seconds,
            max_bytes=round(config.megabytes * 1e6),
            max_pixels=round(config.megapixels * 1e6),
        )
        facts = [(name, source) for name, source in zip(names, runs, strict=True)]
        service = Service(models, limits)
        hosts = allowed_hosts(config.host, config.hosts)
        app = build_app(service, page=serve_page(models, facts), hosts=hosts)
        try:
            run_server(app, listener, queue=config.queue)
        finally:
            service.close()


def check_packages(command: str) -> None:
    """Raise UserError where a package of the extra `serve` is missing."""
    for package in PACKAGES:
        import_package(package, "serve", command)


def load(config: DictConfig, source: str) -> Predictor:
    """The model of a run, as the options of `serve` have it."""
    return load_model(
        source,
        score_threshold=config.score_threshold,
        max_detections=config.max_detections,
        accelerator=config.accelerator,
        checkpoint=config.checkpoint,
        trust=config.trust,
        provider=config.provider,
        **config.model,
    )


def model_names(runs: Sequence[str], names: Sequence[str] | None) -> list[str]:
    """A name for each run: `names`, or of each path its last parts that make it unlike the others.

    Raises:
        UserError: not one name for each run, or two that are equal.
    """
    if names is not None:
        if len(names) != len(runs):
            raise UserError(
                f"names={list(names)} has {len(names)} names for {len(runs)} models: give one each"
            )
        if len(set(names)) < len(names):
            raise UserError(f"names={list(names)} has a name twice: give different ones")
        return list(names)
    parts = [Path(run).parts or (run,) for run in runs]
    for count in range(1, max(map(len, parts)) + 1):
        shown = ["/".join(own[-count:]) for own in parts]
        if max(Counter(shown).values()) == 1:
            return shown
    raise UserError(f"run={list(runs)} has a run twice: give each once")
