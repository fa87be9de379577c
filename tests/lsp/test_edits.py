"""Random edits in the language server: no internal error, the diagnostics of a cold check, and quick answers."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import pytest

pytest.importorskip("pygls")
from harness.editor import Document, Editor
from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException

from cnnspec.compiler import compile_source
from cnnspec.diagnostics import Source
from cnnspec.lsp.document import Change, Moved, Text
from cnnspec.resources import resource

SPECS = ["resnet20", "googlenet", "densenet_cifar", "mobilenet_v2", "lenet5", "resnet18_d2l", "ghostnet_100"]
PIECES = [
    *"conv 3x3 c=|conv 3x|add {|}|{|(|)|[|@|@sta|in.|#|=|block b(c|repeat 3 as i {|    epochs |let x = |extends resnet"
    '|stage |x:|if in.c > 3 then|x3 |10000000000|1e999|0x0|;|freeze @|a.b.c: |else|when|"|use conv_bn from "|\t'
    '|name="{i + }"'.split("|"),
    *(" | ", "|", "\n", "\n\n", "block b(c) { conv 3x3 c }\n", "train {\n", "each b(c) {\n a: 3\n}", "-" * 90),
    *(
        "\N{LATIN SMALL LETTER E WITH ACUTE}",
        "\N{SMILING FACE WITH OPEN MOUTH}",
        "\u2028",
        "\x0c",
        "\x85",
        "\x00",
        "\ud800",
    ),
]


def mutate(document: Document, rng: random.Random) -> None:
    """Make one edit as a person makes them: typing, deleting, or changing a line."""
    length = len(document.text)
    start = rng.randrange(length + 1)
    match rng.randrange(6):
        case 0 | 1:
            document.edit(start, start, rng.choice(PIECES))
        case 2:
            document.edit(start, min(length, start + rng.randrange(1, 12)), "")
        case 3:
            document.edit(start, min(length, start + rng.randrange(3)), rng.choice(PIECES))
        case 4:  # remove the rest of a line, or also what is around it
            end = document.text.find("\n", start)
            document.edit(start, length if end < 0 else min(length, end + rng.randrange(2)), "")
        case _:
            line = rng.choice(document.text.split("\n"))
            document.edit(start, start, f"\n{line}\n")


def requests(document: Document, rng: random.Random) -> list[Callable[[], Any]]:
    """Return a request of each feature, at a random position."""
    client, place = document.client, document.position(rng.randrange(len(document.text) + 1))
    if rng.random() < 0.05:
        place = lsp.Position(rng.randrange(10_000), rng.randrange(10_000))
    here: dict[str, Any] = {"text_document": document.id, "position": place}
    part = lsp.Range(*sorted([place, document.position(rng.randrange(len(document.text) + 1))]))
    new = rng.choice(["other", "conv", "x", "in"])
    return [
        lambda: client.text_document_hover_async(lsp.HoverParams(**here)),
        lambda: client.text_document_completion_async(lsp.CompletionParams(**here)),
        lambda: client.text_document_signature_help_async(lsp.SignatureHelpParams(**here)),
        lambda: client.text_document_inlay_hint_async(lsp.InlayHintParams(document.id, document.whole)),
        lambda: client.text_document_code_lens_async(lsp.CodeLensParams(document.id)),
        lambda: client.text_document_document_symbol_async(lsp.DocumentSymbolParams(document.id)),
        lambda: client.text_document_folding_range_async(lsp.FoldingRangeParams(document.id)),
        lambda: client.text_document_semantic_tokens_full_async(lsp.SemanticTokensParams(document.id)),
        lambda: client.text_document_definition_async(lsp.DefinitionParams(**here)),
        lambda: client.text_document_document_highlight_async(lsp.DocumentHighlightParams(**here)),
        lambda: client.text_document_references_async(lsp.ReferenceParams(lsp.ReferenceContext(True), **here)),
        lambda: client.text_document_rename_async(lsp.RenameParams(new_name=new, **here)),
        lambda: client.text_document_code_action_async(
            lsp.CodeActionParams(document.id, part, lsp.CodeActionContext([]))
        ),
        lambda: client.text_document_formatting_async(
            lsp.DocumentFormattingParams(document.id, lsp.FormattingOptions(4, True))
        ),
    ]


def cold(text: str) -> list[tuple[str, int, int]]:
    """Return the code and the place of each diagnostic of a check that knows nothing of earlier texts."""
    found = compile_source(Source("cold", Source.plain(text))).diagnostics
    first = text.find("\n") if "\n" in text else len(text)
    return [(d.code, *((d.span.start, d.span.end) if d.span else (0, first))) for d in found]


def run_sequence(editor: Editor, seed: int) -> None:
    rng = random.Random(seed)
    spec = resource("specs", f"{rng.choice(SPECS)}.cnn").read_text("utf-8")
    document = editor.open(spec)
    for _ in range(rng.randrange(1, 9)):
        mutate(document, rng)
        for request in rng.sample(requests(document, rng), rng.randrange(3)):
            try:
                editor.run(request())
            except JsonRpcException as error:
                if error.code != lsp.LSPErrorCodes.RequestFailed:  # a renaming that is refused
                    raise
    found = [(d.code, document.offset(d.range.start), document.offset(d.range.end)) for d in document.diagnostics]
    assert found == cold(document.text), seed
    document.close()


def check_sequences(seeds: range) -> None:
    editor = Editor()
    for seed in seeds:
        run_sequence(editor, seed)
    assert editor.close() == (0, "")


def test_random_edits() -> None:
    check_sequences(range(20))


@pytest.mark.slow
def test_a_thousand_sequences_of_edits() -> None:
    check_sequences(range(1_000))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_positions_move_with_the_text(encoding: str) -> None:
    rng = random.Random(encoding)
    for _ in range(100):
        old = text = Text("".join(rng.choices("ab\N{GREEK SMALL LETTER ALPHA}\N{GRINNING FACE}\n", k=40)), encoding)
        kept: list[int | None] = [*range(len(old.text))]
        made: list[Change] = []
        for _ in range(rng.randrange(5)):
            start, end = sorted(rng.choices(range(len(text.text) + 1), k=2))
            end = min(end, start + 5)
            new = "".join(rng.choices("xy\n\N{GRINNING FACE}", k=rng.randrange(4)))
            change = lsp.TextDocumentContentChangePartial(text.range(start, end), new)
            kept[start:end] = [None] * len(new)
            text, done = text.changed([change])
            made += done
        assert len(kept) == len(text.text)
        moved = Moved(old, text, made)
        for offset, origin in enumerate(kept):
            if origin is not None:
                assert moved.back(text.position(offset)) == old.position(origin)
                assert moved.forward(old.position(origin)) == text.position(offset)
                assert text.offset(text.position(offset)) == offset


def long_spec(lines: int = 1_000) -> str:
    """Return a spec of so many lines, close to the limit of tokens."""
    parts = ["network long", "input 3x64x64", "stem conv 3x3 c=16 | bn | relu"]
    kinds = ("s{}: conv 3x3 c=16", "bn | relu", "add {{ conv 3x3 c=16; in }}", "# stage {}", "conv 1x1 16 | bn")
    parts += [kinds[number % len(kinds)].format(number) for number in range(lines - 4)]
    return "\n".join([*parts, "head global_avgpool | flatten | linear 10", ""])


class Raw:
    """A client that does nothing but send and read, so that its own time does not count."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "cnnspec", "lsp"]
        self._server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._count = 0
        self.request("initialize", {"capabilities": {}})

    def send(self, method: str, params: Any, **extra: Any) -> None:
        body = json.dumps({"jsonrpc": "2.0", "method": method, "params": params, **extra}).encode()
        assert self._server.stdin is not None
        self._server.stdin.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)
        self._server.stdin.flush()

    def read(self) -> bytes:
        output = self._server.stdout
        assert output is not None
        length = 0
        while line := output.readline().strip():
            if line.startswith(b"Content-Length:"):
                length = int(line.split(b":")[1])
        return output.read(length)

    def cpu(self) -> float:
        """Return the milliseconds that the threads of the server have computed."""
        threads = Path(f"/proc/{self._server.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e6

    def request(self, method: str, params: Any) -> tuple[float, Any]:
        """Return the milliseconds until the answer, and the answer."""
        self._count += 1
        begun = time.perf_counter()
        self.send(method, params, id=self._count)
        while True:
            body = self.read()
            spent = 1000 * (time.perf_counter() - begun)
            answer = json.loads(body)
            if answer.get("id") == self._count:
                return spent, answer["result"]

    def close(self) -> None:
        self.request("shutdown", None)
        self.send("exit", None)
        self._server.communicate(timeout=60)


@pytest.mark.slow
def test_a_long_file_is_answered_within_50_milliseconds(capsys: pytest.CaptureFixture[str]) -> None:
    """The processor time of all threads of the server counts; on an idle machine it is the time until the answer."""
    client, rng, text = Raw(), random.Random(0), long_spec()
    assert text.count("\n") == 1_000
    assert cold(text) == []
    document: dict[str, Any] = {"uri": "untitled:long"}
    item = {**document, "languageId": "cnn", "version": 0, "text": text}
    client.send("textDocument/didOpen", {"textDocument": item})
    client.request("textDocument/codeLens", {"textDocument": document})
    features = (
        "hover completion signatureHelp inlayHint codeLens documentSymbol foldingRange semanticTokens/full definition"
    )
    times: dict[str, list[float]] = {feature: [] for feature in [*features.split(), "documentHighlight"]}
    line, waited = 0, list[float]()
    for number in range(300):
        line = line if number % 2 else rng.randrange(3, 990)
        start, end = {"line": line, "character": 0}, {"line": line + number % 2, "character": 0}
        piece = "" if number % 2 else rng.choice(["relu\n", "bn | relu\n", "conv 3x3 c=\n", "# note\n"])
        change = {"range": {"start": start, "end": end}, "text": piece}
        version = {**document, "version": number + 1}
        computed = client.cpu()
        client.send("textDocument/didChange", {"textDocument": version, "contentChanges": [change]})
        feature = [*times][number % len(times)]
        place = {"line": rng.randrange(990), "character": rng.randrange(12)}
        page = {"start": place, "end": {"line": place["line"] + 60, "character": 0}}
        spent, _ = client.request(
            f"textDocument/{feature}", {"textDocument": document, "position": place, "range": page}
        )
        times[feature].append(client.cpu() - computed)
        waited.append(spent)
        time.sleep(rng.choice([0.02, 0.1, 0.3]))  # a person types
    every = [spent for spent_of_one in times.values() for spent in spent_of_one]
    p95 = quantiles(every, n=20)[-1]
    with capsys.disabled():
        print(f"\n{len(every)} requests: p50 {median(every):.1f} ms, p95 {p95:.1f} ms, max {max(every):.1f} ms")
        print(f"  with other processes: p50 {median(waited):.1f} ms, p95 {quantiles(waited, n=20)[-1]:.1f} ms")
        for feature, spent_of_one in times.items():
            print(f"  {feature}: p50 {median(spent_of_one):.1f} ms, max {max(spent_of_one):.1f} ms")
    client.close()
    assert p95 <= 50
