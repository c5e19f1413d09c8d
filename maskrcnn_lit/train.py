"""`maskrcnn-lit train`: conf -> data, model, module, trainer -> fit -> result.json. The whole story is `run`."""

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config import build, load_run_config
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.dataset import collate
from maskrcnn_lit.data.draw import grid
from maskrcnn_lit.data.media import write_image
from maskrcnn_lit.data.source import join
from maskrcnn_lit.errors import UserError, check_whole
from maskrcnn_lit.evaluation.callback import CocoEvaluation
from maskrcnn_lit.evaluation.coco_ap import results_table
from maskrcnn_lit.evaluation.cost import run_cost
from maskrcnn_lit.evaluation.result import (
    RunResult,
    describe_data,
    package_commit,
    package_versions,
    read_result,
    write_result,
)
from maskrcnn_lit.files import atomic_write, write_json
from maskrcnn_lit.overrides import typed
from maskrcnn_lit.pretrained import start
from maskrcnn_lit.training.checkpoint import last_checkpoint, load_plain
from maskrcnn_lit.training.module import DetectionModule
from maskrcnn_lit.training.panels import choose, draw_panel
from maskrcnn_lit.training.trainer import build_trainer

PICTURES = 6  # validation images in predictions.png


def run(config: DictConfig, overrides: list[str]) -> None:
    """Train, score and draw one model; `config` is that of conf/train.yaml with `overrides`."""
    checkpoint = None
    if config.resume is None:
        _check_new(Path(config.run_dir))
        config.data.root = join(Path.cwd(), config.data.root or ".")  # resumed from elsewhere, it finds its data
    else:
        checkpoint = last_checkpoint(config.resume)  # none if the run was killed before its first: it begins anew
        config = _resumed(config.resume, overrides)
        step = load_plain(checkpoint)["global_step"] if checkpoint else "0: it has no checkpoint yet"
        print(f"{config.run_dir} goes on from step {step}")
        overrides = read_result(Path(config.run_dir) / "result.json").overrides  # those that made it what it is

    check_whole(0, seed=config.seed)
    torch.manual_seed(config.seed)
    callbacks = {name: build(node) for name, node in config.callbacks.items() if node is not None}
    loggers = [build(node) for node in config.logger.values() if node is not None]
    trainer = build_trainer(
        run_dir=config.run_dir,
        callbacks=list(callbacks.values()),
        loggers=loggers,
        **config.trainer,
        evaluate_every_n_epochs=config.evaluation.every_n_epochs,
    )
    data: CocoDataModule = build(config.data)
    if config.evaluation.images is not None:
        check_whole(1, evaluation__images=config.evaluation.images)
    data.quick_images = config.evaluation.images
    data.prepare_data()
    data.setup("fit")
    if config.model.num_classes not in (None, len(data.categories)):
        raise UserError(
            f"model.num_classes={config.model.num_classes}, but the data has {len(data.categories)} categories: leave "
            "it out, the data tells it"
        )
    config.model.num_classes = len(data.categories)
    for name, value in {"norm": "frozen", "freeze_at": 2}.items():
        if config.model.weights not in (None, "none") and config.backbone[name] == "auto":
            config.backbone[name] = value  # as where the backbone alone is pretrained
    model = build(config.model)
    if checkpoint is None:
        data.tell(*start(model, config, data.categories))
    module = DetectionModule(
        model=model.to(memory_format=torch.channels_last),
        optimizer=build(config.optimizer),
        categories=data.categories,
        config=OmegaConf.to_container(config, resolve=True),  # type: ignore[arg-type]  # a dict
        seed=config.seed,
    )
    result = fit(trainer, module, data, checkpoint, overrides)
    if _first_process():
        write_image(Path(config.run_dir) / "predictions.png", draw_predictions(module, data))
        print(_ending(result, config.run_dir, trainer.global_step))


def fit(
    trainer: Trainer, module: DetectionModule, data: CocoDataModule, checkpoint: Path | None, overrides: list[str]
) -> RunResult:
    """Train, and keep result.json true meanwhile: running, then finished, interrupted or failed."""
    run_dir = Path(trainer.default_root_dir)
    result = RunResult(
        status="running",
        overrides=overrides,
        command=sys.argv,
        versions=package_versions(),
        commit=package_commit(),
        data=describe_data(name=data.name, subset_ids=data.subset_ids(), categories=data.categories),
        seed=module.seed,
    )
    if _first_process():
        atomic_write(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(module.config)))
        write_json(run_dir / "subset_ids.json", data.subset_ids())
        write_result(run_dir / "result.json", result)
    started = time.perf_counter()
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        result.metrics = _final_metrics(trainer, module, data)
        result.status = "finished"
    except (KeyboardInterrupt, SystemExit) as error:  # Lightning makes one of the other
        result.status = "interrupted"
        again = f"{program('maskrcnn-lit')} train {typed('resume', run_dir)}"
        raise KeyboardInterrupt(f"go on with {again}") from error
    except BaseException:
        result.status = "failed"
        raise
    finally:
        images = int(module.images_seen) * trainer.world_size
        result.cost = run_cost(module.model, module.device, seconds=time.perf_counter() - started, images=images)
        if _first_process():
            write_result(run_dir / "result.json", result)
    return result


