"""List the runs in a folder with their state and result, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cnnspec.diagnostics import CnnspecError
from cnnspec.training.runs.json_files import read_result
from cnnspec.training.runs.locks import LOCK, is_locked


def list_runs(out: Path) -> list[dict[str, Any]]:
    """List all runs under a folder by network and number, as plain data.

    A run with the state `running` that no process has locked was killed. A run whose files have another format version
    has the state `unsupported`.
    """
    found: list[dict[str, Any]] = []
    for path in sorted(out.glob("*/*/result.json"), key=lambda p: (p.parts[-3], p.parts[-2].zfill(9))):
        try:
            result = read_result(path.parent)
        except CnnspecError:
            result = {"state": "unsupported", "network": path.parts[-3]}
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
