"""The published JSON Schemas: they are up to date, accept what the commands print, and reject what they do not."""

from __future__ import annotations

import copy
import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness.runs import TINY
from harness.schemas import FOLDER, problems
from typer.testing import CliRunner

from cnnspec import loads
from cnnspec.analysis.summary import COLUMNS, summarize
from cnnspec.cli.app import app
from cnnspec.cli.formats import Checked, to_json
from cnnspec.compiler import compile_file, compile_source
from cnnspec.diagnostics import Source
from cnnspec.semantics.loader import shipped_specs, standard_blocks

ROOT = Path(__file__).resolve().parents[1]
SPECS = [*shipped_specs()]


def printed(*arguments: object) -> Any:
    done = CliRunner().invoke(app, [*map(str, arguments)])
    return json.loads(done.stdout)


def test_schemas_are_those_that_the_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    script = importlib.import_module("write_schemas")
    found = {path.name: json.loads(path.read_text("utf-8")) for path in FOLDER.iterdir()}
    assert found == script.schemas(), "run `python tools/write_schemas.py`"


# --- check ---------------------------------------------------------------------------------------


def test_check_of_specs() -> None:
    """The errors of all cases are validated in `tests/cli/test_formats.py`."""
    names = [*SPECS[::6], *map(str, standard_blocks().values())]
    assert problems("check", to_json(Checked(name, [], compile_file(name).graph) for name in names)) == []


def test_check_of_files_that_cannot_be_checked(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "binary.cnn").write_bytes(b"\0\xff")
    (tmp_path / "empty.cnn").write_bytes(b"")
    (tmp_path / "fixed.cnn").write_text("network t\ninput 3x8x8\nstem convv 3x3 8\n", "utf-8")
    files = [tmp_path / name for name in ("folder", "binary.cnn", "empty.cnn", "missing.cnn", "fixed.cnn")]
    for options in ((), ("--fix",), ("--lint", "W0120")):
        report = printed("check", "--json", *options, *files)
        assert problems("check", report) == []
        assert len(report["files"]) == len(files)
    assert any(file.get("fixed") for file in printed("check", "--json", "--fix", *files)["files"]) is False


def test_check_of_sizes_of_every_kind() -> None:
    """Sizes that differ in evaluation, are not known, or are finite have other keys."""
    layers = (
        "bn",
        "in_norm",
        "conv 3x3 8 stride=2 | flatten | linear 10",
        "maxpool 2x2 | upsample 2x2 | add { in; in }",
    )
    graphs = [loads(f"input 3x32x32\n{text}\n") for text in layers]
    assert problems("check", to_json([Checked("x", [], graph) for graph in graphs])) == []


# --- summary -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS[::12])
def test_summary_of_a_spec(name: str) -> None:
    graph = compile_file(name).require_graph()
    assert problems("summary", summarize(graph, 2).to_json()) == []


def test_summary_of_a_gap_between_pixels() -> None:
    """The center of the map depends on no pixel, and its stride is less than one."""
    done = summarize(loads("input 3x8x8\nconv_transpose 1x1 4 stride=3\n")).to_json()
    assert done["center_field"] == [0, 0]
    assert problems("summary", done) == []


@pytest.mark.parametrize("column", COLUMNS)
def test_summary_of_named_outputs(column: str) -> None:
    done = summarize(loads("input 3x8x8\na: conv 3x3 4\nb: relu\noutput x from @a\noutput y from @b\n"))
    assert problems("summary", done.to_json()) == problems("summary", done.to_json([column])) == []


@pytest.mark.parametrize(
    "options",
    [
        ("lenet5",),
        ("lenet5", "--symbolic"),
        ("fcn_resnet50", "--symbolic", "--columns", "output,macs,stride"),
        ("resnet20", "--columns", "peak,field", "--depth", "1"),
        ("resnet20", "--max-batch", "1GiB", "--batch", "3"),
        ("resnet20", "--max-batch", "1kB"),
        ("resnet20", "lenet5"),
        ("googlenet", "--depth", "1"),
        *(("lenet5", "--columns", column) for column in COLUMNS),
    ],
    ids=" ".join,
)
def test_summary_with_options(options: tuple[str, ...]) -> None:
    assert problems("summary", printed("summary", "--json", *options)) == []


# --- result.json ---------------------------------------------------------------------------------


def test_result_of_a_run(run: Callable[..., Any]) -> None:
    """The fixture `valid_results` does the same for every run of the tests in `tests/training`."""
    pytest.importorskip("torch")
    recipe = "train {\n    data fashion_mini val=100 train=200 test=100\n    batch 50\n    epochs 1\n}\n"
    result = run(loads(TINY + recipe))
    assert result.state == "finished"
    stored = json.loads((result.folder / "result.json").read_text("utf-8"))
    assert problems("result", stored) == []
    assert [what for what, changed in _changed(stored) if not problems("result", changed)] == []
    page = (ROOT / "docs" / "reference" / "run-folder.md").read_text("utf-8").partition("## metrics.csv")[0]
    described = {key for row in re.findall(r"^\| (`.*?) \|", page, re.M) for key in re.findall(r"`(\w+)`", row)}
    assert set(stored) <= described


# --- the schemas can reject ----------------------------------------------------------------------


def _objects(data: Any) -> Iterator[dict[str, Any]]:
    """Yield all objects in an output."""
    if isinstance(data, dict):
        yield data
    for value in data.values() if isinstance(data, dict) else data if isinstance(data, list) else ():
        yield from _objects(value)


def _changed(data: Any) -> Iterator[tuple[str, Any]]:
    """Yield the output with a key added to an object, and with a value of another type, for each object and key."""
    for number, place in enumerate(_objects(data)):
        for key in (None, *place):
            other = copy.deepcopy(data)
            target = [*_objects(other)][number]
            target["unknown" if key is None else key] = {"another": {"type": [0]}}
            yield f"{key} of {sorted(place)}", other


@pytest.mark.parametrize("name", ["check", "summary"])
def test_no_output_can_change_without_its_schema(name: str) -> None:
    bad = to_json([Checked("x", compile_source(Source("x", "network t\ninput 3x8x8\nstem convv 3x3 8\n")).diagnostics)])
    bad["files"] += to_json([Checked("y", [], loads(TINY))])["files"]
    data = {"check": bad, "summary": summarize(loads(TINY)).to_json()}[name]
    assert problems(name, data) == []
    changes = [*_changed(data)]
    assert len(changes) > 30
    assert [what for what, changed in changes if not problems(name, changed)] == []
