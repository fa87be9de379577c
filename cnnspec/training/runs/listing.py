"""The runs in a folder, with their state and result; needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None


def hold(folder: Path) -> Any:
    """Keep other processes out of a folder until the file that is given back is closed.

    Raises:
        BlockingIOError: Another process has it.
        OSError: It cannot be written.
    """
    file = (folder / ".lock").open("w")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise BlockingIOError(*error.args) from None
    return file


def held(folder: Path) -> bool:
    """Whether a process has a run in its hands."""
    try:
        file = (folder / ".lock").open("r")
    except OSError:
        return False
    with file:
        if fcntl is None:
            return False
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False


def read_result(folder: Path, name: str = "result.json") -> dict[str, Any]:
    """What the `result.json` of a run says, or another such file; nothing if it cannot be read."""
    try:
        result = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return result if isinstance(result, dict) else {}


def list_runs(out: Path) -> list[dict[str, Any]]:
    """Every run under a folder, by network and number, as plain data.

    A run that says it is running and is in no process's hands was killed.
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
                "state": "killed" if state == "running" and not held(path.parent) else state,
                **{name: result.get(name) for name in names},
            }
        )
    return found
