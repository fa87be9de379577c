"""Output of the commands: diagnostics, JSON and the console of rich."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from cnnspec.diagnostics import render


def print_diagnostics(diagnostics: Any) -> None:
    color = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print("\n\n".join(render(diagnostic, color=color) for diagnostic in diagnostics), file=sys.stderr)


def print_json(data: Any) -> None:
    print(json.dumps(data, indent=2, default=str))


def make_console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(width=None if stream.isatty() else 120, highlight=False, stderr=stderr)
