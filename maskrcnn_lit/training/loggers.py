"""Loggers: metrics.csv, Weights & Biases, MLflow and Trackio; and rewinding them when a run
resumes from a checkpoint.
"""

import csv
import io
import os
import secrets
import socket
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from maskrcnn_lit.errors import UserError
from maskrcnn_lit.storage.files import atomic_write, errors_with_path, locked
from maskrcnn_lit.storage.packages import import_package
from maskrcnn_lit.training.ranks import is_rank_zero

CONNECT_SECONDS = 10.0  # until a tracking server must answer


class CsvLogger(Logger):
    """Writes one table: a row for every log call, a column for every name; missing values are
    empty.

    `step` counts finished optimizer steps from 0, as in TensorBoard. Rows are appended and flushed
    at once; the file is rewritten atomically when a new name appears. (Lightning's CSVLogger
    chooses its own folders, and deletes the file that a resumed run should append to.)
    """

    def __init__(self, *, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] = []

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the config is in the run folder."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"step": step, **metrics}
        new = [name for name in row if name not in self._columns]
        if new:
            rows = self._read()
            self._columns += [name for name in new if name not in self._columns]
            self._write(rows)
        with errors_with_path(self.path), open(self.path, "a", newline="") as file:
            csv.DictWriter(file, self._columns, lineterminator="\n").writerow(row)

    @rank_zero_only
    def rewind(self, step: int) -> None:
        """Drop the rows of `step` and later."""
        if self.path.is_file():
            try:
                before = [row for row in self._read() if int(row["step"]) < step]
            except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
                raise UserError(
                    f"{self.path} is damaged ({error}): restore it from a copy, or move it away to "
                    "continue with a new one"
                ) from None
            self._write(before)

    def _read(self) -> list[dict[str, str]]:
        """The rows so far, without an incomplete last line."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        reader = csv.DictReader(line for line in lines if line.endswith("\n"))
        rows = list(reader)
        self._columns = list(reader.fieldnames or ())
        return rows

    def _write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        atomic_write(self.path, text.getvalue())


EVENTS = "events.out.tfevents.*"  # TensorBoard's files


class RunTensorBoardLogger(TensorBoardLogger):
    """One that writes events alone: the run folder holds the config, which Lightning would write
    into it once more.
    """

    @rank_zero_only
    def save(self) -> None:
        self.experiment.flush()


def tensorboard_logger(*, run_dir: str | Path) -> TensorBoardLogger:
    """TensorBoard's curves, in files of the run folder itself: TensorBoard names a run by the
    folder of its files. A run that has them in RUN/tensorboard, as older ones do, goes on there.
    """
    folder = "tensorboard" if Path(run_dir, "tensorboard").is_dir() else ""
    return RunTensorBoardLogger(run_dir, name=folder, version="", default_hp_metric=False)


def wandb_logger(*, run_dir: str | Path, project: str) -> Logger:
    """A Weights & Biases logger. The run has the name of its folder, and resuming continues it.
    WANDB_MODE=offline stores it in the folder only. On other ranks than zero it logs nothing.
    UserError: the package is not installed.
    """
    if not is_rank_zero():
        return DummyLogger()
    file = Path(run_dir) / "wandb_id"
    # `wandb agent` knows the run by the number that it chose
    chosen = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
    number = file.read_text() if file.is_file() else chosen or secrets.token_hex(4)
    try:
        logger = WandbLogger(name=Path(run_dir).name, project=project, save_dir=run_dir, id=number)
    except ModuleNotFoundError as error:
        raise UserError(
            "logger=wandb needs a package that is not installed: pip install 'maskrcnn_lit[wandb]'"
        ) from error
    _check_wandb_key()
    atomic_write(file, number)
    return logger


def _check_wandb_key() -> None:
    """Raise UserError without an API key: wandb would ask for one, or fail at the first logged
    number.
    """
    if os.environ.get("WANDB_MODE", "online") == "online" and not _wandb_key():
        raise UserError(
            "logger=wandb has no API key: run `wandb login` first, or keep the run in its folder "
            "with WANDB_MODE=offline"
        )


def _wandb_key() -> str | None:
    """The API key of the environment or of `wandb login`; a dummy text if wandb is not installed,
    which WandbLogger reports.
    """
    try:
        import wandb
    except ImportError:
        return "not installed"
    return wandb.api.api_key


def _check_server(uri: str) -> None:
    """Raise UserError if the MLflow server does not answer; MLflow itself would retry for
    minutes.
    """
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        socket.create_connection((parts.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"the MLflow server {uri} does not answer ({error}): start it, give another "
            "logger.mlflow.tracking_uri, or leave out logger=mlflow"
        ) from error


class OnceConfiguredMLFlowLogger(MLFlowLogger):
    """An MLflow logger that logs the config only once: MLflow rejects changed values, and a resumed
    run may have moved.
    """

    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        if not self.experiment.get_run(self.run_id).data.params:
            super().log_hyperparams(params)


def mlflow_logger(*, run_dir: str | Path, experiment: str, tracking_uri: str | None) -> Logger:
    """MLflow, as `wandb_logger`. tracking_uri None: MLFLOW_TRACKING_URI, or the file mlflow.db of
    the working directory.
    """
    if not is_rank_zero():
        return DummyLogger()
    where = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    _check_server(where)
    path = where.removeprefix("sqlite:///")
    one_at_a_time = (
        locked(Path(f"{path}.lock")) if path != where else nullcontext()
    )  # else parallel jobs create the tables twice
    file, name = Path(run_dir) / "mlflow_run_id", Path(run_dir).name
    known = file.read_text() if file.is_file() else None
    try:
        with one_at_a_time:
            logger = OnceConfiguredMLFlowLogger(
                experiment_name=experiment, run_name=name, tracking_uri=where, run_id=known
            )
            number = logger.run_id  # this creates the run
    except ModuleNotFoundError as error:
        raise UserError(
            "logger=mlflow needs a package that is not installed: pip install "
            "'maskrcnn_lit[mlflow]'"
        ) from error
    atomic_write(file, str(number))
    return logger


class TrackioLogger(Logger):
    """A run of Trackio (https://github.com/gradio-app/trackio), which stores it in the folder
    TRACKIO_DIR of this machine. Trackio ends it with the process: a validation may come after the
    training.
    """

    def __init__(self, run: Any) -> None:
        super().__init__()
        self.run = run

    @property
    def name(self) -> str:
        return str(self.run.project)

    @property
    def version(self) -> str:
        return str(self.run.name)

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.run.config.update(params)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log(dict(metrics), step=step)


def trackio_logger(*, run_dir: str | Path, project: str) -> Logger:
    """Trackio, as `wandb_logger`. A run is grouped with those beside its folder.

    Raises: UserError: the package is not installed.
    """
    if not is_rank_zero():
        return DummyLogger()
    trackio = import_package("trackio", "trackio", "logger=trackio")
    folder, file = Path(run_dir).absolute(), Path(run_dir) / "trackio_name"
    # Trackio continues a run by its name, and folders of several sweeps may have the same.
    name = file.read_text() if file.is_file() else f"{folder.name} {secrets.token_hex(2)}"
    resume = "allow" if file.is_file() else "never"
    run = trackio.init(
        project, name=name, group=folder.parent.name or None, resume=resume, embed=False
    )
    atomic_write(file, name)
    return TrackioLogger(run)


@rank_zero_only
def rewind(loggers: Iterable[Logger], step: int) -> None:
    """Remove the values that `loggers` logged for `step` (0 is the first) and later."""
    for logger in loggers:
        if isinstance(logger, CsvLogger):
            logger.rewind(step)
        elif isinstance(logger, TensorBoardLogger):
            # TensorBoard drops values of this step and later when it reads the restart marker.
            restart = SessionLog(status=SessionLog.START)
            logger.experiment.file_writer.add_event(Event(step=step, session_log=restart))
            logger.experiment.flush()