def _final_metrics(trainer: Trainer, module: DetectionModule, data: CocoDataModule) -> dict[str, float]:
    """The validation losses and scores, on all validation images, of the weights as they are at the end."""
    metrics: dict[str, float] = {}
    for evaluation in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it
        if isinstance(evaluation, CocoEvaluation):
            # A quick look saw a part; resumed at the very end, or without a look after the last epoch, it saw nothing.
            if evaluation.step != trainer.global_step or len(data.quick_index) < len(data.val_dataset):
                trainer.validate(module, datamodule=data, verbose=False)
            metrics |= evaluation.metrics
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return logged | metrics


def program(name: str) -> str:
    """How to start a program of this environment from here: by its name, or by its path where it is not activated."""
    if shutil.which(name):
        return name
    path = Path(sys.executable).with_name(name)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _first_process() -> bool:
    """Of several processes, on however many machines, one writes."""
    return all(int(os.environ.get(name, "0")) == 0 for name in ("RANK", "NODE_RANK", "LOCAL_RANK"))


def _check_new(run_dir: Path) -> None:
    """A run that failed before its first checkpoint has left nothing that would be lost."""
    if not _first_process():
        return
    there = next(folder for folder in (run_dir.absolute(), *run_dir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"run_dir={run_dir} cannot be written, since {there} takes no new folder: give another run_dir")
    if not (run_dir / "config.yaml").exists():
        return
    failed = (run_dir / "result.json").is_file() and read_result(run_dir / "result.json").status == "failed"
    if not failed or last_checkpoint(run_dir) is not None:
        raise UserError(
            f"run_dir={run_dir} holds a run: continue it with {typed('resume', run_dir)}, or give another run_dir"
        )


def _resumed(source: str, overrides: list[str]) -> DictConfig:
    """The config of a run that is to go on."""
    others = [text for text in overrides if not text.startswith("resume=")]
    if others:
        raise UserError(
            f"resume continues a run as it was configured, so {others[0]} cannot be given with it; "
            "for another configuration start a new run"
        )
    config = load_run_config(source)
    if read_result(Path(source) / "result.json").status == "finished":
        raise UserError(f"{source} is finished, nothing is left to resume; for more epochs start a new run")
    if Path(config.run_dir).resolve() != Path(source).resolve():
        config = _moved(config, str(source))
    return config


def _moved(config: DictConfig, run_dir: str) -> DictConfig:
    """Where the saved config wrote into its run folder, it writes into `run_dir`."""
    places = ("run_dir", "callbacks.evaluation.run_dir", "logger.tensorboard.save_dir")
    for name, place in {**dict.fromkeys(places, run_dir), "logger.csv.path": f"{run_dir}/metrics.csv"}.items():
        if OmegaConf.select(config, name) is not None:  # a logger or callback may be switched off
            OmegaConf.update(config, name, place)
    return config


@torch.no_grad()
def draw_predictions(module: DetectionModule, data: CocoDataModule) -> Any:
    """Ground truth beside prediction for a few validation images, H W 3 uint8."""
    ids = data.val_dataset.index.image_ids.tolist()
    chosen = choose(ids, PICTURES, module.seed)
    positions = [i for i, image_id in enumerate(ids) if image_id in chosen]
    names = [category.name for category in module.categories]
    module.model.eval()
    panels = []
    for position in positions:
        batch = collate([data.val_dataset[0, position]])
        output = module.model({key: value.to(module.device) for key, value in batch.items()})
        panels.append(draw_panel(batch, output, 0, names, score_threshold=0.5))
    return grid(panels, columns=2)


def _ending(result: RunResult, run_dir: str, steps: int) -> str:
    score = result.metrics.get("val/mask_ap50", float("nan"))
    return (
        f"\n{results_table(result.metrics)}\n\n"
        f"Trained {steps} steps in {result.cost['seconds']:.0f} s: mask AP50 {score:.3f} on "
        f"{result.data['val']['images']} validation images of {result.data['name']}. "
        f"Look at {run_dir}/predictions.png\n"
        "Next:\n"
        f"  {program('tensorboard')} --logdir {shlex.quote(run_dir)}\n"
        f"  {program('maskrcnn-lit')} predict {typed('run', run_dir)} source=IMAGE_OR_FOLDER\n"
        f"  {program('maskrcnn-lit')} train data=coco2017 data.root=DIR backbone=resnet50   "
        "(DIR has train2017/, val2017/, annotations/)"
    )
