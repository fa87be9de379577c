"""Run the short experiments of `docs/explanation/experiments.md` by the commands given there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "explanation" / "experiments.md").read_text("utf-8")
SECTIONS = re.findall(r"^## (.+?)$(.*?)(?=^## |\Z)", PAGE, re.M | re.S)
SHOWN = re.compile(r"^\| ([^|]+?) +\|.*?([0-9.]+) ± ([0-9.]+) % \| +[0-9,]+ \|", re.M)
"""A row of a table: the network, and the mean and deviation of its test accuracy in percent."""


def test_every_experiment_has_a_command_and_a_result() -> None:
    assert len(SECTIONS) >= 4
    for title, text in SECTIONS:
        assert "```sh\ncnnspec " in text, title
        assert re.search(r"[0-9.]+ ?%|[0-9.]+ ± [0-9.]+", text), title
    assert not re.search(r"[A-Z0-9]+_(TABLE|TEXT)", PAGE)


@pytest.mark.slow
@pytest.mark.parametrize(("title", "text"), SECTIONS[:2], ids=[title for title, _ in SECTIONS[:2]])
def test_an_experiment_reproduces_the_published_result(title: str, text: str, tmp_path: Path) -> None:
    """Compare mean test accuracies, within twice the deviation over seeds, and at least one percent."""
    data = os.environ.get("CNNSPEC_DATA")
    if data is None:
        pytest.skip("CNNSPEC_DATA names no folder with the datasets")
    command = shlex.split(text.split("```sh\n")[1].split("```")[0].replace("\\\n", ""))
    options = ["--data-dir", data, "--offline", "--json", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *command, *options],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {row["label"]: row["test_acc"]["mean"] for row in json.loads(done.stdout)["rows"]}
    shown = {name: (float(mean) / 100, float(deviation) / 100) for name, mean, deviation in SHOWN.findall(text)}
    assert found.keys() == shown.keys()
    for name, (mean, deviation) in shown.items():
        assert abs(found[name] - mean) <= max(2 * deviation, 0.01), name
