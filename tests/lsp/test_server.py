"""The features of the language server, over its protocol."""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

pytest.importorskip("pygls")
from harness.editor import Editor
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException

import cnnspec
from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Source
from cnnspec.lsp.document import Analysis, Text
from cnnspec.syntax.formatter import format_file
from cnnspec.testing.generator import SpecGenerator

NETWORK = """\
network small
input 3x32x32
classes 10

param n = 2

# two layers
block pair(c: int, act: op = relu) {
    conv 3x3 c | bn
    act
}

stem conv 3x3 c=16 | bn | relu
layer1: pair repeat=n 32
join: add {
    conv 1x1 32
    in
}
maxpool 2x2
head global_avgpool | flatten | linear classes
"""


@pytest.fixture(scope="module")
def editor() -> Iterator[Editor]:
    editor = Editor(patience=60_000)
    yield editor
    assert editor.close() == (0, "")


def markdown(found: lsp.Hover | None) -> str:
    assert found is not None
    assert isinstance(found.contents, lsp.MarkupContent)
    return found.contents.value


def test_diagnostics_follow_the_text(editor: Editor) -> None:
    document = editor.open(NETWORK)
    assert list(document.diagnostics) == []
    document.replace("conv 1x1 32", "conv 1x1 33 # \N{SLIGHTLY SMILING FACE}; and a half-typed line\n  } |")
    codes = [(found.code, found.severity, document.part(found.range)) for found in document.diagnostics]
    expected = [(found.code, found.span.text if found.span else "") for found in cnnspec.check(document.text)]
    assert [(code, part) for code, _, part in codes] == expected
    document.replace("\n  } |", "")
    (found,) = document.diagnostics
    assert (found.code, found.source, found.severity) == ("E0301", "cnnspec", lsp.DiagnosticSeverity.Error)
    related = [document.part(other.location.range) for other in found.related_information or ()]
    assert related == [label.span.text for label in cnnspec.check(document.text)[0].labels]
    document.close()


def test_formatting(editor: Editor) -> None:
    document = editor.open(NETWORK.replace("c=16 | bn", "c = 16|bn").replace("\nlayer1", "\n\n\n\nlayer1"))
    request = lsp.DocumentFormattingParams(document.id, lsp.FormattingOptions(4, True))
    changed = document.apply(editor.run(editor.client.text_document_formatting_async(request)))
    assert changed == cnnspec.format(document.text) != document.text
    document.replace("stem conv", "stem (conv")
    assert not editor.run(editor.client.text_document_formatting_async(request))
    document.close()


@pytest.mark.parametrize(
    ("code", "into", "parts"),
    [
        ("conv 3x3 c=16", 0, ["torch.nn.Conv2d", "[N, 3, 32, 32]", "[N, 16, 32, 32]", "432 parameters, 442,368 MACs",
                              "receptive field: 3x3", "`stem.0`"]),
        ("c=16", 0, ["c: int = none"]),
        ("pair repeat", 2, ["block pair(c: int, act: op = relu)", "two layers", "13,952 parameters", "`layer1.1`"]),
        ("layer1", 1, ["[N, 32, 32, 32]", "13,952 parameters", "receptive field: 7x7"]),
        ("add {", 0, ["in [N, 32, 32, 32], [N, 32, 32, 32]", "[N, 32, 32, 32]"]),
        ("n 32", 0, ["param n = 2"]),
        ("c | bn", 0, ["c: int"]),
        ("small", 0, ["15,770 parameters", "depth 5"]),
    ],
)  # fmt: skip
def test_hover(editor: Editor, code: str, into: int, parts: list[str]) -> None:
    document = editor.open(NETWORK)
    found = editor.run(editor.client.text_document_hover_async(lsp.HoverParams(**document.at(code, into))))
    assert [part for part in parts if part not in markdown(found)] == [], markdown(found)
    document.close()


AGAIN = """\
network again
input 3x32x32
classes 10
block pair(c) {
    first: conv 3x3 16
    conv 3x3 c
    conv 1x1 8 | again @first | conv 3x3 c
}
stem: conv 3x3 8
cell: conv 1x1 16 | conv 3x3 8
p: pair 16
q: maxpool 2x2 | conv 1x1 8 | again @cell | again @cell
repeat 2 { again @cell }
r: again @cell | conv 1x1 16
s: again @first_of_all
head global_avgpool | flatten | linear classes
""".replace("stem:", "first_of_all: conv 3x3 3\nstem:").replace("s: again", "conv 1x1 3\ns: again")
"""Modules that are applied again: of several layers, in a block, in a repeated group, and next to other layers."""


