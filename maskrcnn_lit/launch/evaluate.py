"""`evaluate`: COCO AP of a run, on its own validation images or on other data."""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import nn

from maskrcnn_lit.callbacks.coco_evaluation import CocoEvaluation
from maskrcnn_lit.callbacks.plain_detections import PlainDetections
from maskrcnn_lit.callbacks.progress import ProgressLine
from maskrcnn_lit.callbacks.suppression_choices import SuppressionChoices, every_choice
from maskrcnn_lit.config.compose import build, to_dict
from maskrcnn_lit.config.stored import load_run_config, read_run_config
from maskrcnn_lit.data.batch import Batch
from maskrcnn_lit.data.coco.index import AnnotationIndex, Category
from maskrcnn_lit.data.datamodule import CocoDataModule
from maskrcnn_lit.data.image_size import ImageSize
from maskrcnn_lit.errors import UserError
from maskrcnn_lit.evaluation.analysis.analyze import analyze
from maskrcnn_lit.evaluation.analysis.hidden_objects import hidden_object_metrics
from maskrcnn_lit.evaluation.baseline import (
    DIGEST,
    baseline_on_same_images,
    candidate_evaluations,
    check_same_images,
    ids_digest,
    read_baseline,
)
from maskrcnn_lit.evaluation.best_suppression import write_suppression
from maskrcnn_lit.evaluation.bootstrap import differences, intervals
from maskrcnn_lit.evaluation.cityscapes import with_official_ap
from maskrcnn_lit.evaluation.coco.federated import FEDERATED_LIMITS, is_federated
from maskrcnn_lit.evaluation.coco.matching import Matches
from maskrcnn_lit.evaluation.coco.results import choose_results, read_results
from maskrcnn_lit.evaluation.coco.scores import (
    MAX_DETECTIONS,
    Scores,
    check_limits,
    class_table,
    limit_warning,
    match_all,
    results_table,
    score_matches,
)
from maskrcnn_lit.evaluation.roi_accuracy import DEFINITIONS, roi_accuracy_line
from maskrcnn_lit.evaluation.thresholds import write_thresholds
from maskrcnn_lit.export.runtime import ExportedModel, is_exported, open_exported
from maskrcnn_lit.launch.suppression import choices_text, score_choices
from maskrcnn_lit.launch.tiles import tile_gain, tile_gain_text
from maskrcnn_lit.launch.tta import gain, gain_text
from maskrcnn_lit.model.mask_rcnn import MaskRCNN
from maskrcnn_lit.model.pretrained import convert as weights
from maskrcnn_lit.model.tiles import Tiling, WithTiles
from maskrcnn_lit.model.tta import WithViews, check_tta, view_sizes
from maskrcnn_lit.report.evaluation.suppression import describe
from maskrcnn_lit.report.evaluation.write import write_report
from maskrcnn_lit.report.pictures import image_reader
from maskrcnn_lit.runs.folder import check_output_folder, new_output_folder, remove_if_empty
from maskrcnn_lit.runs.own_validation import check_own_validation, warn_of_other_division
from maskrcnn_lit.runs.provenance import describe_datamodule
from maskrcnn_lit.runs.result import RunResult
from maskrcnn_lit.runs.trained_model import (
    check_exported_suppression,
    read,
    set_suppression,
)
from maskrcnn_lit.storage.files import config_digest, file_digest
from maskrcnn_lit.storage.sealed import write_sealed_json
from maskrcnn_lit.training.average import scored_weights
from maskrcnn_lit.training.devices import resolve_accelerator, resolve_precision
from maskrcnn_lit.training.module import DetectionModule

_log = logging.getLogger(__name__)


