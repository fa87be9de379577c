"""The connection of the language server: open documents, a worker thread, and the handlers of the protocol.

A document is compiled in the worker thread after each edit; of several edits in the meantime, the last one counts. A
request waits a moment for the compilation of the current text. If a large text takes longer, features that only show
something answer from the previous compilation, with positions moved by the edit, and the client is asked to request
again when the new one is ready. Features that change the text always wait.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer
from pygls.protocol import LanguageServerProtocol
from pygls.protocol.language_server import lsp_method
from pygls.uris import to_fs_path

import cnnspec
from cnnspec.backends import diagram
from cnnspec.diagnostics import CnnspecError
from cnnspec.lsp import edits, views
from cnnspec.lsp.descriptions import reference_text
from cnnspec.lsp.document import Analysis, Moved, Text

T = TypeVar("T")
PATIENCE = 30
"""Milliseconds that a request waits for the current text before it is answered from the previous one."""
MAX_PATIENCE = 60_000
_log = logging.getLogger(__name__)


class Protocol(LanguageServerProtocol):
    """The protocol of pygls without its own copies of the documents, which break lines at more characters."""

    @lsp_method(lsp.TEXT_DOCUMENT_DID_CHANGE)
    def lsp_text_document__did_change(self, params: lsp.DidChangeTextDocumentParams) -> Generator[Any, Any, None]:
        """Pass the changes on."""
        manager: Any = self.fm
        yield manager.features[lsp.TEXT_DOCUMENT_DID_CHANGE], (params,), None


@dataclass
class Open:
    """An open document; a new `Text` object means that it has to be compiled again."""

    text: Text
    version: int | None
    path: Path | None


class Session:
    """The documents of one client and their compilations.

    Attributes:
        server: The connection.
        documents: The open documents by URI.
        patience: Milliseconds that a request waits for the current text.
    """

    def __init__(self, server: LanguageServer) -> None:
        self.server, self.patience = server, float(PATIENCE)
        self.documents: dict[str, Open] = {}
        self._compiled: dict[str, tuple[Text, Analysis | None]] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._done = asyncio.Event()
        self._answered_late = False
        self._folder = tempfile.TemporaryDirectory(prefix="cnnspec-")
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")

    @property
    def encoding(self) -> str:
        """The unit of columns that was agreed with the client."""
        chosen = self.server.workspace.position_encoding
        return chosen.value if isinstance(chosen, lsp.PositionEncodingKind) else str(chosen)

    # --- documents -------------------------------------------------------------------------------

    def open(self, uri: str, text: str, version: int | None) -> None:
        """Add a document, or replace its text."""
        self.documents[uri] = Open(Text(text, self.encoding), version, path_of(uri))
        self._schedule(uri)

    def change(self, uri: str, changes: Sequence[lsp.TextDocumentContentChangeEvent], version: int | None) -> None:
        """Change a document."""
        document = self.documents.get(uri)
        if document is None:
            return
        document.text, document.version = document.text.changed(changes), version
        self._schedule(uri)

    def close(self, uri: str) -> None:
        """Forget a document, and withdraw its diagnostics."""
        document = self.documents.pop(uri, None)
        self._compiled.pop(uri, None)
        if document is not None:
            self._publish(uri, None, [])
            self._recheck(document.path)

    def _schedule(self, uri: str) -> None:
        self._start(uri)
        self._recheck(self.documents[uri].path)

    def _recheck(self, path: Path | None) -> None:
        """Compile the open documents again that name a file."""
        for uri, other in self.documents.items():
            if path is not None and other.path != path and path.stem in other.text.text:
                other.text = Text(other.text.text, self.encoding)
                self._start(uri)

    def _start(self, uri: str) -> None:
        task = self._tasks.get(uri)
        if task is None or task.done():
            self._tasks[uri] = asyncio.create_task(self._compile(uri))

    def _is_current(self, uri: str, text: Text) -> bool:
        document = self.documents.get(uri)
        return document is not None and document.text is text

    async def _compile(self, uri: str) -> None:
        """Compile a document until its last text is compiled, and publish the diagnostics."""
        while (document := self.documents.get(uri)) is not None:
            text, version = document.text, document.version
            if uri in self._compiled and self._compiled[uri][0] is text:
                return
            buffers = {d.path.resolve(): d.text.text for d in self.documents.values() if d.path is not None}
            analysis = await self.work(Analysis.ready, text, uri, document.path, buffers)
            if uri in self.documents:
                self._compiled[uri] = text, analysis
            self._done.set()
            self._done = asyncio.Event()
            if analysis is None or not self._is_current(uri, text):
                continue
            self._ask_again()
            found = await self.work(views.diagnostics, analysis, lambda text=text: not self._is_current(uri, text))
            if found is not None and self._is_current(uri, text):
                self._publish(uri, version, found)

    async def work(self, function: Callable[..., T], *args: Any) -> T | None:
        """Run a function in the worker thread; None after an internal error, which is logged."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)
        except Exception:  # noqa: BLE001  # one request fails, and the server goes on
            _log.exception("internal error in %s", function.__name__)
            return None

    def _publish(self, uri: str, version: int | None, found: list[lsp.Diagnostic]) -> None:
        self.server.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri, found, version))

    def _ask_again(self) -> None:
        """Ask the client to request again what was answered from an earlier text."""
        workspace = self.server.client_capabilities.workspace
        if not self._answered_late or workspace is None:
            return
        self._answered_late = False
        if workspace.inlay_hint and workspace.inlay_hint.refresh_support:
            self.server.workspace_inlay_hint_refresh(None)
        if workspace.code_lens and workspace.code_lens.refresh_support:
            self.server.workspace_code_lens_refresh(None)

    # --- answers ---------------------------------------------------------------------------------

    async def current(self, uri: str) -> Analysis | None:
        """Return the compilation of the current text of a document."""
        while (document := self.documents.get(uri)) is not None:
            text, analysis = self._compiled.get(uri, (None, None))
            if text is document.text:
                return analysis
            await self._done.wait()
        return None

    async def soon(self, uri: str) -> tuple[Analysis | None, Moved | None]:
        """Return the compilation of the current text, or of an earlier one and how positions have moved since."""
        earlier = self._compiled.get(uri, (None, None))[1]
        if earlier is None:
            return await self.current(uri), None
        try:
            return await asyncio.wait_for(self.current(uri), self.patience / 1000), None
        except TimeoutError:
            self._answered_late = True
            document = self.documents.get(uri)
            return (earlier, Moved(earlier.text, document.text)) if document is not None else (None, None)

    async def show(self, uri: str, feature: Callable[[Analysis], T]) -> T | None:
        """Answer a request about a document."""
        analysis, moved = await self.soon(uri)
        if analysis is None:
            return None
        answer = feature(analysis)
        return answer if moved is None else moved.answer(answer)

    async def show_at(
        self, uri: str, position: lsp.Position, feature: Callable[[Analysis, lsp.Position], T]
    ) -> T | None:
        """Answer a request about a position."""
        analysis, moved = await self.soon(uri)
        place = position if moved is None else moved.back(position)
        if place is None:  # in the text that was edited
            analysis, moved, place = await self.current(uri), None, position
        if analysis is None:
            return None
        answer = feature(analysis, place)
        return answer if moved is None else moved.answer(answer)

    # --- commands --------------------------------------------------------------------------------

    async def draw(self, uri: str, format: str) -> str | None:
        """Return the diagram of a document in a text format; without one, show it as a page."""
        analysis = await self.current(uri)
        graph = analysis.compilation.graph if analysis is not None else None
        if graph is None:
            return self._tell("cannot draw: the spec has errors, or defines no network")
        try:
            suffix = diagram.format_of(f"diagram.{format or 'html'}")
            if suffix in (".png", ".pdf"):
                return self._tell(f"cannot draw: `{format}` is not a text format")
            drawn = await asyncio.get_running_loop().run_in_executor(self._worker, diagram.draw, graph, suffix)
        except CnnspecError as error:
            return self._tell(f"cannot draw: {error.diagnostics[0].message}")
        return drawn.decode() if format else await self.show_page("diagram.html", drawn, external=True)

    async def show_page(self, name: str, content: bytes, *, external: bool) -> None:
        """Show a generated file in the browser or in the editor."""
        path = Path(self._folder.name) / name
        path.write_bytes(content)
        window = self.server.client_capabilities.window
        if window is None or window.show_document is None or not window.show_document.support:
            return self._tell(f"written to {path}")
        shown = lsp.ShowDocumentParams(path.as_uri(), external=external, take_focus=True)
        await self.server.window_show_document_async(shown)
        return None

    def _tell(self, message: str) -> None:
        self.server.window_show_message(lsp.ShowMessageParams(lsp.MessageType.Info, message))


