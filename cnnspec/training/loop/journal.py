"""Record the metrics of a run in `metrics.csv` and `metrics.jsonl`, exactly over interruptions.

A checkpoint stores the lengths of both files. A resumed run truncates them to these lengths and writes the following
rows again. In the end, they are byte for byte those of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

COLUMNS = ("step", "epoch", "lr", "loss", "train_loss", "train_acc", "val_loss", "val_acc")


class Journal:
    """The metric files of a run.

    Args:
        folder: The folder of the run.
        lengths: The lengths to truncate the files to, in bytes. With None, they start empty.
    """

    def __init__(self, folder: Path, lengths: dict[str, int] | None = None) -> None:
        self._files = {name: (folder / name) for name in ("metrics.csv", "metrics.jsonl")}
        for name, path in self._files.items():
            length = (lengths or {}).get(name, 0)
            with path.open("ab") as file:
                file.truncate(min(length, path.stat().st_size))
        self._csv, self._lines = (path.open("ab") for path in self._files.values())
        if not self._files["metrics.csv"].stat().st_size:
            self._csv.write((",".join(COLUMNS) + "\n").encode())

    def write(self, **values: float | int) -> None:
        """Append a row. Missing values stay empty."""
        self._csv.write((",".join(f"{values[name]!r}" if name in values else "" for name in COLUMNS) + "\n").encode())
        self._lines.write((json.dumps(values) + "\n").encode())

    def lengths(self) -> dict[str, int]:
        """Sync the files to disk and return their lengths."""
        for file in (self._csv, self._lines):
            file.flush()
            os.fsync(file.fileno())
        return {name: path.stat().st_size for name, path in self._files.items()}

    def close(self) -> None:
        self._csv.close()
        self._lines.close()


def read_journal(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a run."""
    path = folder / "metrics.jsonl"
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)