@pytest.mark.parametrize(
    ("code", "parts"),
    [
        ("cell:", ["in [N, 8, 32, 32]", "out [N, 8, 32, 32]", "1,280 parameters, 1,310,720 MACs", "`cell`"]),
        ("again @cell | again", ["in [N, 8, 16, 16]", "out [N, 8, 16, 16]", "0 parameters, 327,680 MACs", "`cell`"]),
        ("again @cell }", ["out [N, 8, 16, 16]", "0 parameters, 655,360 MACs in 2 uses", "module `cell`"]),
        ("again @first |", ["out [N, 16, 32, 32]", "0 parameters, 1,179,648 MACs", "module `p.first`"]),
        ("q:", ["in [N, 16, 32, 32]", "out [N, 8, 16, 16]", "128 parameters, 688,128 MACs"]),
        ("r:", ["in [N, 8, 16, 16]", "out [N, 16, 16, 16]", "128 parameters, 360,448 MACs"]),
        ("s:", ["in [N, 3, 16, 16]", "out [N, 3, 16, 16]", "0 parameters, 20,736 MACs", "`first_of_all`"]),
    ],
)  # fmt: skip
def test_hover_of_modules_that_are_used_again(editor: Editor, code: str, parts: list[str]) -> None:
    """A label describes its own statement; `again` and the statement around it describe the further use."""
    document = editor.open(AGAIN)
    assert [problem.code for problem in document.diagnostics] == ["W0103"]  # `s` names no module
    found = editor.run(editor.client.text_document_hover_async(lsp.HoverParams(**document.at(code))))
    assert [part for part in parts if part not in markdown(found)] == [], markdown(found)
    whole = lsp.Range(lsp.Position(0, 0), lsp.Position(99, 0))
    hints = editor.run(editor.client.text_document_inlay_hint_async(lsp.InlayHintParams(document.id, whole)))
    shown = {document.text.split("\n")[hint.position.line].strip(): hint.label for hint in hints or ()}
    assert shown["repeat 2 { again @cell }"] == "[N, 8, 16, 16]"
    assert shown["q: maxpool 2x2 | conv 1x1 8 | again @cell | again @cell"] == "[N, 8, 16, 16]"
    assert shown["conv 1x1 8 | again @first | conv 3x3 c"] == "[N, 16, 32, 32]"
    lenses = editor.run(editor.client.text_document_code_lens_async(lsp.CodeLensParams(document.id)))
    titles = {lens.range.start.line: lens.command.title for lens in reversed(lenses or ()) if lens.command}
    assert titles[document.text[: document.text.index("cell:")].count("\n")] == "1.28k parameters, 1.31M MACs"
    document.close()


def test_outputs_of_random_uses_are_those_of_the_graph() -> None:
    """Each use of a module is one output, with the shapes and operations of its operators."""
    count = 0
    for seed in range(400):
        text = format_file(SpecGenerator(random.Random(seed).randint).file())
        if "again @" not in text:
            continue
        analysis = Analysis.ready(Text(text), "file:///net.cnn")
        graph = analysis.compilation.expanded
        assert graph is not None
        uses: dict[int, dict[Any, list[Any]]] = {}
        for node in graph.nodes:
            if node.use is not None and node.origin is not None:
                uses.setdefault(node.origin.start, {}).setdefault(node.use, []).append(node)
        for start, found in uses.items():
            outputs = analysis.outputs(start)
            assert len(outputs) == len(found), text
            expected = sorted(sum(node.macs for node in nodes) for nodes in found.values())
            assert sorted(output.macs for output in outputs) == expected
            for nodes in found.values():
                assert any(output.shape in {node.shape for node in nodes} for output in outputs)
            count += len(outputs)
    assert count > 20


def test_hover_before_an_error(editor: Editor) -> None:
    document = editor.open(NETWORK.replace("maxpool 2x2", "maxpool 2x2 |"))
    found = editor.run(editor.client.text_document_hover_async(lsp.HoverParams(**document.at("layer1"))))
    assert "[N, 32, 32, 32]" in markdown(found)
    document.close()


def test_fixes_are_code_actions(editor: Editor) -> None:
    document = editor.open(NETWORK.replace("maxpool", "maxpol").replace("global_avgpool", "global_avgpol"))
    assert [found.code for found in document.diagnostics] == ["E0201", "E0201"]
    place = lsp.Range(*[document.position(document.text.index("maxpol"))] * 2)
    request = lsp.CodeActionParams(document.id, place, lsp.CodeActionContext([]))
    fix, all_fixes = editor.run(editor.client.text_document_code_action_async(request)) or ()
    assert isinstance(fix, lsp.CodeAction)
    assert isinstance(all_fixes, lsp.CodeAction)
    assert (fix.kind, fix.is_preferred) == (lsp.CodeActionKind.QuickFix, True)
    changes = [(action.edit.changes or {})[document.uri] for action in (fix, all_fixes) if action.edit]
    assert document.apply(changes[0]) == document.text.replace("maxpol", "maxpool")
    assert document.apply(changes[1]) == NETWORK
    request.context.only = [lsp.CodeActionKind.SourceFixAll]
    (all_rounds,) = editor.run(editor.client.text_document_code_action_async(request)) or ()
    assert isinstance(all_rounds, lsp.CodeAction)
    assert all_rounds.edit is not None
    assert document.apply((all_rounds.edit.changes or {})[document.uri]) == NETWORK
    document.close()


