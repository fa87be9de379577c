"""List the runs in a folder with their state and result, without torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cnnspec.diagnostics import CnnspecError, html_table
from cnnspec.training.data.locks import LOCK, is_locked
from cnnspec.training.runs.json_files import is_unsupported, read_result

FIGURES = ("data", "epochs", "steps", "best_epoch", "val_acc", "test_acc", "seconds", "seed")


def list_runs(out: Path) -> list[dict[str, Any]]:
    """List all runs under a folder by network and number, also those of comparisons and sweeps, as plain data.

    A run with the state `running` that no process has locked was killed. A run whose files have another format version
    has the state `unsupported`, and one whose files are damaged `unreadable`; `reason` says why.
    """
    # `runs/NAME/1`, `comparisons/NAMES/runs/NAME/1`, `sweeps/NAME/trials/1/NAME/1`, and from their subfolders
    patterns = ("/".join("*" * depth) for depth in range(2, 6))
    paths = [path for pattern in patterns for path in out.glob(pattern) if os.path.lexists(path / "result.json")]
    return [_describe(path) for path in sorted(paths, key=lambda path: (*path.parts[:-1], path.name.zfill(9)))]


def _describe(folder: Path) -> dict[str, Any]:
    reason = None
    try:
        result = read_result(folder) or {"state": "unreadable"}
    except CnnspecError as error:
        result = {"state": "unsupported" if is_unsupported(folder) else "unreadable"}
        reason = "; ".join([error.diagnostics[0].message, *error.diagnostics[0].notes])
    state = str(result.get("state", "unknown"))
    return {
        "folder": str(folder),
        "network": result.get("network") or folder.parts[-2],
        "state": "killed" if state == "running" and not is_locked(folder / LOCK) else state,
        "reason": reason,
        **{name: result.get(name) for name in FIGURES},
    }


def run_table(result: Mapping[str, Any], folder: str, state: str) -> str:
    """Return the contents of a `result.json` as a table for notebooks.

    Args:
        result: The contents.
        folder: The folder of the run.
        state: The state of the run.
    """
    rows = [("network", str(result.get("network") or "")), ("state", state)]
    for name in FIGURES:
        value = result.get(name)
        if value is None:
            continue
        text = f"{value:.2%}" if name.endswith("_acc") else f"{value:,.1f}" if name == "seconds" else str(value)
        rows.append((name.replace("_acc", " acc").replace("_", " "), text))
    error = result.get("error")
    if error:
        rows.append(("error", ": ".join(str(error[name]) for name in ("code", "message") if error.get(name))))
    return html_table(("run", folder), rows)
