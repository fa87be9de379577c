"""The features of the language server, over its protocol."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

pytest.importorskip("pygls")
from harness.editor import Editor
from lsprotocol import types as lsp

import cnnspec

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
    assert editor.run(editor.client.text_document_code_action_async(request)) == (all_fixes,)
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
    assert command("cnnspec.draw", document.uri, "svg") is None
    (told,) = [params.message for method, params in editor.requested if method == lsp.WINDOW_SHOW_MESSAGE]
    assert told == "cannot draw: the spec has errors, or defines no network"
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