def test_shapes_at_the_end_of_lines(editor: Editor) -> None:
    document = editor.open(NETWORK)
    request = lsp.InlayHintParams(document.id, document.whole)
    hints = editor.run(editor.client.text_document_inlay_hint_async(request)) or ()
    lines = document.text.split("\n")
    assert all(hint.position.character == len(lines[hint.position.line]) for hint in hints)
    shown = {lines[hint.position.line].strip(): hint.label for hint in hints}
    assert shown == {
        "conv 3x3 c | bn": "[N, 32, 32, 32]",
        "act": "[N, 32, 32, 32]",
        "stem conv 3x3 c=16 | bn | relu": "[N, 16, 32, 32]",
        "layer1: pair repeat=n 32": "[N, 32, 32, 32]",
        "conv 1x1 32": "[N, 32, 32, 32]",
        "}": "[N, 32, 32, 32]",
        "maxpool 2x2": "[N, 32, 16, 16]",
        "head global_avgpool | flatten | linear classes": "[N, 10]",
    }
    document.close()


def test_shapes_of_the_rows_of_a_table(editor: Editor) -> None:
    document = editor.open(
        "input 3x8x8\nblock b(c) { conv 3x3 c }\neach b(c) {\n  a: 4\n  z: 8\n}\nflatten | linear 2\n"
    )
    request = lsp.InlayHintParams(document.id, document.whole)
    hints = editor.run(editor.client.text_document_inlay_hint_async(request)) or ()
    assert {hint.position.line: hint.label for hint in hints} == {
        1: "[N, 4, 8, 8], [N, 8, 8, 8]",
        3: "[N, 4, 8, 8]",
        4: "[N, 8, 8, 8]",
        5: "[N, 8, 8, 8]",
        6: "[N, 2]",
    }
    document.close()


def test_code_lenses(editor: Editor) -> None:
    document = editor.open(NETWORK)
    lenses = editor.run(editor.client.text_document_code_lens_async(lsp.CodeLensParams(document.id))) or ()
    titles = [(lens.range.start.line, lens.command.title) for lens in lenses if lens.command]
    assert (0, "15.8k parameters, 15.6M MACs") in titles
    assert (12, "464 parameters, 442k MACs") in titles
    assert {"draw", "open reference"} <= {title for _, title in titles}
    document.close()


def test_commands(editor: Editor) -> None:
    document = editor.open(NETWORK)

    def command(name: str, *arguments: object) -> object:
        request = lsp.ExecuteCommandParams(name, [*arguments])
        return editor.run(editor.client.workspace_execute_command_async(request))

    assert str(command("cnnspec.draw", document.uri, "svg")).startswith("<svg")
    command("cnnspec.draw", document.uri)
    command("cnnspec.openReference", document.uri)
    shown = [params for method, params in editor.requested if method == lsp.WINDOW_SHOW_DOCUMENT]
    assert [(found.uri.rpartition("/")[2], found.external) for found in shown] == [
        ("diagram.html", True),
        ("reference.md", False),
    ]
    assert "conv(kernel: size, c: int = none" in Path(unquote(urlparse(shown[1].uri).path)).read_text("utf-8")
    document.replace("maxpool 2x2", "maxpol 2x2")
    message = "cannot draw: the spec has errors, or defines no network"
    with pytest.raises(JsonRpcException, match=message):  # and no window, because a preview asks after each edit
        command("cnnspec.draw", document.uri, "svg")
    command("cnnspec.draw", document.uri)
    (told,) = [params.message for method, params in editor.requested if method == lsp.WINDOW_SHOW_MESSAGE]
    assert told == message
    document.close()


def test_documents_without_a_valid_path(editor: Editor, tmp_path: Path) -> None:
    loop = tmp_path / "loop.cnn"
    loop.symlink_to(loop)
    uris = [
        "file:///a%00b.cnn",
        f"file:///{'a' * 5000}.cnn",
        loop.as_uri(),
        "git:/a.cnn",
        "a",
        "file:",
        tmp_path.as_uri(),
    ]
    for uri in uris:
        document = editor.open('input 3x8x8\nuse b from "other"\nb 8\n', uri)
        assert [found.code for found in document.diagnostics] == ["E0212"]
        found = editor.run(editor.client.text_document_completion_async(lsp.CompletionParams(**document.at("other"))))
        assert isinstance(found, lsp.CompletionList)
        document.close()


def test_open_buffers_replace_files(editor: Editor, tmp_path: Path) -> None:
    library, spec = tmp_path / "parts.cnn", tmp_path / "net.cnn"
    library.write_text("block part(c) { conv 3x3 c }\n")
    document = editor.open(
        'input 3x8x8\nuse part from "parts"\npart 8 | conv 1x1 4 | flatten | linear 2\n', spec.as_uri()
    )
    assert list(document.diagnostics) == []
    editor.published.clear()
    other = editor.open("block part(c) { conv 3x3 c | flatten }\n", library.as_uri())
    (found,) = document.diagnostics
    assert (found.code, document.part(found.range)) == ("E0308", "conv")
    other.close()
    editor.published.clear()
    assert list(document.diagnostics) == []
    document.close()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-32"])
