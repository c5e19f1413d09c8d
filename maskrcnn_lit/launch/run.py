"""THE STORY OF A RUN: what it prepares, trains, scores and writes. Read `run_job`.

`python -m maskrcnn_lit.launch.run CONFIG` is one process of several (launch/processes.py).
"""

import logging
import shlex
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.callbacks.coco_evaluation import coco_evaluation
from maskrcnn_lit.callbacks.prune import halving
from maskrcnn_lit.config.compose import build, to_dict
from maskrcnn_lit.config.overrides import assign, typed
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.errors import UserError, check_whole, plural
from maskrcnn_lit.evaluation.bootstrap import intervals
from maskrcnn_lit.evaluation.coco.scores import results_table
from maskrcnn_lit.launch import console, summary
from maskrcnn_lit.launch.processes import register
from maskrcnn_lit.launch.requeue import requeue, slurm_job
from maskrcnn_lit.measure.cost import energy_joules, inference_batch, inference_cost, run_cost
from maskrcnn_lit.report.panels import draw_predictions
from maskrcnn_lit.runs.folder import program, record_status, resume_hint, watch_command
from maskrcnn_lit.runs.provenance import (
    changed_data,
    describe_datamodule,
    describe_machine,
    package_commit,
    package_versions,
)
from maskrcnn_lit.runs.result import RunResult, read_result, write_result
from maskrcnn_lit.runs.trained_model import start
from maskrcnn_lit.storage.checkpoints import last_checkpoint
from maskrcnn_lit.storage.files import atomic_write, config_digest, write_json
from maskrcnn_lit.storage.images import write_image
from maskrcnn_lit.training.checkpoint import RunCheckpoints
from maskrcnn_lit.training.module import DetectionModule
from maskrcnn_lit.training.monitor import check_metric, default_metric, has_masks
from maskrcnn_lit.training.processes import meet, rank_timeout
from maskrcnn_lit.training.ranks import cluster_environment, is_rank_zero
from maskrcnn_lit.training.trainer import build_trainer

_log = logging.getLogger(__name__)

SYNTHETIC = "shapes"  # the name of the drawn data set


class Prepared(NamedTuple):
    """The parts of a run before its first step; checkpoint: to resume from, None: start from
    scratch.
    """

    data: CocoDataModule
    module: DetectionModule
    trainer: Trainer
    checkpoint: Path | None


def run_job(config: DictConfig) -> None:
    """Train in this process, resuming from the last checkpoint of the run folder if there is one.

    result.json records the outcome. A run that cannot be resumed (for example because its data are
    missing) is left unchanged.
    """
    run_dir = Path(config.run_dir)
    resumed = last_checkpoint(run_dir) is not None
    prepared = prepare(config) if resumed else None
    with record_status(run_dir) as result:
        prepared = prepared or prepare(config)
        write_origin(run_dir, prepared, result)
        if is_rank_zero():
            _log.info(summary.beginning(*prepared[:3], resumed=resumed))
        meet("training", rank_timeout(config.trainer))
        fit(prepared, result)
        if result.status == "pruned":
            return
        score(prepared, result)
        if is_rank_zero():
            write_image(
                run_dir / "predictions.png", draw_predictions(prepared.module, prepared.data)
            )
    if is_rank_zero():
        advice = summary.ending(*prepared[:3], result.metrics)
        evaluation, data_images = coco_evaluation(prepared.trainer), result.data["val"]["images"]
        images = data_images if evaluation is None else len(evaluation.image_ids)
        ending = _ending(result, config.run_dir, prepared.trainer.global_step, images)
        _log.info("\n".join([ending, *advice]))


def prepare(config: DictConfig) -> Prepared:
    """Data, model with its first weights, optimizer and trainer."""
    run_dir = Path(config.run_dir)
    checkpoint = last_checkpoint(run_dir)
    torch.manual_seed(config.seed)
    trainer = build_trainer(
        run_dir=run_dir,
        callbacks=[build(node) for node in config.callbacks.values() if node is not None],
        loggers=[build(node) for node in config.logger.values() if node is not None],
        **{**config.trainer, "monitor": _monitored(config)},
        evaluate_every_n_epochs=config.evaluation.every_n_epochs,
        on_stall=partial(_say_stalled, run_dir),
        on_stop=requeue if config.get("requeue") and slurm_job() else None,
        environment=cluster_environment(),
    )
    data = read_data(config)
    if checkpoint is not None and is_rank_zero():
        _check_same_data(run_dir, data)
    module = build_module(config, data, pretrained=checkpoint is None)
    if (search := halving(trainer)) is not None:
        search.measure = partial(_inference_cost, trainer, module, data)
    return Prepared(data, module, trainer, checkpoint)


