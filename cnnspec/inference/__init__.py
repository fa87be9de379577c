"""Use trained networks: read them from their runs and weights, and classify images.

This package needs the extra `train`. It imports torch on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnnspec.exports import lazy_exports
from cnnspec.training import require_extra

if TYPE_CHECKING:
    from cnnspec.inference.export import Export, export_network
    from cnnspec.inference.network import Prediction, TrainedNetwork, load_run

__all__ = ["Export", "Prediction", "TrainedNetwork", "export_network", "load_run"]

_load, __dir__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("Export", "export_network"), "cnnspec.inference.export"),
        **dict.fromkeys(("Prediction", "TrainedNetwork", "load_run"), "cnnspec.inference.network"),
    },
)


def __getattr__(name: str) -> Any:
    return require_extra("inference", _load, name)
