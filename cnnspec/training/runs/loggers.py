"""Set up the loggers of a run, and silence Lightning's tips and warnings."""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import nn

from cnnspec.diagnostics import failure, one_line
from cnnspec.files import name_file, naming
from cnnspec.ir import Graph
from cnnspec.training.loop.task import Task

LOGGERS = ("tensorboard", "wandb", "mlflow")
"""The names that `--log` accepts. The first is always active."""


class ExternalLogger(Logger):
    """A wrapper of an external logger. If it fails, this is reported once and the run continues without it.

    Args:
        name: One of `LOGGERS`.
        logger: Lightning's logger, already started.
        log: Called with a message if the logger fails.
    """

    def __init__(self, name: str, logger: WandbLogger | MLFlowLogger, log: Callable[[str], None]) -> None:
        super().__init__()
        self._name, self._log = name, log
        self._logger: WandbLogger | MLFlowLogger | None = logger
        self._version = str(logger.version)

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        """The id of the run in the external program."""
        return self._version

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._try(lambda logger: logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **options: Any) -> None:
        self._try(lambda logger: logger.log_hyperparams(params))

    def finalize(self, status: str) -> None:
        """End the external run. Further calls do nothing."""

        def end(logger: WandbLogger | MLFlowLogger) -> None:
            logger.finalize(status)
            if isinstance(logger, WandbLogger):
                logger.experiment.finish(exit_code=int(status != "success"))

        self._try(end)
        self._logger = None

    def _try(self, action: Callable[[WandbLogger | MLFlowLogger], None]) -> None:
        if self._logger is None:
            return
        try:
            action(self._logger)
        except Exception as error:  # noqa: BLE001 - servers and disks fail in many ways
            self._logger = None
            self._log(f"logging to {self._name} failed and is disabled for this run: {one_line(error)}")


class EventLogger(TensorBoardLogger):
    """The TensorBoard logger of a run, whose errors name its file."""

    def __init__(self, folder: Path, step: int) -> None:
        super().__init__(folder, name="", version="tensorboard", default_hp_metric=False, purge_step=step + 1)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # the file may have been created by the call
            folder = Path(self.log_dir)
            name_file(error, max(folder.glob("events.out.*"), key=lambda path: path.name, default=folder))
            raise

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        with self._naming():
            super().log_metrics(metrics, step)

    def log_hyperparams(self, params: Any, *args: Any, **options: Any) -> None:
        with self._naming():
            super().log_hyperparams(params, *args, **options)

    def log_module(self, network: nn.Module, image: torch.Tensor) -> None:
        """Log the graph of a module. This traces it."""
        with self._naming():
            self.experiment.add_graph(network, image)

    def save(self) -> None:
        with self._naming():
            if self._experiment is not None:
                self.experiment.flush()  # its errors appear here
        with naming(Path(self.log_dir, self.NAME_HPARAMS_FILE)):
            super().save()

    def finalize(self, status: str) -> None:
        with self._naming():
            super().finalize(status)


def _ignore_event_writer(arguments: threading.ExceptHookArgs, previous: Callable[[Any], Any]) -> None:
    """Report an exception of a thread, unless TensorBoard raises it again in the main thread."""
    if type(arguments.thread).__name__ != "_AsyncWriterThread":
        previous(arguments)


def make_loggers(
    folder: Path,
    names: Sequence[str] = (),
    step: int = 0,
    run_ids: Mapping[str, str] | None = None,
    log: Callable[[str], None] = print,
) -> list[Logger]:
    """Create the TensorBoard logger of a run and the requested external loggers.

    Args:
        folder: The folder of the run.
        names: Names in `LOGGERS`.
        step: The step to resume from. TensorBoard discards later events.
        run_ids: The ids of a resumed run in external programs, by the name of the logger.
        log: Called with a message if a logger fails later.

    Raises:
        CnnspecError: E0507 if a logger is not installed, E0510 if the name is unknown or the logger cannot start.
    """
    loggers: list[Logger] = [EventLogger(folder, step)]
    for name in dict.fromkeys(names):
        if name not in LOGGERS:
            raise failure("E0510", f"unknown logger `{name}`", help=f"use one of {', '.join(LOGGERS)}")
        if name == "tensorboard":
            continue
        try:
            loggers.append(ExternalLogger(name, _start(name, folder, (run_ids or {}).get(name)), log))
        except ModuleNotFoundError as error:
            raise failure(
                "E0507", f"`--log {name}` requires `{error.name or name}`, which is not installed",
                help=f"install it with `pip install {name}`",
            ) from None  # fmt: skip
        except Exception as error:  # noqa: BLE001 - external programs fail in many ways
            raise failure(
                "E0510", f"cannot start the logger `{name}`", notes=[one_line(error, 300)],
                help=_HELP[name],
            ) from None  # fmt: skip
    return loggers


_HELP = {
    "wandb": "log in with `wandb login`, or store the metrics in the run folder with `WANDB_MODE=offline`",
    "mlflow": "check `MLFLOW_TRACKING_URI`, or unset it to store the metrics in the run folder",
}


def _start(name: str, folder: Path, run_ids: str | None) -> WandbLogger | MLFlowLogger:
    """Start a run in an external logger, or resume it."""
    title = "-".join(folder.parts[-2:])
    logger: WandbLogger | MLFlowLogger
    if name == "wandb":
        project = os.environ.get("WANDB_PROJECT", "cnnspec")
        logger = WandbLogger(name=title, save_dir=folder, project=project, id=run_ids)
    else:
        # mlflow 3 rejects the file store that is Lightning's default.
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        artifacts = None if "MLFLOW_TRACKING_URI" in os.environ else (folder.resolve() / "mlruns").as_uri()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cnnspec")
        logger = MLFlowLogger(experiment, title, place, artifact_location=artifacts, run_id=run_ids)
    _ = logger.experiment
    return logger


def draw_graph(trainer: pl.Trainer, graph: Graph, task: Task) -> None:
    """Log the graph of the module to TensorBoard. This traces the module, and a failure does not affect the run."""
    task.network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in trainer.loggers:
                if isinstance(logger, EventLogger):
                    logger.log_module(task.network, torch.zeros(1, *graph.input_shape))
        except OSError as error:
            if error.errno is not None:  # of the file; tracing raises others
                raise
        except Exception as error:  # noqa: BLE001 - tracing fails in many ways
            logging.getLogger(__name__).debug("no graph for TensorBoard: %s", error)
    task.network.train()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's tips and warnings."""
    loggers = [
        logging.getLogger(name)
        for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    hook = threading.excepthook
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch|torchmetrics)\b")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            threading.excepthook = lambda arguments: _ignore_event_writer(arguments, hook)
            yield
        finally:
            threading.excepthook = hook
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