def test_other_encodings_of_positions(encoding: str) -> None:
    editor = Editor(encoding=encoding)
    document = editor.open(
        "# \N{GREEK SMALL LETTER ALPHA}\ninput 3x8x8 # \N{SMILING FACE WITH OPEN MOUTH}; convv 3x3 8\n"
    )
    document.replace("; convv", "\nadd { conv 1x1 3; in } # \N{SMILING FACE WITH OPEN MOUTH}\nconvv")
    (found,) = document.diagnostics
    assert found.range.start == lsp.Position(3, 0)
    assert editor.close() == (0, "")


def test_without_pygls_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['pygls'] = None; sys.argv = ['cnnspec', 'lsp']; from cnnspec.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "E0507" in done.stderr
    assert "pip install 'cnnspec[lsp]'" in done.stderr


def test_the_server_imports_no_torch() -> None:
    code = "import sys, cnnspec.lsp.server; print({'torch', 'numpy'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


# --- what can be written -------------------------------------------------------------------------


def complete(editor: Editor, code: str) -> dict[str, lsp.CompletionItem]:
    """Return the completions at `<>` in some code."""
    document = editor.open(code.replace("<>", ""))
    request = lsp.CompletionParams(document.id, document.position(code.index("<>")))
    found = editor.run(editor.client.text_document_completion_async(request))
    assert isinstance(found, lsp.CompletionList)
    document.close()
    return {item.label: item for item in found.items}


HEAD = "input 3x32x32\nparam width = 16\nstem conv 3x3 width\nbody: conv 3x3 16\n"


@pytest.mark.parametrize(
    ("code", "offered", "not_offered"),
    [
        ("inp<>", {"input", "in", "init"}, {"conv"}),
        (HEAD + "<>", {"conv", "resnet_block", "add", "let", "train", "stage"}, {"epochs", "c"}),
        (HEAD + "conv 3x3 16 | <>", {"bn", "relu", "concat"}, {"train"}),
        (HEAD + "conv 3x3 <>", {"c", "stride", "depthwise", "width", "in.c", "repeat", "name"}, {"kernel2", "bn"}),
        (HEAD + "conv 3x3 c=16 pad=<>", {"same", "tf_same", "width"}, {"true", "relu"}),
        (HEAD + "conv 3x3 c=16 bias=<>", {"true", "false"}, {"same"}),
        (HEAD + "conv 3x3 in.<>", {"in.c", "in.h", "in.w"}, {"width"}),
        (HEAD + "upsample like=<>", {"@body", "@stem", "in"}, set()),
        (HEAD + "add { @<> ; in }", {"body", "stem"}, {"width"}),
        ("block b(c, side: tensor) { x: relu; add { in; @<> } }\n" + HEAD, {"side", "x"}, {"c", "body"}),
        ("block b(c, side: tensor) { conv 3x3 <> }\n" + HEAD, {"c"}, {"side"}),
        ("block b(c, side: tensor) { relu }\n" + HEAD + "b 3 side=<>", {"@body", "@stem", "in"}, {"relu"}),
        ("block b(c, side: tensor) { relu }\n" + HEAD + "b 3 <>", {"@body", "@stem", "in", "side"}, {"relu"}),
        ("block b(c, side: tensor) { relu }\n" + HEAD + "b 3 @<>", {"body", "stem"}, {"width"}),
        ("block b(act: op = relu, c) { conv 3x3 <> }", {"act", "c"}, {"body"}),
        ("block b(act: op = relu, c) { act }\nb act=<>", {"relu", "gelu"}, {"same"}),
        ("init <>", {"conv", "linear"}, {"relu"}),
        ("init conv kaiming_normal <>", {"mode", "nonlinearity"}, {"stride"}),
        ("expect <>", {"params", "macs", "output", "depth"}, set()),
        ("extends <>", {"resnet50"}, set()),
        ('use conv_bn from "<>"', {"blocks/conv_bn.cnn"}, {"resnet50"}),
        ("train {\n    <>\n}", {"epochs", "data", "optimizer", "freeze"}, {"conv"}),
        ("train {\n    data <>\n}", {"cifar10", "folder", "hf"}, {"epochs", "hflip"}),
        ("train {\n    augment hflip | <>\n}", {"random_crop", "cutout"}, {"cifar10"}),
        ("train {\n    optimizer sgd <>\n}", {"lr", "momentum"}, {"epochs"}),
        ("train {\n    optimizer sgd lr=0.1 <>\n}", {"momentum"}, {"lr"}),
        ("train {\n    precision <>\n}", {"bf16", "fp32"}, {"sgd"}),
        ("stem: conv 3x3 8\ntrain {\n    freeze <>\n}", {"stem", "until"}, {"sgd"}),
        ("# a comment <>", set(), {"conv"}),
    ],
)
def test_completion(editor: Editor, code: str, offered: set[str], not_offered: set[str]) -> None:
    found = {*complete(editor, code)}
    assert offered - found == set()
    assert not_offered & found == set()