def evaluate(config: DictConfig, overrides: list[str]) -> RunResult:
    """Score a run, or the results of another tool; `config` is conf/evaluate.yaml composed with
    `overrides`. Returns metrics, intervals and data, as in result.json.
    """
    if config.nms is not None and (config.run is None or is_exported(config.run)):
        raise UserError(
            "nms=all needs the model of a run, since it compares kinds of suppression: give run=RUN"
        )
    if (config.run is None) == (config.results is None):
        raise UserError(
            "evaluate needs either run=RUN, or results=FILE with data=...: give one of the two"
        )
    _check_views(config)
    check_output_folder(config.run_dir, overwrite=config.overwrite)
    if config.against is not None:
        candidate_evaluations(
            Path(config.against), config.checkpoint
        )  # report missing packages before the work
    if config.results is not None:
        return _score_file(config, overrides)
    return _score_run(config, overrides)


def _score_run(config: DictConfig, overrides: list[str]) -> RunResult:
    """Score a trained model on its own validation images or on those of `data`."""
    exported, changed = is_exported(config.run), None
    trained, categories, weights_or_model = (
        _read_exported(config) if exported else read(config.run, config.checkpoint, config.trust)
    )
    if exported:
        check_exported_suppression(config.model)
    else:
        changed = set_suppression(trained, config.run, config.model, config.checkpoint)
    described = (
        trained.data if config.get("data") is None else _as_trained(config.data, trained, overrides)
    )
    data: CocoDataModule = build(validation_alone(described))
    data.use_categories(categories)  # use the labels of training
    _check_division(config, data)
    limits = _raise_limits(config, trained)
    module = _module(trained, categories, weights_or_model)
    choices = _choices(module.model, len(categories)) if config.nms == "all" else None
    views, tiles = _with_views(config, module, data), _with_tiles(config, module, data)
    folder = new_output_folder(config.run, config.run_dir, "evaluations")
    boxes = config.metrics.roi_accuracy.boxes
    model_limit = trained.model.box_head.max_detections
    evaluation = CocoEvaluation(
        run_dir=folder,
        max_detections=limits,
        roi_boxes=boxes,
        model_limit=model_limit,
        raises_model=not exported,
    )
    plain = PlainDetections()
    more = [*([choices] if choices else []), *([plain] if views or tiles else [])]
    trainer = _trainer(config, [evaluation, *more], folder)
    try:
        _check_against(config, data)
        trainer.validate(module, datamodule=data, verbose=False)
    except BaseException:
        remove_if_empty(folder)
        raise
    record = {
        "run": str(config.run),
        "checkpoint": config.checkpoint,
        "weights": scored_weights(trained.trainer),
        "data": described.name,
        "overrides": overrides,
        "roi_accuracy": {"boxes": boxes, "definition": DEFINITIONS[boxes]},
    }
    _log.info(f"{results_table(evaluation.metrics)}\n\n{class_table(evaluation.per_class)}\n")
    _log.info(f"weights: {record['weights']}")
    _log.info(roi_accuracy_line(evaluation.metrics["val/roi_accuracy"], boxes))
    index = _val_index(data).with_ids(evaluation.image_ids)  # the readable images
    results = read_results(folder / "detections.json")
    scores = Scores(evaluation.metrics, evaluation.per_class)
    # whether these are the run's own validation data
    own = config.get("data") is None and Path(config.run).is_dir() and not exported
    own = own and config.checkpoint == "best"
    if choices is not None:
        record["suppression"] = _score_choices(choices, index, evaluation.max_detections)
        if own:
            _store_best(config.run, record["suppression"][0])
    record |= _gain(config, views or tiles, evaluation, plain, index)
    analysis = _write(
        config,
        folder,
        record,
        index,
        results,
        scores,
        evaluation.matches,
        evaluation.max_detections[-1],
    )
    if analysis and own and views is None and tiles is None:
        write_thresholds(Path(config.run), analysis, changed)
    return _result(data, record, scores, overrides, folder)


def _check_against(config: DictConfig, data: CocoDataModule) -> None:
    """Raise UserError, before scoring, if the baseline is on other images."""
    if config.against is None:
        return
    data.prepare_data()
    data.setup("validate")
    ids = _val_index(data).image_ids.tolist()
    check_same_images(candidate_evaluations(Path(config.against), config.checkpoint), ids)


