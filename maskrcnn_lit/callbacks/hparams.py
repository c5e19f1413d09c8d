"""Makes runs comparable: a row in TensorBoard's HPARAMS table, the charts of CUSTOM SCALARS, the
page of a run and its config in TEXT, and the config in other loggers.
"""

import json
import textwrap
from collections.abc import Container, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

from maskrcnn_lit.callbacks.boards import boards, tensorboard_writers
from maskrcnn_lit.callbacks.run_page import MEANS, run_page
from maskrcnn_lit.data.coco.sizes import SIZES
from maskrcnn_lit.evaluation.titles import metric_title
from maskrcnn_lit.runs.result import read_result

Value = int | float | str | bool

METRICS = (
    "val/mask_ap",
    "val/mask_ap50",
    "val/box_ap",
    "val/roi_accuracy",
    "speed/images_per_second",
)

# Category -> chart -> regular expressions of its curves; a chart has the curves of every selected
# run.
CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "Losses": {
        "total": ("train/loss$", "val/loss$"),
        "terms of the RPN in training": ("train/loss_rpn_",),
        "other terms in training": ("train/loss_(?!rpn_)",),
        "terms of the RPN in validation": ("val/loss_rpn_",),
        "other terms in validation": ("val/loss_(?!rpn_)",),
    },
    "AP": {
        **{metric_title(name): (f"{name}$",) for name in ("val/mask_ap", "val/box_ap")},
        "mask AP50, AP75": ("val/mask_ap50$", "val/mask_ap75$"),
        f"mask AP of {', '.join(SIZES)} objects": ("val/mask_ap_",),
        "recall by hidden share": ("val/recall_hidden_",),
        "recall of occluded, separated objects": ("val/recall_(occluded|separated)$",),
        "merged, split": ("val/(merged|split)$",),
        metric_title("val/count_error"): ("val/count_error$",),
        metric_title("val/ap_crowded"): ("val/ap_crowded$",),
        metric_title("val/roi_accuracy"): ("val/roi_accuracy$",),
    },
    "Classes": {
        "mask AP by class": ("val_class_mask_ap/",),
        "box AP by class": ("val_class_box_ap/",),
    },
    "Learning": {
        "learning rates": ("lr/",),
        "norm of the gradient": ("train/gradient_norm$",),
        "norm of the gradient by part": ("gradient_norm/",),
        "change of the weights in a step, over the weights": ("update_ratio/",),
        "norm of the weights": ("train/weight_norm$",),
    },
    "Speed and memory": {
        "images a second": ("speed/images_per_second$",),
        "share of time that waits for data": ("speed/data_wait$",),
        "seconds of an evaluation": ("val/evaluation_seconds$",),
        "memory, GB": ("memory/",),
    },
}


class HyperParameters(Callback):
    """At the start of training, log the options `names` (dotted names of the config), the options
    that the user set and the number of training images, against METRICS; TensorBoard reads the
    values of METRICS from their curves. Log the page of the run (`run_page`) and the config. At
    the end, mark the run as finished. Other loggers get the page and the full config.
    """

    def __init__(self, *, names: Sequence[str]) -> None:
        self.names = names

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        run_dir = Path(trainer.default_root_dir)
        typed = typed_options(run_dir / "result.json")
        names = [
            name for name in self.names if name.removesuffix(".name") not in typed
        ]  # backbone=X implies backbone.name
        row = flat_values(pl_module.config, [*names, *typed])
        row |= {
            name: value for name, value in typed.items() if name not in row
        }  # a choice of a group
        images = len(trainer.datamodule.train_index)  # type: ignore[attr-defined]
        if row.get("data.train_images") != images:  # the same number in one column only
            row["train_images"] = images
        page = run_page(run_dir / "result.json", pl_module.config)
        for board in boards(trainer):
            board.page("about", page, trainer.global_step)
        config = json.dumps(pl_module.config, indent=2, default=str)
        for writer in tensorboard_writers(trainer):
            writer.add_text("config", textwrap.indent(config, "    "))  # markdown: code
            for summary in (table_summary(row, varying(run_dir.name, row)), row_summary(row)):
                writer.file_writer.add_summary(summary)
            writer.flush()
        for logger in trainer.loggers:
            if not isinstance(logger, TensorBoardLogger):  # it would write its own table
                logger.log_hyperparams(pl_module.config)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        for writer in tensorboard_writers(trainer):
            end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS)
            writer.file_writer.add_summary(
                _summary(metadata.SESSION_END_INFO_TAG, session_end_info=end)
            )
            writer.flush()


class ScalarLayout(Callback):
    """At the start of training: CHARTS, for TensorBoard's CUSTOM SCALARS tab."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        layout = {
            category: {title: ["Multiline", list(curves)] for title, curves in charts.items()}
            for category, charts in CHARTS.items()
        }
        for writer in tensorboard_writers(trainer):
            writer.add_custom_scalars(layout)
            writer.flush()


def typed_options(file: Path) -> dict[str, Value]:
    """The overrides in result.json that can change the result; empty without the file."""
    overrides = read_result(file).overrides if file.is_file() else []
    pairs = (text.lstrip("+").partition("=") for text in overrides if not text.startswith("~"))
    return {name: _value(value) for name, _, value in pairs if not name.startswith(MEANS)}


def varying(folder: str, names: Iterable[str]) -> set[str]:
    """The `names` in the folder name of a sweep's job, NAME=VALUE,NAME=VALUE. The last part of a
    dotted name is enough.
    """
    message = {part.partition("=")[0] for part in folder.split(",") if "=" in part}
    return {name for name in names if not message.isdisjoint({name, name.rpartition(".")[2]})}


def _value(text: str) -> Value:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


def flat_values(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Value]:
    """The values of the dotted `names` in `config` as TensorBoard accepts them: a list becomes
    text. Groups of options are omitted.
    """
    values: dict[str, Value] = {}
    for name in names:
        node: Any = config
        for key in name.split("."):
            node = node.get(key) if isinstance(node, Mapping) else None
        if node is not None and not isinstance(node, Mapping):
            values[name] = node if isinstance(node, (int, float, str, bool)) else str(node)
    return values


def table_summary(row: Mapping[str, Value], varies: Container[str]) -> Summary:
    """The columns of the table. TensorBoard reads them from one of the shown runs. Columns that
    vary come first.
    """
    kinds: dict[type, Any] = {bool: api_pb2.DATA_TYPE_BOOL, str: api_pb2.DATA_TYPE_STRING}
    columns = [
        api_pb2.HParamInfo(
            name=name,
            type=kinds.get(type(value), api_pb2.DATA_TYPE_FLOAT64),
            differs=name in varies,
        )
        for name, value in row.items()
    ]
    metrics = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=name)) for name in METRICS]
    return _summary(
        metadata.EXPERIMENT_TAG,
        experiment=api_pb2.Experiment(hparam_infos=columns, metric_infos=metrics),
    )


def row_summary(row: Mapping[str, Value]) -> Summary:
    """The table row of a run."""
    start = plugin_data_pb2.SessionStartInfo()
    for name, value in row.items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        setattr(start.hparams[name], kind, value)
    return _summary(metadata.SESSION_START_INFO_TAG, session_start_info=start)


def _summary(tag: str, **content: Any) -> Summary:
    described = metadata.create_summary_metadata(plugin_data_pb2.HParamsPluginData(**content))
    return Summary(value=[Summary.Value(tag=tag, metadata=described, tensor=metadata.NULL_TENSOR)])