def test_completion_has_types_defaults_and_documentation(editor: Editor) -> None:
    items = complete(editor, "# two layers\nblock pair(c: int) { conv 3x3 c }\nconv 3x3 <>")
    assert items["stride"].detail == "stride: size = 1x1"
    items = complete(editor, "block pair(c: int) { conv 3x3 c }\n# \N{SMILING FACE WITH OPEN MOUTH}\n  con<>v")
    item = editor.run(editor.client.completion_item_resolve_async(items["conv"]))
    assert isinstance(item.documentation, lsp.MarkupContent)
    assert "torch.nn.Conv2d" in item.documentation.value
    assert item.text_edit is not None
    assert item.text_edit.range == lsp.Range(lsp.Position(2, 2), lsp.Position(2, 5))
    assert complete(editor, "block pair(c: int) { conv 3x3 c }\np<>")["pair"].detail == "pair(c: int)"


@pytest.mark.parametrize(
    ("code", "active"),
    [
        ("conv <>", "kernel"), ("conv 3x<>3", "kernel"), ("conv 3x3 <>", "c"), ("conv 3x3 stride=<>", "stride"),
        ("conv 3x3 stride=2 <>", "c"), ("conv x3 3x3 2 * in.c <>", "stride"), ("conv 3x3 max(1, <>", "c"),
        ("stem conv 3x3 16 | dropout <>", "p"), ("train {\n  optimizer sgd <>\n}", "lr"),
        ("train {\n  schedule cosine warmup=<>\n}", "warmup"), ("init conv trunc_normal <>", "std"),
        ("block b(n: int, act: op) { act }\nb 3 <>", "act"),
        ("block b(t: tensor, n) { relu }\nx: relu\nb @x <>", "n"), ("conv 3x3 16 foo=<>", None), ("relu # <>", False),
    ],
)  # fmt: skip
def test_signature_help(editor: Editor, code: str, active: str | bool | None) -> None:
    document = editor.open(code.replace("<>", ""))
    request = lsp.SignatureHelpParams(document.id, document.position(code.index("<>")))
    found = editor.run(editor.client.text_document_signature_help_async(request))
    document.close()
    if active is False:
        assert found is None
        return
    assert found is not None
    parameters = found.signatures[0].parameters or ()
    label = None if found.active_parameter is None else str(parameters[found.active_parameter].label)
    assert (label.partition(":")[0] if label else None) == active


# --- names ---------------------------------------------------------------------------------------

NAMES = """\
input 3x32x32
param width = 16
block pair(c, act: op = relu) {
    let half = c // 2
    inner: conv 3x3 half
    act
    add { conv 3x3 c name="{half}x"; @inner | conv 1x1 c }
}
block gate(skip: tensor) { add { conv 1x1 in.c | upsample like=@skip; @skip } }
first: pair width
repeat 2 as i { pair c=width * (i + 1) act=gelu }
let half = width
add { conv 3x3 half; @first | conv 1x1 half }
gate skip=@first
global_avgpool | flatten | linear 10
train {
    freeze first
}
"""


@pytest.mark.parametrize(
    ("code", "into", "uses"),
    [
        ("width =", 0, ["width"] * 4),
        ("pair(", 0, ["pair"] * 3),
        ("c,", 0, ["c"] * 5),
        ("act:", 0, ["act"] * 3),
        ("half = c", 0, ["half"] * 3),
        ("half = width", 0, ["half"] * 3),
        ("inner:", 0, ["inner"] * 2),
        ("@first", 3, ["first"] * 4),
        ("skip:", 0, ["skip"] * 4),
        ("@skip }", 1, ["skip"] * 4),
        ("skip=@first", 0, ["skip"] * 4),
        ("i {", 0, ["i"] * 2),
    ],
)
def test_definition_references_and_rename(editor: Editor, code: str, into: int, uses: list[str]) -> None:
    document = editor.open(NAMES)
    here = document.at(code, into)
    context = lsp.ReferenceContext(True)
    found = editor.run(editor.client.text_document_references_async(lsp.ReferenceParams(context, **here))) or ()
    assert [document.part(place.range) for place in found] == uses
    for place in found:
        start = {"text_document": document.id, "position": place.range.start}
        defined = editor.run(editor.client.text_document_definition_async(lsp.DefinitionParams(**start)))
        assert isinstance(defined, lsp.Location)
        assert defined.range == min(found, key=lambda place: document.offset(place.range.start)).range
    marked = editor.run(editor.client.text_document_document_highlight_async(lsp.DocumentHighlightParams(**here)))
    assert [mark.range for mark in marked or ()] == [place.range for place in found]
    edit = editor.run(editor.client.text_document_rename_async(lsp.RenameParams(new_name="renamed", **here)))
    assert edit is not None
    (changes,) = edit.document_changes or ()
    assert isinstance(changes, lsp.TextDocumentEdit)
    text = document.apply(changes.edits)
    before, after = cnnspec.loads(document.text), cnnspec.loads(text)
    keys = [[key for node in graph.nodes for key in node.parameters] for graph in (before, after)]
    assert [(node.op.name, node.inputs) for node in before.nodes] == [(n.op.name, n.inputs) for n in after.nodes]
    assert bool(edit.change_annotations) == (keys[0] != keys[1]) == (code in ("inner:", "@first"))
    document.close()


