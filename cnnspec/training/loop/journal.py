"""The numbers of a run as lines: `metrics.csv` and `metrics.jsonl`, exact over interruptions.

A checkpoint holds how long both files were. A run that goes on cuts them there and writes what happens again, so
that in the end they are, byte for byte, those of a run that was never interrupted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "lr", "loss", "train_loss", "train_acc", "val_loss", "val_acc")


class Journal:
    """Both files of a run.

    Args:
        folder: The run's.
        lengths: Bytes of each file that are kept; none to begin anew.
    """

    def __init__(self, folder: Path, lengths: dict[str, int] | None = None) -> None:
        self._files = {name: (folder / name) for name in ("metrics.csv", "metrics.jsonl")}
        for name, path in self._files.items():
            kept = (lengths or {}).get(name, 0)
            with path.open("ab") as file:
                file.truncate(min(kept, path.stat().st_size))
        self._csv, self._lines = (path.open("ab") for path in self._files.values())
        if not self._files["metrics.csv"].stat().st_size:
            self._csv.write((",".join(COLUMNS) + "\n").encode())

    def write(self, **values: float | int) -> None:
        """Add a row; what is not given stays empty."""
        self._csv.write((",".join(f"{values[name]!r}" if name in values else "" for name in COLUMNS) + "\n").encode())
        self._lines.write((json.dumps(values) + "\n").encode())

    def lengths(self) -> dict[str, int]:
        """How long the files are, with everything brought to the disk."""
        for file in (self._csv, self._lines):
            file.flush()
            os.fsync(file.fileno())
        return {name: path.stat().st_size for name, path in self._files.items()}

    def close(self) -> None:
        self._csv.close()
        self._lines.close()


def read_journal(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows that were written."""
    path = folder / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