def _check_views(config: DictConfig) -> None:
    """Raise UserError for what `tta` and `tile` do not go with, before anything is loaded."""
    given = [f"{name}={config[name]}" for name in ("tta", "tile") if config[name] is not None]
    if not given:
        return
    if config.run is None:
        raise UserError(f"{given[0]} needs a model, and results=FILE has none: give run=RUN")
    if config.nms is not None:
        raise UserError(
            f"nms=all compares kinds of suppression without {given[0]}: leave out one of them"
        )
    if len(given) > 1:
        raise UserError(
            f"{' and '.join(given)} are each compared with the image as it is: leave out one of "
            "them (predict takes both)"
        )


def _with_views(
    config: DictConfig, module: DetectionModule, data: CocoDataModule
) -> WithViews | None:
    """The model of `module`, changed to detect in several views; None without `tta`."""
    model: Any = module.model
    check_tta(config.tta, model)
    if config.tta is None:
        return None
    dataset = cache(lambda: data.val_dataset)  # the data are set up later

    def read(ids: Sequence[int], size: ImageSize) -> Batch:
        return dataset().at_size(ids, size)

    module.model = WithViews(model, view_sizes(config.tta, data.image_size), read)
    return module.model


def _gain(
    config: DictConfig,
    model: WithViews | WithTiles | None,
    evaluation: CocoEvaluation,
    plain: PlainDetections,
    index: AnnotationIndex,
) -> dict[str, Any]:
    """What evaluation.json says of `tta` or `tile`, which is printed."""
    if model is None:
        return {}
    matches, truth = evaluation.matches, index.coco_ground_truth()
    rest = plain.results(index.categories), truth, index.categories, evaluation.max_detections
    if isinstance(model, WithViews):
        row = gain(config.tta, model, matches, *rest)
        _log.info(f"{gain_text(row)}\n")
        return {"tta": row}
    row = tile_gain(model, matches, *rest)
    _log.info(f"{tile_gain_text(row, evaluation.metrics)}\n")
    return {"tile": row}


def _with_tiles(
    config: DictConfig, module: DetectionModule, data: CocoDataModule
) -> WithTiles | None:
    """The model of `module`, changed to detect in tiles, too; None without `tile`."""
    if config.tile is None:
        return None
    tiling = Tiling(config.tile, config.overlap)
    tiling.check()

    def read(image_id: int) -> NDArray[np.uint8] | None:
        return data.val_dataset.whole(image_id)  # the data are set up later

    model: Any = module.model
    module.model = WithTiles(model, tiling, data.image_size, read)
    return module.model


def _choices(model: Any, classes: int) -> SuppressionChoices:
    """Lets the model give the detections of every kind of suppression. UserError without masks."""
    if not model.mask_size:
        raise UserError(
            "nms=all compares mask AP, and the model has no masks (model.mask_head=null): "
            "evaluate it with each kind, model.nms=box and model.nms=soft"
        )
    if classes == 1:  # the same over all classes, which are not among the choices
        model.set_suppression(model.suppression._replace(agnostic_nms=False))
    model.choices = tuple(every_choice(classes))
    return SuppressionChoices(model.suppression)


def _score_choices(
    choices: SuppressionChoices, index: AnnotationIndex, limits: Sequence[int]
) -> list[dict[str, Any]]:
    """The rows of `score_choices`, which are printed."""
    results = choices.results(index.categories)
    rows = score_choices(results, choices.own, index.coco_ground_truth(), index.categories, limits)
    _log.info(f"{choices_text(rows)}\n")
    return rows


def _store_best(run: str, best: Mapping[str, Any]) -> None:
    value = best["metrics"]["val/mask_ap"]
    if math.isnan(value):
        _log.info("Nothing is stored for model.nms=best: no object has a mask")
        return
    file = write_suppression(run, best, "val/mask_ap", value)
    _log.info(f"Stored for model.nms=best: {describe(best)}, in {file}")


