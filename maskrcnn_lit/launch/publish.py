"""`publish`: a trained run as a folder that others can load, on the disk or on the hub."""

import json
import logging
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation import best_suppression, thresholds
from maskrcnn_lit.report.model_card import model_card
from maskrcnn_lit.report.score_plot import score_plot
from maskrcnn_lit.report.theme import LIGHT, render
from maskrcnn_lit.runs.folder import check_output_folder
from maskrcnn_lit.runs.result import RunResult, read_result
from maskrcnn_lit.runs.shared import CARD, CONFIG, FACTS, HUB, VERSION, WEIGHTS, hub, hub_name
from maskrcnn_lit.runs.trained_model import Pretrained, read
from maskrcnn_lit.storage.packages import import_package
from maskrcnn_lit.training.average import scored_weights
from maskrcnn_lit.training.monitor import has_masks

PLOT, PICTURE = "scores.png", "predictions.png"
PLACE = "DIR"  # instead of a path of this machine

_log = logging.getLogger(__name__)


def publish(config: DictConfig) -> str:
    """Write the run `config.run` to the folder `config.to`, or upload it to the hub (hf:USER/NAME);
    `config` is that of conf/publish.yaml. Returns the folder or the address.

    Raises: UserError: the run is not finished, the folder is not empty, or the hub refuses.
    """
    name = hub_name(str(config.to))
    run = Path(config.run)
    if not run.is_dir():
        raise UserError(f"run={run} is not a folder: give the folder of a finished run")
    result = read_result(run / "result.json")
    if result.status != "finished":
        raise UserError(
            f"run={run} is {result.status}, so its scores are not those of its weights: finish it "
            f"with maskrcnn-lit train resume={run}"
        )
    if name is not None:
        client = hub(f"to={config.to}")
        with TemporaryDirectory() as folder:
            _write(config, run, result, Path(folder), name)
            return _upload(client, Path(folder), name, config)
    check_output_folder(config.to, overwrite=config.overwrite, option="to")
    Path(config.to).mkdir(parents=True, exist_ok=True)
    _write(config, run, result, Path(config.to), run.name)
    return str(config.to)


def _write(config: DictConfig, run: Path, result: RunResult, folder: Path, name: str) -> None:
    trained = read(run, config.checkpoint, config.trust)
    save_file = import_package("safetensors.torch", "hub", "publish").save_file
    state = {key: value.contiguous() for key, value in trained.state.items()}
    save_file(state, str(folder / WEIGHTS), metadata={"format": "pt"})
    options = without_places(OmegaConf.to_container(trained.config))
    (folder / CONFIG).write_text(yaml.safe_dump(options, sort_keys=False), encoding="utf-8")
    facts = _facts(config, trained, result)
    (folder / FACTS).write_text(json.dumps(facts, indent=1, allow_nan=False), encoding="utf-8")
    copied = [thresholds.FILE, best_suppression.FILE] if config.checkpoint == "best" else []
    if config.pictures:
        copied.append(PICTURE)
    for file in copied:
        if (run / file).is_file():
            shutil.copy(run / file, folder / file)
    (folder / PLOT).write_bytes(render(score_plot, facts, LIGHT))
    picture = PICTURE if (folder / PICTURE).is_file() else None
    (folder / CARD).write_text(
        model_card(facts, name=name, license=config.license, plot=PLOT, picture=picture),
        encoding="utf-8",
    )


def _facts(config: DictConfig, trained: Pretrained, result: RunResult) -> dict[str, Any]:
    """What the card says, as data. The scores are those at the end of the run."""
    return {
        "version": VERSION,
        "categories": [[category.id, category.name] for category in trained.categories],
        "checkpoint": config.checkpoint,
        "weights": scored_weights(trained.config.trainer),
        "model": {
            "backbone": trained.config.model.backbone.get("name"),
            "image_size": without_places(OmegaConf.to_container(trained.config.data))["image_size"],
            "parameters": result.cost.get("parameters"),
            "flops": result.cost.get("flops"),
            "masks": has_masks(trained.config),
        },
        "metrics": {k: v for k, v in result.metrics.items() if v == v},
        "intervals": result.intervals,
        "data": result.data,
        "command": ["maskrcnn-lit", "train", *map(without_place, result.overrides)],
        "config_sha256": result.config_sha256,
        "versions": result.versions,
        "commit": (result.commit or {}).get("hash"),
    }


def without_places(value: Any) -> Any:
    """Nested dicts and lists with DIR for each absolute path in them."""
    if isinstance(value, dict):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_places(inner) for inner in value]
    return PLACE if isinstance(value, str) and _is_place(value) else value


def without_place(option: str) -> str:
    """NAME=DIR for an option whose value is an absolute path."""
    name, equals, value = option.partition("=")
    return f"{name}={PLACE}" if equals and _is_place(value.strip("'\"")) else option


def _is_place(value: str) -> bool:
    return re.match(r"/|~|[A-Za-z]:[\\/]|\\\\", value) is not None


def _upload(client: Any, folder: Path, name: str, config: DictConfig) -> str:
    try:
        api = client.HfApi()
        address = api.create_repo(name, private=config.private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, commit_message="Publish with maskrcnn_lit"
        )
    except Exception as error:  # of the hub's client and http
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"to={HUB}{name} cannot be written ({reason}): check the name, the network and your "
            "login (`hf auth login`), or publish to a folder, to=DIR"
        ) from error
    return str(address)
