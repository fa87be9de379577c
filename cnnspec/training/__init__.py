"""Train and test networks by the recipe of their spec.

This package needs the extra `train`. It imports torch on first use.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from cnnspec.diagnostics import failure

if TYPE_CHECKING:
    from cnnspec.training.comparison.compare import Comparison, compare
    from cnnspec.training.loop.evaluate import evaluate
    from cnnspec.training.runs.options import Result, TrainOptions
    from cnnspec.training.runs.plan import plan
    from cnnspec.training.runs.train import train
    from cnnspec.training.sweeps.sweep import SweepOptions, SweepResult, sweep

_MODULES = {
    "compare": "comparison.compare",
    "Comparison": "comparison.compare",
    "evaluate": "loop.evaluate",
    "plan": "runs.plan",
    "Result": "runs.options",
    "sweep": "sweeps.sweep",
    "SweepOptions": "sweeps.sweep",
    "SweepResult": "sweeps.sweep",
    "TrainOptions": "runs.options",
    "train": "runs.train",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if "torch" not in sys.modules:
        # OpenMP reads this once. By default, waiting threads spin for so long that a step next to other work takes up
        # to ten times as long. On an idle machine the setting makes no difference.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cnnspec"):
            raise
        what, extra = ("a sweep", "sweep") if error.name == "optuna" else ("training", "train")
        raise failure(
            "E0507",
            f"{what} needs `{error.name}`, which is not installed",
            help=f"install what {what} needs with `pip install 'cnnspec[{extra}]'`",
        ) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Comparison",
    "Result",
    "SweepOptions",
    "SweepResult",
    "TrainOptions",
    "compare",
    "evaluate",
    "plan",
    "sweep",
    "train",
]