def test_a_renaming_that_changes_the_meaning_is_refused(editor: Editor) -> None:
    document = editor.open(NAMES)
    for code, new, reason in [
        ("width =", "half", "half"),
        ("pair(", "conv", "not a valid name"),
        ("width =", "2x", "not a valid name"),
        ("width =", "input", "not a valid name"),
        ("act:", "c", "cannot be used"),
        ("skip:", "in", "not a valid name"),
        ("skip:", "x.y", "not a valid name"),
    ]:
        request = lsp.RenameParams(new_name=new, **document.at(code))
        with pytest.raises(JsonRpcException, match=reason):
            editor.run(editor.client.text_document_rename_async(request))
    with pytest.raises(JsonRpcException, match="no name"):
        editor.run(editor.client.text_document_prepare_rename_async(lsp.PrepareRenameParams(**document.at("input"))))
    place = editor.run(
        editor.client.text_document_prepare_rename_async(lsp.PrepareRenameParams(**document.at("width")))
    )
    assert isinstance(place, lsp.Range)
    assert document.part(place) == "width"
    document.close()


def test_names_in_several_files(tmp_path: Path) -> None:
    library, base, spec = tmp_path / "parts.cnn", tmp_path / "base.cnn", tmp_path / "net.cnn"
    library.write_text("block part(c) { conv 3x3 c | bn }\n")
    base.write_text('input 3x8x8\nparam n = 4\nuse part from "parts"\npart n | global_avgpool | flatten | linear 2\n')
    spec.write_text("extends base n=8\n")
    (tmp_path / "broken.cnn").write_text("input 3x8x8\nconvv 3x3 8\n")
    editor = Editor(tmp_path, patience=60_000)
    broken = (tmp_path / "broken.cnn").as_uri()
    editor.wait(lambda: len(editor.published) == 4)  # the diagnostics of the workspace
    assert {uri: len(found) for uri, (_, found) in editor.published.items() if found} == {broken: 1}
    document = editor.open(base.read_text(), base.as_uri())
    defined = editor.run(editor.client.text_document_definition_async(lsp.DefinitionParams(**document.at("part n"))))
    assert defined == lsp.Location(library.as_uri(), lsp.Range(lsp.Position(0, 6), lsp.Position(0, 10)))
    defined = editor.run(editor.client.text_document_definition_async(lsp.DefinitionParams(**document.at("parts"))))
    assert isinstance(defined, lsp.Location)
    assert defined.uri == library.as_uri()
    edit = editor.run(
        editor.client.text_document_rename_async(lsp.RenameParams(new_name="piece", **document.at("part n")))
    )
    assert edit is not None
    changed = {c.text_document.uri: c for c in edit.document_changes or () if isinstance(c, lsp.TextDocumentEdit)}
    assert {*changed} == {library.as_uri(), base.as_uri()}
    assert document.apply(changed[base.as_uri()].edits) == document.text.replace("part ", "piece ")
    request = lsp.ReferenceParams(lsp.ReferenceContext(False), **document.at("n = 4"))
    found = editor.run(editor.client.text_document_references_async(request)) or ()
    assert {place.uri for place in found} == {base.as_uri(), spec.as_uri()}
    (tmp_path / "broken.cnn").write_text("input 3x8x8\nconv 3x3 8 | global_avgpool | flatten | linear 2\n")
    changes = [lsp.FileEvent(broken, lsp.FileChangeType.Changed)]
    editor.client.workspace_did_change_watched_files(lsp.DidChangeWatchedFilesParams(changes))
    editor.wait(lambda: not editor.published[broken][1])
    assert editor.close() == (0, "")


# --- the outline ---------------------------------------------------------------------------------


def test_document_symbols(editor: Editor) -> None:
    document = editor.open(NAMES)
    found = editor.run(editor.client.text_document_document_symbol_async(lsp.DocumentSymbolParams(document.id)))

    def tree(symbols: Sequence[Any]) -> dict[str, Any]:
        return {symbol.name: tree(symbol.children or ()) for symbol in symbols}

    assert tree(found or ()) == {
        "width": {},
        "pair": {"c": {}, "act": {}, "half": {}, "inner": {}},
        "gate": {"skip": {}},
        "first": {},
        "half": {},
        "train": {"freeze": {}},
    }
    document.close()


def test_folding(editor: Editor) -> None:
    document = editor.open("# one\n# two\n" + NAMES + "add {\n  conv 3x3 8\n")
    found = editor.run(editor.client.text_document_folding_range_async(lsp.FoldingRangeParams(document.id)))
    assert [(part.start_line, part.end_line) for part in found or ()] == [(0, 1), (4, 8), (17, 18)]
    document.close()