def path_of(uri: str) -> Path | None:
    """Return the path of a document; None if it is not a file."""
    path = to_fs_path(uri)
    return Path(path) if path else None


def create() -> LanguageServer:
    """Create the server with its handlers."""
    server = LanguageServer("cnnspec", cnnspec.__version__, protocol_cls=Protocol, max_workers=2)
    session = Session(server)

    @server.feature(lsp.INITIALIZE)
    def _(params: lsp.InitializeParams) -> None:
        options: Any = params.initialization_options
        patience: object = cast(dict[str, Any], options).get("patience") if isinstance(options, dict) else None
        if isinstance(patience, (int, float)) and 0 <= patience <= MAX_PATIENCE:
            session.patience = float(patience)

    @server.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
    def _(params: lsp.DidOpenTextDocumentParams) -> None:
        document = params.text_document
        session.open(document.uri, document.text, document.version)

    @server.feature(lsp.TEXT_DOCUMENT_DID_CHANGE)
    def _(params: lsp.DidChangeTextDocumentParams) -> None:
        session.change(params.text_document.uri, params.content_changes, params.text_document.version)

    @server.feature(lsp.TEXT_DOCUMENT_DID_CLOSE)
    def _(params: lsp.DidCloseTextDocumentParams) -> None:
        session.close(params.text_document.uri)

    @server.feature(lsp.TEXT_DOCUMENT_HOVER)
    async def _(params: lsp.HoverParams) -> lsp.Hover | None:
        return await session.show_at(params.text_document.uri, params.position, views.hover)

    @server.feature(lsp.TEXT_DOCUMENT_INLAY_HINT)
    async def _(params: lsp.InlayHintParams) -> list[lsp.InlayHint] | None:
        return await session.show(params.text_document.uri, lambda found: views.inlay_hints(found, params.range))

    @server.feature(lsp.TEXT_DOCUMENT_CODE_LENS)
    async def _(params: lsp.CodeLensParams) -> list[lsp.CodeLens] | None:
        return await session.show(params.text_document.uri, views.code_lenses)

    @server.feature(lsp.TEXT_DOCUMENT_FORMATTING)
    async def _(params: lsp.DocumentFormattingParams) -> list[lsp.TextEdit] | None:
        analysis = await session.current(params.text_document.uri)
        return await session.work(edits.formatting, analysis) if analysis is not None else None

    @server.feature(
        lsp.TEXT_DOCUMENT_CODE_ACTION,
        lsp.CodeActionOptions(code_action_kinds=[lsp.CodeActionKind.QuickFix, lsp.CodeActionKind.SourceFixAll]),
    )
    async def _(params: lsp.CodeActionParams) -> list[lsp.CodeAction] | None:
        analysis = await session.current(params.text_document.uri)
        if analysis is None:
            return None
        return await session.work(edits.code_actions, analysis, params.range, params.context.only)

    @server.command("cnnspec.draw")
    async def _(*arguments: Any) -> str | None:
        uri, format = [*map(str, arguments), "", ""][:2]
        return await session.draw(uri, format)

    @server.command("cnnspec.openReference")
    async def _(*_: Any) -> None:
        await session.show_page("reference.md", reference_text().encode(), external=False)

    return server


def serve() -> None:
    """Serve one client over the standard input and output."""
    sys.setswitchinterval(0.001)  # the worker thread computes while requests are answered
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr  # whatever prints, the client reads nothing but the protocol
    create().start_io(sys.stdin.buffer, output)