def _monitored(config: DictConfig) -> str:
    """The metric by which best.ckpt is chosen: mask AP, or box AP where the model has no masks,
    unless `trainer.monitor` names another.

    Raises: UserError: it, or the one that the schedule waits for, is of masks, and there are none.
    """
    masks = has_masks(config)
    options = {"trainer.monitor": config.trainer.get("monitor")}
    if config.optimizer.get("schedule") == "plateau":
        options["optimizer.plateau.monitor"] = OmegaConf.select(config, "optimizer.plateau.monitor")
    for option, metric in options.items():
        check_metric(option, str(metric), masks)
    return options["trainer.monitor"] or default_metric(masks)


def _say_stalled(run_dir: Path, sentence: str) -> None:
    """Report and record that one of several processes stalled; all processes end now."""
    if last_checkpoint(run_dir) is not None:
        sentence = f"{sentence}: {resume_hint(run_dir)}"
    print(f"maskrcnn-lit: {sentence}", file=sys.stderr, flush=True)
    file = run_dir / "result.json"
    result = read_result(file)
    result.status, result.error = "failed", sentence
    write_result(file, result)


def write_origin(run_dir: Path, prepared: Prepared, result: RunResult) -> None:
    """Write the record of the run's inputs: config.yaml, subset_ids.json, result.json."""
    data, module, trainer, _ = prepared
    digest = config_digest(module.config)
    if not is_rank_zero():
        result.config_sha256 = digest
        return
    result.status, result.error = "running", None
    result.config_sha256, result.files = None, {}  # no stale digests if the run is killed
    write_result(run_dir / "result.json", result)
    result.config_sha256 = digest
    result.versions, result.commit = package_versions(), package_commit(changes=True)
    result.data = describe_datamodule(data)
    result.machine = describe_machine(trainer.strategy.root_device, trainer.world_size)
    atomic_write(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(module.config)))
    write_json(run_dir / "subset_ids.json", data.subset_ids())
    write_result(run_dir / "result.json", result)


def fit(prepared: Prepared, result: RunResult) -> None:
    """Train, validate as configured, score all validation images at the end, and measure the
    cost. A run that its search has pruned gets that status, and the scores of its last validation.
    """
    data, module, trainer, checkpoint = prepared
    # at the end Lightning moves the module back to the CPU
    device = trainer.strategy.root_device
    started, joules = time.perf_counter(), _joules(trainer)
    try:
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        if (search := halving(trainer)) is not None and search.pruned:
            # resumed after its end, it has not been validated again
            result.status, result.metrics = "pruned", search.metrics | _logged_metrics(trainer)
        else:
            result.metrics = _final_metrics(trainer, module, data)
    finally:
        before = next(c for c in trainer.callbacks if isinstance(c, RunCheckpoints)).spent  # type: ignore[attr-defined]
        result.cost = run_cost(
            module.model,
            device,
            seconds=before["seconds"] + time.perf_counter() - started,
            images=int(before["images"]) + int(module.images_seen) * trainer.world_size,
            joules=None if joules is None or checkpoint else (_joules(trainer) or joules) - joules,
        )
        if module.cached is not None:
            result.cost["feature_cache"] = module.cached.record()


def score(prepared: Prepared, result: RunResult) -> None:
    """Compute intervals of the final AP, and the cost of inference."""
    data, module, trainer, _ = prepared
    if is_rank_zero():
        evaluation = coco_evaluation(trainer)
        result.intervals = intervals(evaluation.matches) if evaluation is not None else {}
        result.cost |= _inference_cost(trainer, module, data)


def _check_same_data(run_dir: Path, data: CocoDataModule) -> None:
    """Raise UserError unless the data are those that the run started with; they may have moved."""
    before = read_result(run_dir / "result.json").data
    changed = changed_data(before, describe_datamodule(data))
    if changed:
        raise UserError(
            f"the data differ from those that {run_dir} was trained on ({', '.join(changed)}): "
            "restore them, give their folder with data.root=DIR, or start a new run"
        )


def read_data(config: DictConfig) -> CocoDataModule:
    """The data module of a run's config, after prepare_data and setup."""
    data: CocoDataModule = build(config.data)
    if config.evaluation.images is not None:
        check_whole(1, evaluation__images=config.evaluation.images)
    data.validation_subset_size = config.evaluation.images
    data.prepare_data()
    data.setup("fit")
    if config.model.num_classes not in (None, len(data.categories)):
        raise UserError(
            f"model.num_classes={config.model.num_classes}, but the data have "
            f"{len(data.categories)} categories: leave it out, the data set it"
        )
    return data


