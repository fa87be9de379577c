"""An editor that talks to the language server."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from lsprotocol import types as lsp
from pygls.lsp.client import LanguageClient

T = TypeVar("T")
WAIT = 60
"""Seconds to wait for an answer on a loaded machine."""


class Editor:
    """A client of one server process.

    Attributes:
        published: The last diagnostics of each document, with their version.
        requested: The requests of the server by method.
    """

    def __init__(self, folder: Path | None = None, encoding: str = "utf-16", **options: Any) -> None:
        self._runner = asyncio.Runner()
        self.client = LanguageClient("test", "1")
        self.published: dict[str, tuple[int | None, Sequence[lsp.Diagnostic]]] = {}
        self.requested: list[tuple[str, Any]] = []
        self._news = asyncio.Event()
        self._opened = 0
        self._register()
        folders = [lsp.WorkspaceFolder(folder.as_uri(), folder.name)] if folder else None
        capabilities = lsp.ClientCapabilities(
            general=lsp.GeneralClientCapabilities(position_encodings=[lsp.PositionEncodingKind(encoding)]),
            workspace=lsp.WorkspaceClientCapabilities(
                inlay_hint=lsp.InlayHintWorkspaceClientCapabilities(True),
                did_change_watched_files=lsp.DidChangeWatchedFilesClientCapabilities(True),
                workspace_edit=lsp.WorkspaceEditClientCapabilities(
                    document_changes=True, change_annotation_support=lsp.ChangeAnnotationsSupportOptions()
                ),
            ),
            window=lsp.WindowClientCapabilities(show_document=lsp.ShowDocumentClientCapabilities(True)),
        )
        start = lsp.InitializeParams(capabilities, workspace_folders=folders, initialization_options=options or None)
        self.run(self.client.start_io(sys.executable, "-m", "cnnspec", "lsp"))
        self.capabilities = self.run(self.client.initialize_async(start)).capabilities
        self.client.initialized(lsp.InitializedParams())

    def _register(self) -> None:
        client = self.client

        @client.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def _(params: lsp.PublishDiagnosticsParams) -> None:
            self.published[params.uri] = params.version, params.diagnostics
            self._news.set()

        for method in (
            lsp.WORKSPACE_INLAY_HINT_REFRESH,
            lsp.CLIENT_REGISTER_CAPABILITY,
            lsp.WINDOW_SHOW_MESSAGE,
            lsp.WINDOW_SHOW_DOCUMENT,
        ):

            @client.feature(method)
            def _(params: Any, method: str = method) -> Any:
                self.requested.append((method, params))
                self._news.set()
                return lsp.ShowDocumentResult(True) if method == lsp.WINDOW_SHOW_DOCUMENT else None

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for a request."""
        return self._runner.run(asyncio.wait_for(work, WAIT))

    def wait(self, happened: Any) -> None:
        """Wait until a function returns true; it is asked after each message of the server."""

        async def until() -> None:
            while not happened():
                await self._news.wait()
                self._news.clear()

        self.run(until())

    def close(self) -> tuple[int, str]:
        """Stop the server, and return its exit code and what it printed on the standard error."""

        async def stop() -> tuple[int, str]:
            await self.client.shutdown_async(None)
            self.client.exit(None)
            server: Any = self.client._server
            errors = await server.stderr.read()
            code = await server.wait()
            await self.client.stop()
            return code, errors.decode()

        answer = self.run(stop())
        self._runner.close()
        return answer

    def open(self, text: str, uri: str | None = None) -> Document:
        self._opened += 1
        return Document(self, text, uri or f"untitled:net{self._opened}")


class Document:
    """An open document."""

    def __init__(self, editor: Editor, text: str, uri: str) -> None:
        self.editor, self.client, self.uri, self.text, self.version = editor, editor.client, uri, text, 1
        self.id = lsp.TextDocumentIdentifier(uri)
        editor.published.pop(uri, None)
        self.client.text_document_did_open(
            lsp.DidOpenTextDocumentParams(lsp.TextDocumentItem(uri, "cnn", self.version, text))
        )

    def close(self) -> None:
        self.client.text_document_did_close(lsp.DidCloseTextDocumentParams(self.id))

    def edit(self, start: int, end: int, new: str) -> None:
        """Replace the text between two offsets."""
        changed = lsp.TextDocumentContentChangePartial(lsp.Range(self.position(start), self.position(end)), new)
        self.text = self.text[:start] + new + self.text[end:]
        self.version += 1
        identifier = lsp.VersionedTextDocumentIdentifier(self.version, self.uri)
        self.client.text_document_did_change(lsp.DidChangeTextDocumentParams(identifier, [changed]))

    def replace(self, old: str, new: str) -> None:
        start = self.text.index(old)
        self.edit(start, start + len(old), new)

    def position(self, offset: int) -> lsp.Position:
        """Return the position of an offset in UTF-16."""
        before = self.text[:offset]
        line = before[before.rfind("\n") + 1 :]
        return lsp.Position(before.count("\n"), len(line.encode("utf-16-le", "surrogatepass")) // 2)

    def offset(self, position: lsp.Position) -> int:
        lines = self.text.split("\n")
        start = sum(len(line) + 1 for line in lines[: position.line])
        line = lines[position.line].encode("utf-16-le", "surrogatepass")[: 2 * position.character]
        return start + len(line.decode("utf-16-le", "surrogatepass"))

    def at(self, code: str, into: int = 0) -> Any:
        """Return the arguments for a request at the place of some code."""
        return {"text_document": self.id, "position": self.position(self.text.index(code) + into)}

    def part(self, found: lsp.Range) -> str:
        return self.text[self.offset(found.start) : self.offset(found.end)]

    @property
    def whole(self) -> lsp.Range:
        return lsp.Range(lsp.Position(0, 0), self.position(len(self.text)))

    @property
    def diagnostics(self) -> Sequence[lsp.Diagnostic]:
        """The diagnostics of the current text."""
        self.editor.wait(lambda: self.editor.published.get(self.uri, (0, ()))[0] == self.version)
        return self.editor.published[self.uri][1]

    def apply(self, edits: Sequence[Any] | None) -> str:
        """Return the text after some edits."""
        text = self.text
        for edit in sorted(edits or (), key=lambda edit: self.offset(edit.range.start), reverse=True):
            start, end = self.offset(edit.range.start), self.offset(edit.range.end)
            text = text[:start] + edit.new_text + text[end:]
        return text
