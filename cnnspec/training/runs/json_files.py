"""Read and write the JSON files of runs and comparisons, which contain the version of their format, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnnspec.diagnostics import failure
from cnnspec.ir import Model

FORMAT_VERSION = 1
"""The version of `result.json`, `model.json` and `comparison.json`. A change that readers notice increments it."""


def with_version(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the contents of a file with the version first."""
    return {"format_version": FORMAT_VERSION, **values}


def read_result(folder: Path, name: str = "result.json") -> dict[str, Any]:
    """Read the `result.json` of a run, or another JSON file.

    The result is empty if the file cannot be read or has no version, because then cnnspec did not write it.

    Raises:
        CnnspecError: E0506 if the file has another version.
    """
    try:
        values = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(values, dict) or "format_version" not in values:
        return {}
    _check_version(values, folder / name)
    return values


def model_to_json(model: Model) -> str:
    """Return the contents of `model.json`."""
    return json.dumps(with_version(model.model_dump(mode="json")), indent=2)


def model_from_json(text: str, path: Path | None = None) -> Model:
    """Parse the contents of `model.json`.

    Args:
        text: The contents.
        path: The file, for error messages.

    Raises:
        CnnspecError: E0506 if the file has another version.
        ValueError: The file is damaged.
    """
    values = json.loads(text)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    _check_version(values, path)
    return Model.model_validate_json(json.dumps({k: v for k, v in values.items() if k != "format_version"}))


def _check_version(values: Mapping[str, Any], path: Path | None) -> None:
    version = values.get("format_version")
    if version != FORMAT_VERSION:
        found = "no format version" if version is None else f"format version {version}"
        raise failure(
            "E0506",
            f"unsupported file format: expected format version {FORMAT_VERSION}, found {found}",
            file=None if path is None else str(path),
            help="use the version of cnnspec that wrote the file, or move the run folder elsewhere",
        )