def build_module(
    config: DictConfig, data: CocoDataModule, *, pretrained: bool = True
) -> DetectionModule:
    """The module for the classes of `data`, with the weights that `config` names if
    `pretrained`.
    """
    config.model.num_classes = len(data.categories)
    model = build(config.model)
    if pretrained:
        data.announce(*start(model, config, data.categories))
    return DetectionModule(
        model=model.to(memory_format=torch.channels_last),
        optimizer=build(config.optimizer),
        categories=data.categories,
        config=to_dict(config),
        seed=config.seed,
    )


def _final_metrics(
    trainer: Trainer, module: DetectionModule, data: CocoDataModule
) -> dict[str, float]:
    """The validation losses and scores of the final weights on all validation images."""
    metrics: dict[str, float] = {}
    evaluation = coco_evaluation(trainer)
    if evaluation is not None:
        # The last validation may have used a subset, or may be missing (resumed at the very end, or
        # none after the last epoch).
        if evaluation.step != trainer.global_step or len(data.validation_subset) < len(
            data.val_dataset
        ):
            trainer.validate(module, datamodule=data, verbose=False)
        metrics |= evaluation.metrics
    return _logged_metrics(trainer) | metrics


def _logged_metrics(trainer: Trainer) -> dict[str, float]:
    """Those of the last validation."""
    return {
        name: float(value)
        for name, value in trainer.callback_metrics.items()
        if name.startswith("val/")
    }


def _joules(trainer: Trainer) -> float | None:
    """The energy of all GPUs of the run, if this process sees them all; see `energy_joules`."""
    if trainer.strategy.root_device.type != "cuda" or trainer.num_nodes > 1:
        return None
    return energy_joules([torch.device("cuda", number) for number in trainer.device_ids])


def _inference_cost(
    trainer: Trainer, module: DetectionModule, data: CocoDataModule
) -> dict[str, Any]:
    """The cost of inference on the device and in the precision of training."""
    device = trainer.strategy.root_device
    model = module.to(device).model.eval()
    batches = [
        {
            key: value.to(device)
            for key, value in inference_batch(data.val_dataset.index, data.image_size, n).items()
        }
        for n in (1, data.batch_size)
    ]
    with trainer.precision_plugin.forward_context():
        return inference_cost(model, *batches)


def _ending(result: RunResult, run_dir: str, steps: int, images: int) -> str:
    """images: of the validation that were scored."""
    kind = "mask" if "val/mask_ap50" in result.metrics else "box"
    score = result.metrics.get(f"val/{kind}_ap50", float("nan"))
    return (
        f"\n{results_table(result.metrics)}\n\n"
        f"Trained {plural(steps, 'step')} in {result.cost['seconds']:.0f} s: "
        f"{kind} AP50 {score:.3f} on "
        f"{plural(images, 'validation image')} of {result.data['name']}. "
        f"Look at {run_dir}/predictions.png\n"
        f"{_next_steps(result, run_dir)}"
    )


def _next_steps(result: RunResult, run_dir: str) -> str:
    """Commands to continue with; after training on synthetic data, how to train on real data."""
    command, run = program("maskrcnn-lit"), assign("", run_dir)[1:]
    compare = shlex.quote(f"runs=[{run},OTHER_RUN]")
    lines = [
        watch_command(run_dir),
        f"{command} evaluate {typed('run', run_dir)}",
        f"{command} predict {typed('run', run_dir)} source=IMAGE_OR_FOLDER",
        f"{command} compare {compare}",
    ]
    if result.data["name"] == SYNTHETIC:
        parts = " ".join(f"data.{p}.images=DIR data.{p}.annotations=FILE" for p in ("train", "val"))
        lines = [lines[0], lines[2]]
        lines.append(f"{command} train experiment=finetune {parts}   (your own images)")
        lines.append(
            f"{command} train data=coco2017 data.root=DIR backbone=resnet50   "
            "(DIR has train2017/, val2017/, annotations/)"
        )
    return "\n".join(["Next:", *(f"  {line}" for line in lines)])


if __name__ == "__main__":
    console.silence_libraries()
    console.show_library_logs()
    register(Path(sys.argv[1]))
    sys.exit(
        console.run_and_report_errors(lambda: run_job(DictConfig(OmegaConf.load(sys.argv[1]))))
    )
