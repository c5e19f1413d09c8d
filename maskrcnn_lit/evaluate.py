"""`maskrcnn-lit evaluate`: a run folder -> COCO AP, on its own validation images or on other data."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from omegaconf import DictConfig, OmegaConf

from maskrcnn_lit.config import build
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.index import AnnotationIndex
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.analysis import analyse
from maskrcnn_lit.evaluation.callback import CocoEvaluation
from maskrcnn_lit.evaluation.coco_ap import MAX_DETECTIONS, Scores, results_table, score_results
from maskrcnn_lit.evaluation.coco_results import read_results
from maskrcnn_lit.evaluation.roi_accuracy import DEFINITIONS, roi_accuracy_table
from maskrcnn_lit.evaluation.thresholds import write_thresholds
from maskrcnn_lit.files import write_json
from maskrcnn_lit.model import weights
from maskrcnn_lit.predictor import output_folder
from maskrcnn_lit.pretrained import read
from maskrcnn_lit.report.report import write_report
from maskrcnn_lit.report.worst_images import image_reader
from maskrcnn_lit.training.module import DetectionModule
from maskrcnn_lit.training.progress import ProgressLine
from maskrcnn_lit.training.trainer import resolve_accelerator, resolve_precision


def run(config: DictConfig, overrides: list[str]) -> None:
    """Score a run, or the results of another tool; `config` is that of conf/evaluate.yaml with `overrides`."""
    if (config.run is None) == (config.results is None):
        raise UserError("evaluate needs run=RUN, or results=FILE and data=...: give one of the two")
    if config.results is not None:
        _score_file(config, overrides)
        return
    folder = output_folder(config.run, config.run_dir, "evaluations")
    trained, categories, state = read(config.run, config.checkpoint)
    described = trained.data if config.get("data") is None else _as_trained(config.data, trained, overrides)
    data: CocoDataModule = build(_validation_alone(described))
    data.use_categories(categories)  # labels mean what they meant in training; other classes are an error
    model = build(trained.model).to(memory_format=torch.channels_last)  # as in training, so that rounding is the same
    weights.load(model, state)
    module = DetectionModule(
        model=model,
        optimizer=build(trained.optimizer),
        categories=categories,
        config=OmegaConf.to_container(trained),  # type: ignore[arg-type]  # a dict, as the checkpoint holds it
        seed=trained.seed,
    )
    boxes = config.metrics.roi_accuracy.boxes
    evaluation = CocoEvaluation(run_dir=folder, roi_boxes=boxes)
    accelerator = resolve_accelerator(config.accelerator, 1, option="accelerator")
    trainer = Trainer(
        accelerator=accelerator,
        devices=1,
        precision=resolve_precision(config.precision, accelerator, option="precision"),  # type: ignore[arg-type]
        callbacks=[evaluation, ProgressLine()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    trainer.validate(module, datamodule=data, verbose=False)
    file = folder / "evaluation.json"
    record = {"run": str(config.run), "checkpoint": config.checkpoint, "data": described.name, "overrides": overrides}
    record["roi_accuracy"] = {"boxes": boxes, "definition": DEFINITIONS[boxes]}
    record |= {"metrics": evaluation.metrics, "per_class": evaluation.per_class}
    write_json(file, record)
    print(results_table(evaluation.metrics))
    print(roi_accuracy_table(evaluation.metrics["val/roi_accuracy"], evaluation.per_class, boxes))
    print(f"Written to {file}; the detections are beside it in detections.json")
    if config.report:
        index = _val_index(data).only(evaluation.image_ids)  # those that could be read, as in the scores
        scores = Scores(evaluation.metrics, evaluation.per_class)
        results = read_results(folder / "detections.json")
        analysis = _report(folder, record, index, results, scores, evaluation.max_detections)
        if config.get("data") is None and Path(config.run).is_dir():
            write_thresholds(Path(config.run), analysis)  # of the run's own validation data


def _score_file(config: DictConfig, overrides: list[str]) -> None:
    """A COCO results json of any tool, on the validation images of `data`."""
    if config.get("data") is None:
        raise UserError("results=FILE needs the ground truth: data=coco2017 data.root=DIR, or data=coco_json ...")
    results = read_results(Path(config.results))
    data: CocoDataModule = build(_validation_alone(config.data))
    data.prepare_data()
    data.setup("validate")
    index = _val_index(data)
    scores = score_results(index.coco_ground_truth(), results)
    file = output_folder(None, config.run_dir, "evaluations") / "evaluation.json"
    record = {"results": config.results, "data": data.name, "overrides": overrides, **scores._asdict()}
    write_json(file, record)
    print(f"{results_table(scores.metrics)}\nWritten to {file}")
    if config.report:
        _report(file.parent, record, index, results, scores, MAX_DETECTIONS)


def _report(
    folder: Path,
    record: dict[str, Any],
    index: AnnotationIndex,
    results: list[dict[str, Any]],
    scores: Scores,
    max_detections: Sequence[int],
) -> dict[str, Any]:
    """Write the page of an evaluation (`record`, as in evaluation.json) and say where it is; the analysis on it."""
    truth = index.coco_ground_truth()
    analysis = analyse(truth, results, scores=scores, max_detections=max_detections[-1])
    page = write_report(
        folder,
        evaluation=record,
        analysis=analysis,
        ground_truth=truth,
        results=results,
        read_image=image_reader(index),
    )
    print(f"The report is {page}")
    return analysis


def _val_index(data: CocoDataModule) -> AnnotationIndex:
    if data.val_index is None:
        raise RuntimeError("setup leaves a validation index")
    return data.val_index


def _validation_alone(data: DictConfig) -> DictConfig:
    """No training image is fetched for an evaluation."""
    if OmegaConf.select(data, "prepare.parts") is not None:
        data.prepare.parts = ["val"]
    return data


def _as_trained(data: DictConfig, trained: DictConfig, overrides: list[str]) -> DictConfig:
    """Other data, prepared as the run's was: of its size, unless another is asked for, and without training images."""
    data.train = data.val  # never read, and need not be given
    if not any(text.startswith("data.image_size=") for text in overrides):
        data.image_size = trained.data.image_size
    return data
