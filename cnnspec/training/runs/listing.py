"""List the runs in a folder with their state and result, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cnnspec.training.runs.locks import LOCK, is_locked


def read_result(folder: Path, name: str = "result.json") -> dict[str, Any]:
    """Read the `result.json` of a run, or another JSON file. The result is empty if it cannot be read."""
    try:
        result = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def list_runs(out: Path) -> list[dict[str, Any]]:
    """List all runs under a folder by network and number, as plain data.

    A run with the state `running` that no process has locked was killed.
    """
    found: list[dict[str, Any]] = []
    for path in sorted(out.glob("*/*/result.json"), key=lambda p: (p.parts[-3], p.parts[-2].zfill(9))):
        result = read_result(path.parent)
        if not result:
            continue
        state = str(result.get("state", "unknown"))
        names = ("data", "epochs", "steps", "best_epoch", "val_acc", "test_acc", "seconds", "seed")
        found.append(
            {
                "folder": str(path.parent),
                "network": result.get("network"),
                "state": "killed" if state == "running" and not is_locked(path.parent / LOCK) else state,
                **{name: result.get(name) for name in names},
            }
        )
    return found
