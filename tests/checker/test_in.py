"""The meaning of `in` at every place where it can be written: section "The input of a statement" of the reference."""

from __future__ import annotations

from inspect import get_annotations

import pytest
from harness.compare_meaning import difference

from cnnspec.api import check, loads
from cnnspec.diagnostics import Reporter, Source
from cnnspec.syntax import ast, parse

HEAD = "input 3x8x6\nclasses 10\n"
PLACES = {
    # statements
    "the first statement of a file": ("conv 1x1 in.c*2", [6]),
    "a later statement": ("conv 1x1 5\nconv 1x1 in.c*2", [5, 10]),
    "after a label": ("conv 1x1 5\na: conv 1x1 in.c*2", [5, 10]),
    "after stem, stage and head": ("stem conv 1x1 5\nstage conv 1x1 in.c*2\nhead conv 1x1 in.c+1", [5, 10, 11]),
    "every element of a pipeline": ("conv 1x1 5\nconv 1x1 in.c*2 | conv 1x1 in.c*3", [5, 10, 15]),
    "after a reference": ("a: conv 1x1 5\nconv 1x1 7\nconcat { in; @a | conv 1x1 in.c }", [5, 7, 7, 14]),
    "in braces after a reference": ("a: conv 1x1 5\nconv 1x1 7\nconcat { in; @a | { conv 1x1 in.c } }", [5, 7, 5, 12]),
    "height and width": ("maxpool 2x2\nconv 1x1 10*in.h+in.w", [3, 43]),
    "flat features": ("flatten | linear 5\nlinear in.c*2", [144, 5, 10]),
    # arguments
    "an argument by position": ("conv 1x1 5\nconv 1x1 in.c", [5, 5]),
    "an argument by name": ("conv 1x1 5\nconv 1x1 c=in.c", [5, 5]),
    "a count": ("conv 1x1 2\nconv 1x1 9 repeat=in.c", [2, 9, 9]),
    "every call of a repeat": ("conv 1x1 5\nconv x2 1x1 in.c*2", [5, 10, 10]),
    "an argument of a block": ("block b(c) { conv 1x1 c }\nconv 1x1 5\nconv 1x1 9 | b in.c", [5, 9, 5]),
    # blocks
    "the default of a parameter": ("block b(c = in.c*2) { conv 1x1 c }\nconv 1x1 5\nconv 1x1 9 | b", [5, 9, 18]),
    "a default in a repeat": ("block b(once c = in.c*2) { conv 1x1 c }\nb x3 5", [5, 10, 20]),
    "a body": ("block b() { conv 1x1 in.c*2; conv 1x1 in.c+1 }\nconv 1x1 9 | b", [9, 18, 19]),
    # braces
    "a group": ("conv 1x1 5\nconv 1x1 9 | { conv 1x1 in.c*2; conv 1x1 in.c+1 }", [5, 9, 18, 19]),
    "a repeated group": ("conv 1x1 5 | repeat 3 { conv 1x1 in.c*2 }", [5, 10, 20, 40]),
    "the count of a repeated group": ("conv 1x1 2\nconv 1x1 9 | repeat in.c { conv 1x1 4 }", [2, 9, 4, 4]),
    "a branch": ("conv 1x1 5\nconv 1x1 9 | concat { conv 1x1 in.c; conv 1x1 in.c+1; in }", [5, 9, 9, 10, 28]),
    "a let and a require among branches": (
        "conv 1x1 5\nconv 1x1 9 | concat { conv 1x1 2; let c = in.c; require in.c == 9; conv 1x1 c }",
        [5, 9, 2, 9, 11],
    ),
    "the condition of an if": ("conv 1x1 5\nconv 1x1 9 | if in.c == 5 { conv 1x1 1 } else { conv 1x1 2 }", [5, 9, 1]),
    "inside an if": ("conv 1x1 5\nconv 1x1 9 | if true { conv 1x1 in.c+1; conv 1x1 in.c+1 }", [5, 9, 10, 11]),
    "inside an else": ("conv 1x1 9 | if false { relu } else { conv 1x1 in.c+1; conv 1x1 in.c+1 }", [9, 10, 11]),
    # conditions and values
    "when": ("conv 1x1 5\nconv 1x1 9 | conv 1x1 1 when in.c == 5", [5, 9, 1]),
    "when of a branch": ("conv 1x1 5 | concat { in; conv 1x1 1 when in.c == 5 }", [5, 1, 6]),
    "let": ("conv 1x1 5\nlet c = in.c\nconv 1x1 9\nconv 1x1 c", [5, 9, 5]),
    "let in braces": ("{ conv 1x1 5; let c = in.c; conv 1x1 9; conv 1x1 c }", [5, 9, 5]),
    "let after the only pipeline": ("let c = 4\n{ conv 1x1 c; let c = in.c; require c == 4 }\nconv 1x1 c+1", [4, 5]),
    "require": ("conv 1x1 5\nrequire in.c == 5\nrelu", [5, 5]),
    # tables
    "a cell": ("conv 1x1 5\nconv 1x1 9 | each conv(kernel c) { 1x1 (in.c*2); 1x1 (in.c*3) }", [5, 9, 10, 15]),
    "a fixed argument": ("conv 1x1 16\neach conv(kernel) c=in.c*2 { 1x1; 1x1 }", [16, 32, 32]),
    "a labeled table": ("conv 1x1 16\na: each conv(kernel) c=in.c*2 { 1x1; x: 1x1 }", [16, 32, 32]),
    "a table in a group": ("conv 1x1 16 | { conv 1x1 4; each conv(kernel) c=in.c*2 { 1x1 } }", [16, 4, 8]),
    "a count in a table": ("conv 1x1 2\nconv 1x1 9 | each conv(kernel repeat) c=4 { 1x1 in.c }", [2, 9, 4, 4]),
    # the element
    "the element in a branch": ("conv 1x1 5\nconv 1x1 9 | concat { in; in | conv 1x1 in.c }", [5, 9, 9, 18]),
    "the element at the head of a pipeline": ("conv 1x1 5\nin | conv 1x1 7", [5, 7]),
    "an alias": ("conv 1x1 5\na: in\nconv 1x1 7\nconcat { @a; in }", [5, 7, 12]),
    "an alias in a block": (
        "block b() { conv 1x1 9; a: in; conv 1x1 7; concat { @a; in } }\nconv 1x1 5 | b",
        [5, 9, 7, 16],
    ),
    # auxiliary heads
    "an auxiliary head": (
        "a: conv 1x1 5 | flatten | linear 4\naux x from @a weight=in.c { linear in.c*2; linear in.c+1 | linear 4 }",
        [5, 240, 4, 8, 9, 4],
    ),
}  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_in_is_what_flows_into_the_statement(place: str) -> None:
    body, channels = PLACES[place]
    graph = loads(HEAD + body)
    assert [node.shape[0] for node in graph] == channels
    tree = parse(Source("spec", HEAD + body), Reporter())
    assert tree is not None
    assert difference(graph, tree) is None
    for head in graph.aux:
        assert head.weight == 4


