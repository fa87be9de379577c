"""Import every benchmark, and run that of GPUs for a few steps on the CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CNNSPEC_DATA": os.devnull}
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)


@pytest.mark.parametrize("parts", [["tutorial", "input"], ["syncs", "resnet50", "memory", "airbench"]])
def test_every_part_of_the_gpu_benchmark_runs(parts: list[str], tmp_path: Path):
    pytest.importorskip("torch")
    done = run("--cpu", "--quick", "--json", str(tmp_path / "gpu.json"), *parts)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert {row["part"] for row in rows} == {*parts}
    skipped = {row["part"] for row in rows if "skipped" in row["what"]}
    assert skipped == {*parts} & {"memory", "airbench"}
    assert all(row["ratio"] > 0 for row in rows if "ratio" in row)


def test_every_benchmark_finds_what_it_imports():
    pytest.importorskip("torch")
    names = sorted(path.stem for path in (ROOT / "benchmarks").glob("*.py"))
    command = [sys.executable, "-c", "; ".join(f"import {name}" for name in names)]
    path = os.pathsep.join([str(ROOT / "benchmarks"), str(ROOT)])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_an_unknown_part_is_an_error():
    done = run("--cpu", "speed")
    assert done.returncode == 1
    assert "no such part: speed" in done.stderr
