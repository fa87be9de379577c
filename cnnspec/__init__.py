"""A declarative compiler for convolutional networks: text, check, torch module, training.

`load`, `loads`, `check` and `format` need no torch; `build` imports it when it is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cnnspec.analysis.summary import largest_batch, summarise
    from cnnspec.api import build, check, format, load, loads
    from cnnspec.diagnostics import CnnspecError, Diagnostic, Edit, Fix
    from cnnspec.ir import Graph, Model

__version__ = "0.1.0"
__all__ = [
    "CnnspecError",
    "Diagnostic",
    "Edit",
    "Fix",
    "Graph",
    "Model",
    "build",
    "check",
    "format",
    "largest_batch",
    "load",
    "loads",
    "summarise",
]

_HOMES = {
    **dict.fromkeys(("build", "check", "format", "load", "loads"), "cnnspec.api"),
    **dict.fromkeys(("CnnspecError", "Diagnostic", "Edit", "Fix"), "cnnspec.diagnostics"),
    **dict.fromkeys(("Graph", "Model"), "cnnspec.ir"),
    **dict.fromkeys(("largest_batch", "summarise"), "cnnspec.analysis.summary"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'cnnspec' has no attribute {name!r}")
