"""Where a run's numbers are logged, and how Lightning is kept from saying more than was asked."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from cnnspec.diagnostics import failure
from cnnspec.ir import Graph
from cnnspec.training.loop.task import Task

LOGGERS = ("tensorboard", "wandb", "mlflow")
"""What `--log` knows; the first is always there."""


class Elsewhere(Logger):
    """Another program that takes the numbers of a run. What it refuses is said once, and the run goes on.

    Args:
        name: Of `LOGGERS`.
        logger: Lightning's, begun.
        say: Told if it refuses.
    """

    def __init__(self, name: str, logger: WandbLogger | MLFlowLogger, say: Callable[[str], None]) -> None:
        super().__init__()
        self._name, self._say = name, say
        self._logger: WandbLogger | MLFlowLogger | None = logger
        self._version = str(logger.version)

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        """What the run is called there."""
        return self._version

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self._try(lambda logger: logger.log_metrics(metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **options: Any) -> None:
        self._try(lambda logger: logger.log_hyperparams(params))

    def finalize(self, status: str) -> None:
        """End the run there; a second time does nothing."""

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
        except Exception as error:  # noqa: BLE001 - a server that is away, a disk that is full there
            self._logger = None
            self._say(f"{self._name} takes no more numbers: {' '.join(str(error).split())[:200]}")


def make_loggers(
    folder: Path,
    names: Sequence[str] = (),
    step: int = 0,
    known: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> list[Logger]:
    """TensorBoard's events in a run's folder, and what else was asked for.

    Args:
        folder: The run's.
        names: Of `LOGGERS`.
        step: What TensorBoard has seen behind it is forgotten.
        known: What a run that goes on is called elsewhere, by the name of the logger.
        say: Told what goes wrong later.

    Raises:
        CnnspecError: E0507 if a logger is not installed, E0510 if there is none of that name or it cannot begin.
    """
    made: list[Logger] = [
        TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False, purge_step=step + 1)
    ]
    for name in dict.fromkeys(names):
        if name not in LOGGERS:
            raise failure("E0510", f"there is no logger `{name}`", help=f"there are {', '.join(LOGGERS)}")
        if name == "tensorboard":
            continue
        try:
            made.append(Elsewhere(name, _begin(name, folder, (known or {}).get(name)), say))
        except ModuleNotFoundError as error:
            raise failure(
                "E0507", f"`--log {name}` needs `{error.name or name}`, which is not installed",
                help=f"install it with `pip install {name}`",
            ) from None  # fmt: skip
        except Exception as error:  # noqa: BLE001 - whatever another program does when it cannot begin
            raise failure(
                "E0510", f"`--log {name}` cannot begin", notes=[" ".join(str(error).split())[:300]],
                help=HELPS[name],
            ) from None  # fmt: skip
    return made


HELPS = {
    "wandb": "log in with `wandb login`, or keep the numbers in the run folder with `WANDB_MODE=offline`",
    "mlflow": "look at `MLFLOW_TRACKING_URI`; without it the numbers are kept in the run folder",
}


def _begin(name: str, folder: Path, known: str | None) -> WandbLogger | MLFlowLogger:
    """A logger with its run begun, or gone on with."""
    title = "-".join(folder.parts[-2:])
    logger: WandbLogger | MLFlowLogger
    if name == "wandb":
        project = os.environ.get("WANDB_PROJECT", "cnnspec")
        logger = WandbLogger(name=title, save_dir=folder, project=project, id=known)
    else:
        # The folder of files that Lightning takes without this is refused by mlflow from 3 on.
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        artifacts = None if "MLFLOW_TRACKING_URI" in os.environ else (folder.resolve() / "mlruns").as_uri()
        experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "cnnspec")
        logger = MLFlowLogger(experiment, title, place, artifact_location=artifacts, run_id=known)
    _ = logger.experiment
    return logger


def draw_graph(trainer: pl.Trainer, graph: Graph, task: Task) -> None:
    """Show TensorBoard the graph of the module. It traces the module, and no run fails because that does."""
    task.network.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_graph(task.network, torch.zeros(1, *graph.input_shape))
        except Exception as error:  # noqa: BLE001 - whatever tracing raises
            logging.getLogger(__name__).debug("no graph for TensorBoard: %s", error)
    task.network.train()


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's tips and its guesses at what might be meant."""
    loggers = [
        logging.getLogger(name)
        for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(pytorch_lightning|lightning_fabric|torch|torchmetrics)\b")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
