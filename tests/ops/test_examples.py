"""Example code for the help of errors compiles."""

from __future__ import annotations

import pytest

from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Source
from cnnspec.ops import OPS
from cnnspec.ops.examples import entry_with, example_call, example_entry
from cnnspec.recipe import CHOICES, ENTRIES, PIPELINES

ARGUMENTS = sorted(
    {
        name
        for entry, table in CHOICES.items()
        for choice in table.values()
        for name, parameter in choice.parameters.items()
        if parameter.type.kind in ("int", "float") and not parameter.required and entry not in PIPELINES
    }
)


def errors(text: str) -> list[str]:
    spec = Source("example", f"input 16x32x32\nclasses 10\n{text}\n")
    return [diagnostic.message for diagnostic in compile_source(spec).diagnostics if diagnostic.severity == "error"]


def recipe(entry: str) -> str:
    return f"stem conv 3x3 8 | relu\nhead global_avgpool | flatten | linear classes\ntrain {{ {entry} }}"


@pytest.mark.parametrize("entry", ENTRIES)
def test_example_of_an_entry(entry: str) -> None:
    assert errors(recipe(example_entry(entry))) == []


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_an_argument_of_an_entry(argument: str) -> None:
    entry = entry_with(argument, "1" if argument in ("val", "train", "test", "size", "buffer", "images") else "0.5")
    assert entry is not None
    assert errors(recipe(entry)) == []


@pytest.mark.parametrize("operator", sorted(set(OPS) - {"upsample"}))
def test_example_of_a_call(operator: str) -> None:
    call = example_call(operator, OPS[operator].parameters.values())
    flat = "flatten | " if operator == "linear" else ""
    assert errors(flat + call) == []