def test_in_in_a_name_and_in_a_message() -> None:
    graph = loads(
        f'{HEAD}conv 1x1 5\nconv 1x1 9 | conv 1x1 2 name="from{{in.c}}x{{in.h}}" | conv 1x1 1 name="n{{2*in.w+in.c}}"'
    )
    assert [node.path for node in graph] == ["0", "1", "from5x8", "n17"]
    found = check(f'{HEAD}conv 1x1 5\nrequire in.c == 3, "got {{in.c}} of {{in.c + 1}}"\nrelu')
    assert [diagnostic.message for diagnostic in found] == ["got 5 of 6"]


@pytest.mark.parametrize(
    "statement",
    [
        "param p = in.c",
        "classes in.c",
        "default conv c=in.c",
        "init conv normal in.c",
        "expect params = in.c",
        "train { epochs in.c }",
        'block f(n: str = "x") { relu }\nparam q = 2 * in.h',
    ],
)
def test_in_has_no_meaning_in_statements_without_a_tensor(statement: str) -> None:
    head = HEAD if "classes" not in statement else "input 3x8x6\n"
    assert "E0207" in [diagnostic.code for diagnostic in check(f"{head}conv 1x1 5\n{statement}\n")]


def test_every_kind_of_node_that_holds_an_expression_has_a_place() -> None:
    """A new node with an expression needs a row in `PLACES`, or one among the statements without a tensor."""
    kinds = [kind for kind in vars(ast).values() if isinstance(kind, type) and issubclass(kind, ast.Node)]
    holders = {kind.__name__ for kind in kinds if any("Expr" in str(hint) for hint in get_annotations(kind).values())}
    expressions = {"Unary", "Binary", "FunctionCall", "Choice", "Interval", "ListLiteral", "Group", "Text", "Index"}
    assert holders - expressions == {
        "Argument", "BlockParameter", "Classes", "Expect", "Flow", "If", "Let", "Param", "Repeat", "Require", "Row",
    }  # fmt: skip


def test_blocks_and_heads_do_not_see_a_value_of_the_file_that_reads_a_tensor() -> None:
    text = f"{HEAD}a: conv 1x1 5\nlet c = in.c\nblock b() {{ conv 1x1 c }}\nb\n"
    assert [diagnostic.code for diagnostic in check(text)] == ["E0207"]