def test_semantic_tokens(editor: Editor) -> None:
    text = NAMES + "# \N{SMILING FACE WITH OPEN MOUTH}\nlast: conv 1x1 c=width | pair 8\nconv 3x3 ("
    document = editor.open(text)
    request = lsp.SemanticTokensParams(document.id)
    found = editor.run(editor.client.text_document_semantic_tokens_full_async(request))
    provider = editor.capabilities.semantic_tokens_provider
    assert provider is not None
    assert found is not None
    kinds: dict[str, set[str]] = {}
    line = column = 0
    for index in range(0, len(found.data), 5):
        lines, start, length, kind, _ = found.data[index : index + 5]
        line, column = line + lines, start if lines else column + start
        place = lsp.Range(lsp.Position(line, column), lsp.Position(line, column + length))
        kinds.setdefault(document.part(place), set()).add(provider.legend.token_types[kind])
    expected = {
        "keyword": "input freeze train",
        "function": "conv gelu",
        "class": "pair act",
        "parameter": "act",
        "variable": "width first",
        "property": "first @first inner last",
        "type": "op tensor",
        "number": "3x3",
    }
    for kind, words in expected.items():
        assert [word for word in words.split() if kind not in kinds[word]] == []
    assert kinds['"{half}x"'] == {"string"}
    assert kinds["# \N{SMILING FACE WITH OPEN MOUTH}"] == {"comment"}
    document.close()


# --- named outputs -------------------------------------------------------------------------------

OUTPUTS = """\
input 3x32x32
stem: conv 3x3 16
p3: conv 3x3 8 stride=2
output 0 from @stem
output maps.p3 from @p3
expect output.maps.p3 = [8, 16, 16]
"""


def test_named_outputs(editor: Editor) -> None:
    document = editor.open(OUTPUTS)
    assert list(document.diagnostics) == []
    for code, into in (("maps.p3 from", 3), ("output maps", 2)):
        found = editor.run(editor.client.text_document_hover_async(lsp.HoverParams(**document.at(code, into))))
        assert "[N, 8, 16, 16]" in markdown(found)
    symbols = lsp.DocumentSymbolParams(document.id)
    listed: Any = editor.run(editor.client.text_document_document_symbol_async(symbols)) or ()
    assert [symbol.name for symbol in listed] == ["stem", "p3", "0", "maps.p3"]
    here = document.at("p3: conv")
    uses = lsp.ReferenceParams(lsp.ReferenceContext(True), **here)
    places = editor.run(editor.client.text_document_references_async(uses)) or ()
    assert [place.range.start.line for place in places] == [2, 4]
    edit = editor.run(editor.client.text_document_rename_async(lsp.RenameParams(new_name="last", **here)))
    assert edit is not None
    (changes,) = edit.document_changes or ()
    assert isinstance(changes, lsp.TextDocumentEdit)
    text = document.apply(changes.edits)
    assert text == OUTPUTS.replace("p3: conv", "last: conv").replace("@p3", "@last")
    assert cnnspec.loads(text).taps == {"0": 0, "maps.p3": 1}
    request = lsp.SemanticTokensParams(document.id)
    tokens = editor.run(editor.client.text_document_semantic_tokens_full_async(request))
    assert tokens is not None
    provider = editor.capabilities.semantic_tokens_provider
    assert provider is not None
    kinds = [provider.legend.token_types[tokens.data[index]] for index in range(3, len(tokens.data), 5)]
    assert " ".join(kinds).count("keyword property keyword property") == 2
    document.close()


@pytest.mark.parametrize("code", ["0 from", "maps.p3 from", "maps.p3 = "])
def test_a_named_output_is_a_name_like_others(code: str, editor: Editor) -> None:
    document = editor.open(f"{OUTPUTS}expect output.0 = [16, 32, 32]\n")
    name, here = code.split()[0], document.at(code)
    uses = lsp.ReferenceParams(lsp.ReferenceContext(True), **here)
    found = [place.range for place in editor.run(editor.client.text_document_references_async(uses)) or ()]
    assert [document.part(place) for place in found] == [name, name]
    marked = editor.run(editor.client.text_document_document_highlight_async(lsp.DocumentHighlightParams(**here)))
    assert [mark.range for mark in marked or ()] == found
    for place in found:
        start: dict[str, Any] = {"text_document": document.id, "position": place.start}
        defined = editor.run(editor.client.text_document_definition_async(lsp.DefinitionParams(**start)))
        assert isinstance(defined, lsp.Location)
        assert defined.range == found[0]
        hover = editor.run(editor.client.text_document_hover_async(lsp.HoverParams(**start)))
        assert hover is not None
        assert hover.range == place
        assert f"output {name} from @" in markdown(hover)
        assert ("[N, 16, 32, 32]" if name == "0" else "[N, 8, 16, 16]") in markdown(hover)
    for new in ("renamed", "maps.p4", *"0 1 else input conv from p3 maps.p3 a-b .a a.".split(), "", "a b", "a\nb"):
        if new == name:
            continue
        request = lsp.RenameParams(new_name=new, **here)
        renamed = document.text
        for before in ("output ", "output."):
            renamed = renamed.replace(f"{before}{name} ", f"{before}{new} ")
        check = compile_source(Source("net", renamed))
        if check.graph is None or [*check.graph.taps.values()] != [0, 1] or new not in check.graph.taps:
            with pytest.raises(JsonRpcException, match=r"not a valid name|cannot be used"):
                editor.run(editor.client.text_document_rename_async(request))
            continue
        edit = editor.run(editor.client.text_document_rename_async(request))
        assert edit is not None
        (changes,) = edit.document_changes or ()
        assert isinstance(changes, lsp.TextDocumentEdit)
        assert not edit.change_annotations
        assert document.apply(changes.edits) == renamed
    document.close()


