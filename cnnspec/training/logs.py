"""Where a run's numbers are logged, and how Lightning is kept from saying more than was asked."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from cnnspec.diagnostics import failure
from cnnspec.ir import Graph
from cnnspec.training.task import Task

LOGGERS = ("tensorboard", "wandb", "mlflow")
"""What `--log` knows; the first is always there."""


def make_loggers(folder: Path, names: Sequence[str] = (), step: int = 0) -> list[Logger]:
    """TensorBoard's events in a run's folder, and what else was asked for.

    Args:
        folder: The run's.
        names: Of `LOGGERS`.
        step: What TensorBoard has seen behind it is forgotten.

    Raises:
        CnnspecError: E0507 if a logger is not installed, E0510 if there is none of that name.
    """
    made: list[Logger] = [
        TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False, purge_step=step + 1)
    ]
    for name in names:
        if name not in LOGGERS:
            raise failure("E0510", f"there is no logger `{name}`", help=f"there are {', '.join(LOGGERS)}")
        try:
            if name == "wandb":
                made.append(WandbLogger(name="-".join(folder.parts[-2:]), save_dir=folder, project="cnnspec"))
            elif name == "mlflow":
                made.append(
                    MLFlowLogger("cnnspec", run_name="-".join(folder.parts[-2:]), save_dir=str(folder / "mlruns"))
                )
        except ModuleNotFoundError as error:
            raise failure(
                "E0507", f"`--log {name}` needs `{error.name or name}`, which is not installed",
                help=f"install it with `pip install {name}`",
            ) from None  # fmt: skip
    return made


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
