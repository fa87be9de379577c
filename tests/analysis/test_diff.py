"""`cnnspec diff` and what it is made of."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cnnspec
from cnnspec.analysis.diff import compare

HEAD = "network t\ninput 3x32x32\nclasses 10\n"
A = HEAD + "stem conv 3x3 16 | bn | relu\nadd { in; conv 3x3 16 }\nhead global_avgpool | flatten | linear classes\n"


def test_a_network_is_the_same_as_itself_by_any_name() -> None:
    assert compare(cnnspec.loads(A), cnnspec.loads(A.replace("network t", "network u"))).same
    assert compare(cnnspec.load("resnet56"), cnnspec.load("resnet20", n=9)).same


def test_changes_by_module() -> None:
    b = A.replace("conv 3x3 16 | bn | relu", "conv 5x5 16 | bn | gelu | dropout").replace(
        "in; conv 3x3 16", "conv 1x1 16; in"
    )
    done = compare(cnnspec.loads(A), cnnspec.loads(b))
    found = {change.path: change.kind for change in done.changes}
    assert found == {"stem.0": "changed", "stem.2": "changed", "stem.3": "added", "0": "changed", "add": "changed"}
    assert done.totals["parameters"][1] - done.totals["parameters"][0] == 16 * (75 - 27) - 256 * 8
    assert compare(cnnspec.loads(b), cnnspec.loads(A)).totals["macs"] == done.totals["macs"][::-1]


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.cnn").write_text(A)
    (tmp_path / "b.cnn").write_text(A.replace("linear classes", "linear classes bias=false"))

    def diff(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cnnspec", "diff", *args], capture_output=True, text=True, cwd=tmp_path
        )

    same = diff("a.cnn", "a.cnn")
    assert (same.returncode, same.stdout) == (0, "t and t are the same network\n")
    done = diff("a.cnn", "b.cnn")
    assert done.returncode == 1
    assert "~ head.2: linear c=10 -> [N, 10]\n" in done.stdout
    assert "parameters: 2,938 -> 2,928 (-10)" in done.stdout
    data = json.loads(diff("a.cnn", "b.cnn", "--json").stdout)
    assert data["totals"]["parameters"] == {"a": 2938, "b": 2928, "difference": -10}
    assert diff("a.cnn", "missing.cnn").returncode == 1
