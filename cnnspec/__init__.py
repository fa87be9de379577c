"""A declarative compiler for convolutional networks, from text to a checked graph, a torch module and training.

`load`, `loads`, `check`, `format` and `draw` work without torch. `build` and `load_run` import it when they are used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnnspec.exports import lazy_exports

if TYPE_CHECKING:
    from cnnspec.analysis.summary import largest_batch, summarize
    from cnnspec.api import build, check, draw, format, load, loads
    from cnnspec.diagnostics import CnnspecError, Diagnostic, Edit, Fix
    from cnnspec.inference import load_run
    from cnnspec.ir import Graph, Model

__version__ = "0.1.0"
LANGUAGE_VERSION = 1
"""Version of the `.cnn` language; docs/reference/language/version.md has the policy for changes."""

__all__ = [
    "LANGUAGE_VERSION",
    "CnnspecError",
    "Diagnostic",
    "Edit",
    "Fix",
    "Graph",
    "Model",
    "build",
    "check",
    "draw",
    "format",
    "largest_batch",
    "load",
    "load_run",
    "loads",
    "summarize",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        **dict.fromkeys(("build", "check", "draw", "format", "load", "loads"), "cnnspec.api"),
        **dict.fromkeys(("CnnspecError", "Diagnostic", "Edit", "Fix"), "cnnspec.diagnostics"),
        **dict.fromkeys(("Graph", "Model"), "cnnspec.ir"),
        "load_ipython_extension": "cnnspec.notebook",
        "load_run": "cnnspec.inference",
        **dict.fromkeys(("largest_batch", "summarize"), "cnnspec.analysis.summary"),
    },
)