def _check_division(config: DictConfig, data: CocoDataModule) -> None:
    """Raise UserError, or for named data warn, if data.val_share divides them in another way than
    in training.
    """
    if data.split is None:
        return
    data.prepare_data()
    data.setup("validate")
    if config.get("data") is None:
        check_own_validation(config.run, data, ", or name other images to score, data=...")
    else:
        warn_of_other_division(config.run, data)


def _raise_limits(config: DictConfig, trained: DictConfig) -> Sequence[int]:
    """COCO's limits on detections per image and class. The model's limit is raised to the last."""
    if config.metrics.max_detections is None:
        return OmegaConf.select(trained, "metrics.max_detections") or MAX_DETECTIONS
    limits = check_limits(config.metrics.max_detections)
    head = trained.model.box_head
    head.max_detections = max(head.max_detections, limits[-1])
    return limits


def _module(
    trained: DictConfig,
    categories: Sequence[Category],
    weights_or_model: dict[str, Any] | ExportedModel,
) -> DetectionModule:
    model: nn.Module = (
        weights_or_model
        if isinstance(weights_or_model, ExportedModel)
        else loaded_model(trained, weights_or_model)
    )
    return DetectionModule(
        model=model,
        optimizer=build(trained.optimizer),
        categories=categories,
        config=to_dict(trained),
        seed=trained.seed,
    )


def loaded_model(trained: DictConfig, state: dict[str, Any]) -> MaskRCNN:
    """The model of a run with these weights, as it is trained and scored."""
    model = build(trained.model).to(memory_format=torch.channels_last)  # as in training
    weights.load(model, state)
    return model


def _read_exported(
    config: DictConfig,
) -> tuple[DictConfig, Sequence[Category], ExportedModel]:
    """Exported files, and the config of the run that lies beside them."""
    model = open_exported(config.run, provider=config.provider, trust=config.trust)
    folder = Path(config.run) if Path(config.run).is_dir() else Path(config.run).parent
    trained = load_run_config(folder, [name for name in config.trust if name != "pt2"])
    if config_digest(read_run_config(folder)) != model.metadata.config_sha256:
        raise UserError(
            f"{folder / 'config.yaml'} is not the config that {config.run} was exported with: "
            "export the run again"
        )
    return trained, [Category(*entry) for entry in model.metadata.classes], model


def _trainer(config: DictConfig, callbacks: Sequence[Callback], folder: Path) -> Trainer:
    accelerator = "cpu"  # where an exported model takes its inputs
    if not is_exported(config.run):
        accelerator = resolve_accelerator(config.accelerator, 1, option="accelerator")
    return Trainer(
        accelerator=accelerator,
        devices=1,
        precision=resolve_precision(config.precision, accelerator, option="precision"),  # type: ignore[arg-type]
        callbacks=[*callbacks, ProgressLine()],
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )


def _score_file(config: DictConfig, overrides: list[str]) -> RunResult:
    """Score a COCO results json of any tool on the validation images of `data`."""
    for name, value in config.model.items():
        if value is not None:
            raise UserError(
                f"model.{name}={value} needs a model, and results=FILE has none: give run=RUN, or "
                "leave it out"
            )
    if config.get("data") is None:
        raise UserError(
            "results=FILE needs the ground truth: data=coco2017 data.root=DIR, or "
            "data=coco_json ..."
        )
    results = read_results(Path(config.results))
    limits = None
    if config.metrics.max_detections is not None:
        limits = check_limits(config.metrics.max_detections)
    if None in config.data.train.values():
        config.data.train = config.data.val  # not read
    data: CocoDataModule = build(validation_alone(config.data))
    data.prepare_data()
    data.setup("validate")
    data.check_classes()
    index = _val_index(data)
    results = choose_results(results, index.packed)
    if config.against is not None:
        baseline_on_same_images(
            candidate_evaluations(Path(config.against), config.checkpoint), index.image_ids.tolist()
        )
    truth = index.coco_ground_truth()
    limits = limits or (FEDERATED_LIMITS if is_federated(truth) else MAX_DETECTIONS)
    matches = match_all(truth, results, limits[-1])
    scores = score_matches(matches, truth["categories"], limits)
    scores.metrics.update(hidden_object_metrics(truth, results, limits[-1]))
    scores = with_official_ap(data.official_ap, scores, index, truth, results)
    warning = limit_warning(next(iter(matches.values())), limits)
    if warning:
        _log.info(warning)
    _log.info(f"{results_table(scores.metrics)}\n\n{class_table(scores.per_class)}\n")
    record = {"results": config.results, "data": data.name, "overrides": overrides}
    folder = new_output_folder(None, config.run_dir, "evaluations")
    _write(config, folder, record, index, results, scores, matches, limits[-1])
    return _result(data, record, scores, overrides, folder)