def test_named_outputs_of_an_extended_network(tmp_path: Path) -> None:
    base, heir, other = tmp_path / "base.cnn", tmp_path / "heir.cnn", tmp_path / "other.cnn"
    base.write_text(OUTPUTS)
    heir.write_text("extends base\nexpect output.0 = [16, 32, 32]\n")
    other.write_text("extends base\noutput 0 from @p3\nexpect output.0 = [8, 16, 16]\n")
    editor = Editor(tmp_path, patience=60_000)
    editor.wait(lambda: len(editor.published) == 3)
    documents = {path: editor.open(path.read_text(), path.as_uri()) for path in (base, heir, other)}
    places = {path: document.at("0 ") for path, document in documents.items()}
    for path, expected in ((base, {base, heir}), (heir, {base, heir}), (other, {other})):
        request = lsp.ReferenceParams(lsp.ReferenceContext(True), **places[path])
        found = editor.run(editor.client.text_document_references_async(request)) or ()
        assert {place.uri for place in found} == {path.as_uri() for path in expected}
    edit = editor.run(editor.client.text_document_rename_async(lsp.RenameParams(new_name="stem", **places[heir])))
    assert edit is not None
    changed = {c.text_document.uri: c for c in edit.document_changes or () if isinstance(c, lsp.TextDocumentEdit)}
    for path in (base, heir):
        path.write_text(documents[path].apply(changed[path.as_uri()].edits))
    assert [*cnnspec.load(heir).taps] == [*cnnspec.load(base).taps] == ["stem", "maps.p3"]
    assert editor.close() == (0, "")


@pytest.mark.parametrize(
    ("code", "offered", "not_offered"),
    [
        ("<>", {"output"}, set()),
        ("block b(c) { <> }", set(), {"output"}),
        ("output a <>", {"from"}, {"in.c"}),
        ("output a from <>", {"@p3", "@stem"}, {"from"}),
        ("output a from @<>", {"p3", "stem"}, {"from"}),
        ("expect <>", {"output", "output.0", "output.maps.p3"}, set()),
    ],
)
def test_completion_of_outputs(editor: Editor, code: str, offered: set[str], not_offered: set[str]) -> None:
    found = {*complete(editor, OUTPUTS + code)}
    assert offered - found == set()
    assert not_offered & found == set()


# --- several images ------------------------------------------------------------------------------

IMAGES = """\
input left 3x32x32
input right 3x32x32
features: conv 3x3 16
other: @right | again @features
add { @features; @other; @right | conv 1x1 16 }
"""


def test_several_images(editor: Editor) -> None:
    document = editor.open(IMAGES)
    assert list(document.diagnostics) == []
    for code in ("right 3x32", "@right |"):
        found = editor.run(editor.client.text_document_hover_async(lsp.HoverParams(**document.at(code, 2))))
        assert "input right 3x32x32" in markdown(found)
    hints = editor.run(
        editor.client.text_document_inlay_hint_async(
            lsp.InlayHintParams(document.id, lsp.Range(lsp.Position(0, 0), lsp.Position(5, 0)))
        )
    )
    assert [hint.position.line for hint in hints or ()] == [2, 3, 4]
    here = document.at("right 3x32")
    uses = lsp.ReferenceParams(lsp.ReferenceContext(True), **here)
    places = editor.run(editor.client.text_document_references_async(uses)) or ()
    assert [place.range.start.line for place in places] == [1, 3, 4]
    edit = editor.run(editor.client.text_document_rename_async(lsp.RenameParams(new_name="back", **here)))
    assert edit is not None
    (changes,) = edit.document_changes or ()
    assert isinstance(changes, lsp.TextDocumentEdit)
    text = document.apply(changes.edits)
    assert text == IMAGES.replace("right", "back")
    assert [*cnnspec.loads(text).images] == ["left", "back"]
    for taken in ("left", "features", "stem", "in", "a.b", "3"):
        with pytest.raises(JsonRpcException):
            editor.run(editor.client.text_document_rename_async(lsp.RenameParams(new_name=taken, **here)))
    document.close()
    assert {"left", "right"} <= {*complete(editor, f"{IMAGES}concat {{ in; @<> }}")}
