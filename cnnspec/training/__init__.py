"""Train and test networks by the recipe of their spec.

This package needs the extra `train`. It imports torch on first use.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cnnspec.diagnostics import failure
from cnnspec.exports import lazy_exports

if TYPE_CHECKING:
    from cnnspec.training.comparison.compare import Comparison, compare
    from cnnspec.training.data.records import Splits
    from cnnspec.training.loop.evaluate import evaluate
    from cnnspec.training.runs.options import Result, TrainOptions
    from cnnspec.training.runs.plan import plan
    from cnnspec.training.runs.train import train
    from cnnspec.training.sweeps.sweep import SweepOptions, SweepResult, sweep

__all__ = [
    "Comparison",
    "Result",
    "Splits",
    "SweepOptions",
    "SweepResult",
    "TrainOptions",
    "compare",
    "evaluate",
    "plan",
    "sweep",
    "train",
]

_load, __dir__ = lazy_exports(
    __name__,
    {
        "compare": "cnnspec.training.comparison.compare",
        "Comparison": "cnnspec.training.comparison.compare",
        "evaluate": "cnnspec.training.loop.evaluate",
        "plan": "cnnspec.training.runs.plan",
        "Result": "cnnspec.training.runs.options",
        "Splits": "cnnspec.training.data.records",
        "sweep": "cnnspec.training.sweeps.sweep",
        "SweepOptions": "cnnspec.training.sweeps.sweep",
        "SweepResult": "cnnspec.training.sweeps.sweep",
        "TrainOptions": "cnnspec.training.runs.options",
        "train": "cnnspec.training.runs.train",
    },
)


def require_extra(what: str, load: Callable[[str], Any], name: str) -> Any:
    """Import an export of a package that needs torch, and return it.

    Args:
        what: What the package does, for the error message.
        load: Imports an export by its name.
        name: The name.

    Raises:
        CnnspecError: E0507 if the extra is not installed.
    """
    if not name.startswith("_") and "torch" not in sys.modules:
        # OpenMP reads this once. By default, waiting threads spin for so long that a step next to other work takes up
        # to ten times as long. On an idle machine the setting makes no difference.
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        return load(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("cnnspec"):
            raise
        what, extra = ("a sweep", "sweep") if error.name in ("optuna", "sqlalchemy") else (what, "train")
        raise failure(
            "E0507",
            f"{what} requires `{error.name}`, which is not installed",
            help=f"install it with `pip install 'cnnspec[{extra}]'`",
        ) from None


def __getattr__(name: str) -> Any:
    return require_extra("training", _load, name)