def _result(
    data: CocoDataModule, record: dict[str, Any], scores: Scores, overrides: list[str], folder: Path
) -> RunResult:
    return RunResult(
        status="finished",
        metrics=dict(scores.metrics),
        intervals=record.get("intervals", {}),
        overrides=overrides,
        data=describe_datamodule(data),
        run_dir=str(folder),
    )


def _write(
    config: DictConfig,
    folder: Path,
    record: dict[str, Any],
    index: AnnotationIndex,
    results: list[dict[str, Any]],
    scores: Scores,
    matches: dict[str, Matches],
    limit: int,
) -> dict[str, Any] | None:
    """Write evaluation.json (`record`, scores, intervals, differences) and, if requested, the
    report; return its analysis.
    """
    truth = index.coco_ground_truth()
    ids = [image["id"] for image in truth["images"]]
    record |= {"images": len(ids), "image_ids_sha256": ids_digest(ids)} | scores._asdict()
    record["intervals"] = intervals(matches)
    if config.against is not None:
        other = baseline_on_same_images(
            candidate_evaluations(Path(config.against), config.checkpoint), ids
        )
        record |= {"against": config.against, "against_results": str(other.results)}
        theirs = choose_results(read_baseline(other), index.packed)
        record["differences"] = differences(matches, match_all(truth, theirs, limit))
    if config.results is None:
        record[DIGEST] = file_digest(folder / "detections.json", "sha256")
    write_sealed_json(folder / "evaluation.json", record)
    _log.info(f"{_describe(record)}\nWritten to {folder / 'evaluation.json'}")
    if not config.report:
        return None
    analysis = analyze(truth, results, scores=scores, max_detections=limit)
    page = write_report(
        folder,
        evaluation=record,
        analysis=analysis,
        ground_truth=truth,
        results=results,
        read_image=image_reader(index),
    )
    _log.info(f"Report: {page}")
    return analysis


def _describe(record: dict[str, Any]) -> str:
    lines = []
    for name, interval in record["intervals"].items():
        kind = name.removeprefix("val/").removesuffix("_ap")
        if interval is None:  # no objects, so no difference either
            lines.append(f"{kind} AP, 95 % interval over images: -")
            continue
        lines.append(
            f"{kind} AP, 95 % interval over images: {interval[0]:.3f} to {interval[1]:.3f}"
        )
        if difference := record.get("differences", {}).get(name):
            low, high = difference["interval"]
            lines.append(
                f"{kind} AP against {record['against']}: {difference['value']:+.3f}, 95 % interval "
                f"{low:+.3f} to "
                f"{high:+.3f}, p = {difference['p_value']:.3f}"
            )
    return "\n".join(lines)


def _val_index(data: CocoDataModule) -> AnnotationIndex:
    if data.val_index is None:
        raise RuntimeError("setup leaves a validation index")
    return data.val_index


def validation_alone(data: DictConfig) -> DictConfig:
    """The validation part of `data` only, so that no training image is downloaded."""
    if OmegaConf.select(data, "prepare.parts") is not None:
        data.prepare.parts = ["val"]
    return data


def _as_trained(data: DictConfig, trained: DictConfig, overrides: list[str]) -> DictConfig:
    """Other data with the run's settings: its image size, unless overridden, and no training
    images.
    """
    data.train = data.val  # not read
    if not any(text.startswith("data.image_size=") for text in overrides):
        data.image_size = trained.data.image_size
    return data
