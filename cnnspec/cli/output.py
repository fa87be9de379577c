"""Output of the commands: diagnostics, JSON and the console of rich."""

from __future__ import annotations

import json
import os
import sys
from json.encoder import encode_basestring_ascii
from typing import Any

from cnnspec.diagnostics import render


def print_diagnostics(diagnostics: Any) -> None:
    color = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print("\n\n".join(render(diagnostic, color=color) for diagnostic in diagnostics), file=sys.stderr)


def print_json(data: Any) -> None:
    print(json_text(data))


def json_text(data: Any, newline: str = "\n") -> str:
    """Return the same as `json.dumps(data, indent=2, default=str)`, which takes twice as long."""
    kind = type(data)
    if kind is str:
        return encode_basestring_ascii(data)
    if kind is int:
        return str(data)
    inner = f"{newline}  "
    if kind is dict and {*map(type, data)} <= {str}:
        items = [f"{encode_basestring_ascii(key)}: {json_text(value, inner)}" for key, value in data.items()]
        return f"{{{inner}{f',{inner}'.join(items)}{newline}}}" if items else "{}"
    if kind is list or kind is tuple:
        items = [json_text(value, inner) for value in data]
        return f"[{inner}{f',{inner}'.join(items)}{newline}]" if items else "[]"
    if data is None or isinstance(data, (bool, float, int)):
        return json.dumps(data)
    if isinstance(data, (str, dict, list, tuple)):
        return json.dumps(data, indent=2, default=str).replace("\n", newline)
    return encode_basestring_ascii(str(data))


def make_console(*, stderr: bool = False) -> Any:
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(width=None if stream.isatty() else 120, highlight=False, stderr=stderr)
