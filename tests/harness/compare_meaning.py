"""Compare the compiler with the reference evaluator: `python tests/harness/compare_meaning.py --count 5000`.

Each seed draws a spec and compares keys, shapes of outputs and weights, parameters, and auxiliary heads. Three variants
of it follow: with other values for its parameters, extended by another file with those values, and with its blocks in a
file of their own. A variant may be invalid, because other values make other shapes; it is compared if it is valid.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from cnnspec import ir
from cnnspec.compiler import compile_file, compile_source
from cnnspec.diagnostics import Source
from cnnspec.ir.evaluate import evaluate
from cnnspec.ops import JOINS
from cnnspec.syntax import ast
from cnnspec.syntax.formatter import format_file
from cnnspec.testing.generator import SpecGenerator
from cnnspec.testing.writing import NO_SOURCE, NOWHERE, make_call, make_flow, make_integer, operand

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from harness.reference_evaluator import SPECS, Evaluator, Layer, Op, Result, evaluate_tree, value

OTHER_VALUES: dict[str, Any] = {
    "2": 3,
    "3": 1,
    "8": 4,
    "16": 7,
    "False": True,
    "0.5": 0.25,
    "gelu": "silu",
    "(3, 3)": "1x1",
    "[2, 8, 4]": [3, 5, 1],
}
"""Another value for each value of a parameter that the generator draws, as it is given from outside."""

PLACES = (
    "argument",
    "argument of a table",
    "aux",
    "blockparameter",
    "element",
    "if",
    "let",
    "message",
    "name",
    "repeat",
    "require",
    "row",
    "when",
)
"""The places of `in`; each must occur in one of 200 specs."""


def result_of(graph: ir.Graph) -> Result:
    """Return the facts about a Graph that the reference evaluator computes, too."""
    layers = [
        Layer(
            "" if node.op.name in JOINS else node.path,
            node.op.name,
            tuple(node.inputs),
            tuple(node.shape),
            tuple((key, tuple(shape)) for key, shape in node.weights.items()),
        )
        for node in graph
    ]
    heads = [(head.name, head.weight, head.output) for head in graph.aux]
    return Result(layers, tuple(graph.output_shape), heads, [*graph.taps.items()])


def difference(
    graph: ir.Graph, tree: ast.File, folder: Path = SPECS, given: dict[str, Any] | None = None
) -> str | None:
    """Return the first difference between a Graph and the reference evaluator, or None."""
    actual = result_of(graph)
    try:
        expected = evaluate_tree(tree, folder, given)
    except Exception as error:  # noqa: BLE001
        return f"the reference evaluator raises {type(error).__name__}: {error}"
    for one, other in zip(actual.layers, expected.layers, strict=False):
        if one != other:
            return f"{one} is not {other}"
    if actual != expected or graph.parameter_count != expected.parameters:
        facts = [(one.output, one.heads, one.outputs, len(one.layers)) for one in (actual, expected)]
        return f"{facts[0]} is not {facts[1]}"
    return None


def compare(seed: int, folder: Path, counts: Counter[str], *, variants: bool = True) -> list[str]:
    """Compare the spec of a seed and its variants. Return the differences."""
    wrong: list[str] = []
    tree = SpecGenerator(random.Random(seed).randint).file()
    drawn = compile_source(Source("drawn", format_file(tree)))
    counts["specs"] += 1
    count_places(tree, counts)

    def judge(kind: str, graph: ir.Graph | None, tree: ast.File, given: dict[str, Any] | None = None) -> None:
        if graph is None:
            counts[f"{kind} (invalid)"] += 1
            return
        counts[kind] += 1
        counts["layers"] += len(graph.nodes)
        if found := difference(graph, tree, folder, given):
            wrong.append(f"seed {seed}, {kind}: {found}")

    judge("drawn", drawn.graph, tree)
    if drawn.graph is None:
        wrong.append(f"seed {seed} is invalid")
    if not variants:
        return wrong
    given = other_values(tree)
    if given:
        judge("with other values", compile_source(drawn.source, params=given).graph, tree, read(given))
        (folder / "base.cnn").write_text(drawn.source.text, "utf-8")
        extending = "extends base " + " ".join(
            f"{name}={'true' if value is True else value}" for name, value in given.items()
        )
        compiled = compile_text(folder, extending)
        assert compiled.tree is not None
        judge("extended", compiled.graph, compiled.tree)
    if blocks := [piece for piece in tree.statements if isinstance(piece, ast.Block)]:
        compiled = compile_text(folder, split(tree, blocks, folder))
        assert compiled.tree is not None
        judge("with blocks of another file", compiled.graph, compiled.tree)
    return wrong


def compare_expressions(seed: int, counts: Counter[str]) -> list[str]:
    """Compare the values of drawn expressions; each can use those before it."""
    rng = random.Random(seed)
    expected: dict[str, Any] = {}
    lets: list[ast.Top] = []
    while len(lets) < 20:
        kind = rng.choice(["number", "number", "boolean"])
        expression = draw_expression(rng, kind, 3, expected)
        try:
            found = value(expression, expected, None)
        except (ArithmeticError, ValueError):
            continue
        if isinstance(found, bool) or abs(found) < 10**6:
            name = f"v{len(lets)}"
            expected[name] = found
            lets.append(ast.Let(NOWHERE, name, expression, NOWHERE))
    tree = ast.File(NOWHERE, NO_SOURCE, (ast.Input(NOWHERE, 3, 8, 8), *lets, make_flow(make_call("relu"))))
    text = format_file(tree)
    compiled = compile_source(Source("drawn", text))
    if {found.code for found in compiled.reporter.sorted()} == {"E0405"}:  # an intermediate value is too large
        counts["beyond a limit"] += 1
        return []
    counts["expressions"] += len(lets)
    if compiled.model is None:
        return [f"seed {seed}: {compiled.diagnostics[0]}\n{text}"]
    actual = {name: evaluate(compiled.model.constants[name], {}) for name in expected}
    return [
        f"seed {seed}: `{name}` is {actual[name]!r}, not {expected[name]!r}\n{text}"
        for name in expected
        if actual[name] != expected[name] or type(actual[name]) is not type(expected[name])
    ]


def draw_expression(rng: random.Random, kind: str, depth: int, known: dict[str, Any]) -> ast.Expr:
    """Draw an expression that is a number or a boolean, if it has a value."""

    def draw(kind: str) -> ast.Expr:
        return operand(draw_expression(rng, kind, depth - 1, known))

    names = [name for name, found in known.items() if isinstance(found, bool) == (kind == "boolean")]
    if names and rng.random() < 0.2:
        return ast.Name(NOWHERE, rng.choice(names))
    way = rng.randrange(6) if depth else 0
    if way == 1:
        return ast.Choice(NOWHERE, draw("boolean"), draw(kind), draw(kind))
    if kind == "boolean":
        if way == 0:
            return ast.Bool(NOWHERE, rng.random() < 0.5)
        if way == 2:
            return ast.Unary(NOWHERE, "not", draw(kind))
        if way == 3:
            return ast.Binary(NOWHERE, rng.choice(["and", "or", "==", "!="]), draw(kind), draw(kind))
        return ast.Binary(NOWHERE, rng.choice(["==", "!=", "<", "<=", ">", ">="]), draw("number"), draw("number"))
    if way == 0:
        found = rng.choice([*range(10), 0.5, 2.5, 0.001, 12.75])
        return ast.Number(NOWHERE, found, repr(found))
    if way == 2:
        return ast.Unary(NOWHERE, "-", draw(kind))
    if way == 3:
        function, count = rng.choice([("min", 2), ("max", 3), ("ceil", 1), ("floor", 1), ("sqrt", 1), ("round_to", 2)])
        args = [draw(kind) for _ in range(count)]
        if function == "round_to":
            args[1] = make_integer(rng.randint(1, 16))
        return ast.FunctionCall(NOWHERE, function, tuple(args))
    return ast.Binary(NOWHERE, rng.choice(["+", "-", "*", "/", "//", "%"]), draw(kind), draw(kind))


def compile_text(folder: Path, text: str) -> Any:
    (folder / "net.cnn").write_text(text, "utf-8")
    return compile_file(folder / "net.cnn")


def other_values(tree: ast.File) -> dict[str, Any]:
    """Return other values for the parameters of a drawn spec."""
    declared = Evaluator.define(tree, SPECS, {}, {}).declared
    return {name: OTHER_VALUES[str(value)] for name, value in declared.items() if name != "classes"}


def read(given: dict[str, Any]) -> dict[str, Any]:
    """Return values from outside as the values of the language."""
    words: dict[Any, Any] = {"silu": Op("silu"), "1x1": (1, 1)}
    return {name: words.get(value, value) if isinstance(value, str) else value for name, value in given.items()}


def split(tree: ast.File, blocks: list[ast.Block], folder: Path) -> str:
    """Write the blocks of a spec to a file with the values but without the defaults, and return the other part."""
    known = Evaluator.define(tree, SPECS, {}, {}).values  # without each `let` that uses `in`
    values = [
        piece
        for piece in tree.statements
        if isinstance(piece, (ast.Param, ast.Classes)) or (isinstance(piece, ast.Let) and piece.name in known)
    ]
    (folder / "blocks.cnn").write_text(format_file(tree.replace(statements=(*values, *blocks))), "utf-8")
    names = ", ".join(block.name for block in blocks)
    rest = tuple(piece for piece in tree.statements if not isinstance(piece, ast.Block))
    return f'use {names} from "blocks"\n' + format_file(tree.replace(statements=rest))


def count_places(tree: ast.File, counts: Counter[str]) -> None:
    """Count the specs in which `in` occurs at each kind of place."""
    found: set[str] = set()

    def visit(node: ast.Node, place: str) -> None:
        match node:
            case ast.Dim():
                found.add(place)
            case ast.In():
                found.add("element")
            case ast.Text() if "in." in node.value:
                found.add(place if place == "message" else "name")
            case _:
                pass
        for child in node.children():
            visit(child, _place(node, child) or place)

    visit(tree, "")
    counts.update(f"in: {place}" for place in found)


def _place(parent: ast.Node, child: ast.Node) -> str | None:
    match parent:
        case ast.Require() if child is parent.message:
            return "message"
        case ast.Let() | ast.Require() | ast.Aux() | ast.BlockParameter():
            return type(parent).__name__.lower() if not isinstance(child, ast.Flow) else None
        case ast.Flow() if child is parent.condition:
            return "when"
        case ast.If() if child is parent.condition:
            return "if"
        case ast.Repeat() if child is parent.count:
            return "repeat"
        case ast.Each():
            return "row" if isinstance(child, ast.Row) else "argument of a table"
        case ast.Call():
            return "argument"
        case _:
            return None


def main() -> int:
    """Compare the specs of some seeds. Return 1 if there is a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(options.seed, options.seed + options.count):
            wrong += compare(seed, Path(folder), counts)
            wrong += compare_expressions(seed, counts)
    if options.count >= 2_000:
        wrong += [f"too few specs with {place}" for place in PLACES if counts[f"in: {place}"] < options.count / 200]
    for name, count in sorted(counts.items()):
        print(f"  {name:<40} {count:>10,}")
    print(f"  {'differences':<40} {len(wrong):>10,}")
    print(f"  {'seconds':<40} {time.perf_counter() - start:>10.1f}")
    print("\n".join(wrong[:20]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
