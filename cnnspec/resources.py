"""Where the shipped grammar, specs and data are: beside the package in a wheel, or in the checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource(folder: str, *parts: str) -> Path:
    """The path of a shipped file; in a wheel `grammar` and `specs` lie inside the package."""
    inside = _PACKAGE / folder
    return (inside if inside.exists() else _PACKAGE.parent / folder).joinpath(*parts)
