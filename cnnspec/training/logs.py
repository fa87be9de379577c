"""Where a run's numbers are logged, and how Lightning is kept from saying more than was asked."""

from __future__ import annotations

import csv
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger

from cnnspec.ir import Graph
from cnnspec.training.task import Task


def make_loggers(folder: Path) -> list[CSVLogger | TensorBoardLogger]:
    """`metrics.csv` and TensorBoard's events in a run's folder."""
    return [
        CSVLogger(folder, name="", version=""),
        TensorBoardLogger(folder, name="", version="tensorboard", default_hp_metric=False),
    ]


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


def read_rows(path: Path, checkpoint: Path) -> list[dict[str, Any]]:
    """What was logged up to a checkpoint; the logger begins its file anew, and the rest happens again."""
    done = torch.load(checkpoint, map_location="cpu", weights_only=True)["global_step"]
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file) if int(row["step"]) < done]
    except (OSError, KeyError, ValueError):
        return []


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
