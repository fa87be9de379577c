"""Output of the commands: JSON and tables, which are written without slow libraries."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cnnspec.analysis.summary import COLUMNS, DEFAULT_COLUMNS, summarize
from cnnspec.api import load
from cnnspec.cli.output import json_text
from cnnspec.cli.tables import Justify, _short, print_summary, print_table
from cnnspec.limits import MAX_CELL

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.builds(Path, st.just("a/b")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner),
    max_leaves=10,
)


def finite(data: Any) -> Any:
    """Replace NaN and infinity by None, which JSON has."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


@settings(max_examples=40)
@given(JSON)
@example({0: math.inf, True: {None: [math.nan]}})
def test_json_is_that_of_the_standard_library(data: Any) -> None:
    assert json_text(data) == json.dumps(finite(data), indent=2, default=str)


@pytest.mark.parametrize("name", ["resnet20", "densenet121"])
def test_a_table_in_a_file_is_that_of_rich(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = summarize(load(name), symbolic=name == "resnet20")
    print_summary(done, 3)
    plain = capsys.readouterr().out.splitlines()
    chosen = [COLUMNS[column] for column in DEFAULT_COLUMNS]
    columns: list[tuple[str, Justify]] = [("module", "left")]
    columns += [(column.title, "right" if column.figure else "left") for column in chosen]
    rows: list[list[str] | None] = [
        ["  " * (row.level - 1) + row.path.rpartition(".")[2], *(_short(column.cell(row)) for column in chosen)]
        for row in done.upto(3)
    ]
    print_table(columns, [*rows, None, ["total", *(_short(column.cell(done.total)) for column in chosen)]], plain[0])
    expected = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert plain[:-1] == expected


def test_a_long_cell_is_cut() -> None:
    assert _short("x" * MAX_CELL) == "x" * MAX_CELL
    assert len(_short("x" * (MAX_CELL + 1))) == MAX_CELL
    assert _short("x" * (MAX_CELL + 1)).endswith("...")
