"""Record the metrics of a run in `metrics.csv` and `metrics.jsonl`, exactly over interruptions.

A checkpoint stores the lengths of both files. A resumed run truncates them to these lengths and writes the following
rows again. In the end, they are byte for byte those of an uninterrupted run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cnnspec.files import naming, open_regular, write_all
from cnnspec.limits import MAX_JOURNAL_BYTES

COLUMNS = ("step", "epoch", "lr", "loss", "train_loss", "train_acc", "val_loss", "val_acc")


class Journal:
    """The metric files of a run.

    Args:
        folder: The folder of the run.
        lengths: The lengths to truncate the files to, in bytes. With None, they start empty.
        changes: Rows on accepted changes. Those that are missing are appended to `metrics.jsonl`.
    """

    def __init__(
        self, folder: Path, lengths: dict[str, int] | None = None, changes: Iterable[Mapping[str, Any]] = ()
    ) -> None:
        self._paths = {name: (folder / name) for name in ("metrics.csv", "metrics.jsonl")}
        self._files: dict[str, Any] = {}
        for name, path in self._paths.items():
            with naming(path):
                self._files[name] = file = path.open("ab", buffering=0)
                file.truncate(min((lengths or {}).get(name, 0), path.stat().st_size))
        if not self._paths["metrics.csv"].stat().st_size:
            self._append("metrics.csv", ",".join(COLUMNS))
        recorded = [row for row in read_journal(folder) if "changes" in row]
        for row in changes:
            if row not in recorded:
                self._append("metrics.jsonl", json.dumps(row))

    def _append(self, name: str, line: str) -> None:
        with naming(self._paths[name]):
            write_all(self._files[name], f"{line}\n".encode())

    def write(self, **values: float | int) -> None:
        """Append a row. Missing values stay empty."""
        self._append("metrics.csv", ",".join(f"{values[name]!r}" if name in values else "" for name in COLUMNS))
        self._append("metrics.jsonl", json.dumps(values))

    def lengths(self) -> dict[str, int]:
        """Sync the files to disk and return their lengths."""
        for name, file in self._files.items():
            with naming(self._paths[name]):
                os.fsync(file.fileno())
        return {name: path.stat().st_size for name, path in self._paths.items()}

    def close(self) -> None:
        """Close the files. Closing again does nothing."""
        for name, file in self._files.items():
            with naming(self._paths[name]):
                file.close()


def read_journal(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a run."""
    with open_regular(folder / "metrics.jsonl", MAX_JOURNAL_BYTES, "E0506") as file:
        for line in file or ():
            yield json.loads(line)
