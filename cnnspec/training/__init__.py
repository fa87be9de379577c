"""Training and testing by a spec's recipe; needs the extra `train`, and imports torch when it is first used."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from cnnspec.diagnostics import failure

if TYPE_CHECKING:
    from cnnspec.training.options import Result, TrainOptions
    from cnnspec.training.planning import plan
    from cnnspec.training.run import train
    from cnnspec.training.scoring import evaluate

_HOMES = {
    "evaluate": "scoring",
    "plan": "planning",
    "Result": "options",
    "TrainOptions": "options",
    "train": "run",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "torch" not in sys.modules:
        # OpenMP reads this once. Threads that wait for each other otherwise hold on to the processor for so long
        # that a step beside other work takes up to ten times as long; alone it makes no difference.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cnnspec"):
            raise
        raise failure(
            "E0507",
            f"training needs `{error.name}`, which is not installed",
            help="install what training needs with `pip install 'cnnspec[train]'`",
        ) from None


__all__ = ["Result", "TrainOptions", "evaluate", "plan", "train"]
