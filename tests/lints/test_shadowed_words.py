"""Lints where a value of the file has the name of a keyword or of an operator."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cnnspec import check, loads
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Source
from cnnspec.ir.evaluate import show
from cnnspec.ops import OPS
from cnnspec.ops.examples import example_call
from cnnspec.schema import Parameter
from cnnspec.semantics.blocks import signature
from cnnspec.semantics.loader import standard_block, standard_blocks
from cnnspec.syntax import ast

VALUES = ("1", "2", "0.5", "gelu", '"text"')


def callees() -> Iterator[tuple[str, dict[str, Parameter]]]:
    for name, op in OPS.items():
        yield name, dict(op.parameters)
    for name in standard_blocks():
        if (found := standard_block(name)) is not None:
            yield name, signature(found[1])


def default_text(parameter: Parameter) -> str:
    default = parameter.default
    return default.span.text if isinstance(default, ast.Node) else show(default)


def spec(callee: str, parameters: dict[str, Parameter], argument: str, values: str = "") -> str:
    """Return a network with one call of a callee, with its required arguments and one more."""
    call = example_call(callee, [p for p in parameters.values() if p.required or (callee, p.name) == ("conv", "c")])
    return f"input 16x32x32\n{values}x: conv 1x1 16\n{call} {argument}\n"


CASES = [
    pytest.param(callee, parameters, parameter, id=f"{callee}-{parameter.name}")
    for callee, parameters in callees()
    for parameter in parameters.values()
    if parameter.type.words or parameter.type.kind == "op"
]


@pytest.mark.parametrize(("callee", "parameters", "parameter"), CASES)
def test_a_shadowed_word_is_reported_and_never_removed(
    callee: str, parameters: dict[str, Parameter], parameter: Parameter
) -> None:
    accepted = 0
    for word in (*parameter.type.words, *(["relu", "relu6", "gelu"] if parameter.type.kind == "op" else [])):
        assert "W0116" not in {d.code for d in check(spec(callee, parameters, f"{parameter.name}={word}"))}
        for value in VALUES:
            text = spec(callee, parameters, f"{parameter.name}={word}", f"param {word} = {value}\n")
            found = check(text, lints=["W0120"])
            if any(d.severity == "error" for d in found):
                continue
            accepted += 1
            assert {d.code for d in found} & {"W0120", "W0116"} == {"W0116"}
            assert [d.span and d.span.text for d in found if d.code == "W0116"] == [word]
    assert accepted or parameter.type.kind in ("word", "init")


def test_the_fix_of_an_argument_that_restates_a_default_keeps_the_network() -> None:
    """Write out each default of each operator and block, among values with the names of keywords and operators."""
    shadowing = "param same = 1\nparam relu = gelu\nparam relu6 = silu\n"
    removed = 0
    for callee, parameters in callees():
        for parameter in parameters.values():
            default = parameter.default
            if parameter.required or default is None:
                continue
            argument = f"{parameter.name}={default_text(parameter)}"
            for values in ("", shadowing):
                text = spec(callee, parameters, argument, values)
                done = compile_source(Source("t.cnn", text), lints=["W0120"])
                if done.graph is None:
                    continue
                for diagnostic in done.diagnostics:
                    for fix in diagnostic.fixes if diagnostic.code == "W0120" else ():
                        removed += 1
                        assert loads(fix.apply(text)).nodes == done.graph.nodes
    assert removed > 60
