"""Test that every failed write ends in an error that names the file, and that the run then resumes to the same bits."""

from __future__ import annotations

import errno
import io
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.write_faults import FAULTS, Call, Injector, disturb, disturb_report, sample, trials

from cnnspec.files import write_atomically

pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")


def ignore(line: str) -> None:
    pass


def test_failed_and_killed_writes_of_each_kind(tmp_path: Path):
    def chosen(calls: list[Call]) -> Iterator[tuple[int, str]]:
        assert {call.kind for call in calls} >= {
            "open",
            "write",
            "fsync",
            "close",
            "replace",
            "link",
            "mkdir",
            "truncate",
        }
        assert {".png", ".csv", ".jsonl", ".json", ".cnn", ".ckpt", ".safetensors", ".gz", ".yaml"} <= {
            Path(call.name).suffix for call in calls
        }
        yield from zip(sample(calls, 20), itertools.cycle(FAULTS), strict=False)

    done = disturb(tmp_path, chosen, ignore)
    assert done.faults == []
    assert sum(done.ends.values()) >= 20
    assert min(done.ends["KILL: killed"], done.ends["FULL: error"]) >= 3


@pytest.mark.slow
def test_many_failed_and_killed_writes(tmp_path: Path):
    (tmp_path / "runs").mkdir()
    done = disturb(tmp_path / "runs", lambda calls: trials(calls, FAULTS, every=4), ignore)
    assert done.faults == []
    (tmp_path / "report").mkdir()
    assert disturb_report(tmp_path / "report", FAULTS, ignore).faults == []


def test_the_injector_lets_exactly_one_call_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Check the harness itself: a fault that is not injected would be taken for one that is survived."""
    for name in ("replace", "rename", "link", "mkdir", "unlink", "truncate", "fsync"):
        monkeypatch.setattr(os, name, getattr(os, name))
    monkeypatch.setattr(io, "open", io.open)
    monkeypatch.setattr("builtins.open", open)
    record = os.open(os.devnull, os.O_WRONLY)
    originals: list[Callable[..., object]] = [io.open, os.replace, os.fsync]
    counts = []
    for number in range(1, 7):
        io.open, os.replace, os.fsync = originals  # type: ignore[assignment]
        Injector(tmp_path, number, "EIO", record).install()
        path = tmp_path / f"{number}"
        with pytest.raises(OSError, match="Input/output error") as error:
            write_atomically(path, b"content")
        assert error.value.errno == errno.EIO
        assert Path(error.value.filename).name == path.name
        counts.append(path.exists())
    assert counts == [False] * 5 + [True]  # open, write, fsync, close, rename, and the sync of the folder
    os.close(record)
