"""The connection of the language server: open documents, a worker thread, and the handlers of the protocol.

A document is compiled in the worker thread after each edit; of several edits in the meantime, the last one counts. A
request waits a moment for the compilation of the current text. If a large text takes longer, features that only show
something answer from the previous compilation, with positions moved by the edit, and the client is asked to request
again when the new one is ready. Features that change the text always wait.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Coroutine, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

from lsprotocol import types as lsp
from pygls.exceptions import JsonRpcException
from pygls.lsp.server import LanguageServer
from pygls.protocol import LanguageServerProtocol
from pygls.protocol.language_server import lsp_method
from pygls.uris import to_fs_path

import cnnspec
from cnnspec.backends import diagram
from cnnspec.diagnostics import CnnspecError, Reporter
from cnnspec.limits import MAX_FILE_BYTES
from cnnspec.lsp import completion, edits, navigation, tokens, views
from cnnspec.lsp.descriptions import reference_text
from cnnspec.lsp.document import Analysis, Change, Moved, Text
from cnnspec.lsp.names import Names, Symbol
from cnnspec.lsp.navigation import Place
from cnnspec.semantics.loader import SUFFIX, read_text

T = TypeVar("T")
PATIENCE = 20
"""Milliseconds that a request waits for the current text before it is answered from the previous one."""
MAX_PATIENCE = 60_000
PAUSE = 0.05
"""Seconds between an edit of a long text and its compilation."""
COLLECT_EVERY = 60
"""Seconds between collections of garbage."""
MAX_WORKSPACE_FILES = 1_000
MAX_WORKSPACE_FOLDERS = 10_000
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
    """An open document; a new `Text` object means that it has to be compiled again.

    Attributes:
        history: The texts since the last one that was compiled, each with the changes that made it.
    """

    text: Text
    version: int | None
    path: Path | None
    history: list[tuple[Text, list[Change]]] = field(default_factory=list[tuple[Text, list[Change]]])


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
        self._names: dict[str, Names] = {}
        self._files: set[Path] = set()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._done = asyncio.Event()
        self._answered_late = False
        self._collected = time.monotonic()
        self._checks: set[asyncio.Task[None]] = set()
        self._folder = tempfile.TemporaryDirectory(prefix="cnnspec-")
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compile")

    def initialize(self, params: lsp.InitializeParams) -> None:
        """Read the options of the client."""
        options: Any = params.initialization_options
        patience: object = cast(dict[str, Any], options).get("patience") if isinstance(options, dict) else None
        if isinstance(patience, (int, float)) and 0 <= patience <= MAX_PATIENCE:
            self.patience = float(patience)

    @property
    def encoding(self) -> str:
        """The unit of columns that was agreed with the client."""
        chosen = self.server.workspace.position_encoding
        return chosen.value if isinstance(chosen, lsp.PositionEncodingKind) else str(chosen)

    # --- documents -------------------------------------------------------------------------------

    def open(self, params: lsp.DidOpenTextDocumentParams) -> None:
        """Add a document, or replace its text."""
        document = params.text_document
        self._compiled.pop(document.uri, None)
        self.documents[document.uri] = Open(Text(document.text, self.encoding), document.version, path_of(document.uri))
        self._schedule(document.uri)

    def change(self, params: lsp.DidChangeTextDocumentParams) -> None:
        """Change a document."""
        document = self.documents.get(params.text_document.uri)
        if document is None:
            return
        document.text, done = document.text.changed(params.content_changes)
        document.version = params.text_document.version
        document.history.append((document.text, done))
        self._schedule(params.text_document.uri)

    def close(self, params: lsp.DidCloseTextDocumentParams) -> None:
        """Forget a document, and withdraw its diagnostics."""
        uri = params.text_document.uri
        document = self.documents.pop(uri, None)
        self._compiled.pop(uri, None)
        self._names.pop(uri, None)
        if document is not None:
            self._publish(uri, None, [])
            self._recheck(document.path)
            self._wake()
            if document.path in self._files:
                self.start(self._check_files([document.path]))

    def _schedule(self, uri: str) -> None:
        self._start(uri)
        self._recheck(self.documents[uri].path)

    def _recheck(self, path: Path | None) -> None:
        """Compile the open documents again that name a file."""
        for uri, other in self.documents.items():
            if path is not None and other.path != path and path.stem in other.text.text:
                other.text = Text(other.text.text, self.encoding)
                other.history.append((other.text, []))
                self._start(uri)

    def _wake(self) -> None:
        """Wake the requests that wait for a compilation."""
        self._done.set()
        self._done = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine in the background."""
        task = asyncio.create_task(work)
        self._checks.add(task)
        task.add_done_callback(self._checks.discard)

    def _start(self, uri: str) -> None:
        task = self._tasks.get(uri)
        if task is None or task.done():
            self._tasks[uri] = asyncio.create_task(self._compile(uri))

    def _buffers(self) -> dict[Path, str]:
        return {d.path.resolve(): d.text.text for d in self.documents.values() if d.path is not None}

    def _is_current(self, uri: str, text: Text) -> bool:
        document = self.documents.get(uri)
        return document is not None and document.text is text

    async def _compile(self, uri: str) -> None:
        """Compile a document until its last text is compiled, and publish the diagnostics."""
        while (document := self.documents.get(uri)) is not None:
            if (earlier := self._earlier(uri)) is not None and earlier.cost > self.patience:
                await asyncio.sleep(PAUSE)  # answer the requests that come with an edit first
            text, version = document.text, document.version
            if uri in self._compiled and self._compiled[uri][0] is text:
                return
            analysis = await self.work(Analysis.ready, text, uri, document.path, self._buffers())
            if self.documents.get(uri) is document:
                self._compiled[uri] = text, analysis
                made = next((i for i, (known, _) in enumerate(document.history, 1) if known is text), 0)
                del document.history[:made]
                if analysis is not None and analysis.names is not None:
                    self._names[uri] = analysis.names
            self._wake()
            if analysis is None or not self._is_current(uri, text):
                continue
            self._ask_again()
            found = await self.work(views.diagnostics, analysis, lambda text=text: not self._is_current(uri, text))
            if found is not None and self._is_current(uri, text):
                self._publish(uri, version, found)
                await self._collect()

    async def _collect(self) -> None:
        """Collect cyclic garbage while no request is pending."""
        if time.monotonic() - self._collected > COLLECT_EVERY:
            self._collected = time.monotonic()
            await self.work(gc.collect)

    # --- the workspace ---------------------------------------------------------------------------

    def initialized(self, _: lsp.InitializedParams) -> None:
        """Check the specs in the folders of the client, and follow their changes."""
        self.start(self._watch())

    async def _watch(self) -> None:
        workspace = self.server.client_capabilities.workspace
        watched = workspace.did_change_watched_files if workspace is not None else None
        if watched is not None and watched.dynamic_registration:
            options = lsp.DidChangeWatchedFilesRegistrationOptions([lsp.FileSystemWatcher(f"**/*{SUFFIX}")])
            method = lsp.WORKSPACE_DID_CHANGE_WATCHED_FILES
            self.server.client_register_capability(
                lsp.RegistrationParams([lsp.Registration("cnnspec-files", method, options)])
            )
        folders = [path_of(folder.uri) for folder in self.server.workspace.folders.values()]
        for folder in folders:
            if folder is not None:
                self._files |= {*await asyncio.to_thread(specs_in, folder)}
        await self._check_files(sorted(self._files))

    def files_changed(self, params: lsp.DidChangeWatchedFilesParams) -> None:
        """Check files again that changed on the disk, and those that name them."""
        self.start(self._files_changed(params.changes))

    async def _files_changed(self, changes: Sequence[lsp.FileEvent]) -> None:
        again: set[Path] = set()
        stems: set[str] = set()
        for change in changes:
            path = path_of(change.uri)
            if path is None or path.suffix != SUFFIX:
                continue
            if change.type == lsp.FileChangeType.Deleted:
                self._files.discard(path)
                if change.uri not in self.documents:
                    self._publish(change.uri, None, [])
            elif len(self._files) < MAX_WORKSPACE_FILES:
                self._files.add(path)
            self._recheck(path)
            stems.add(path.stem)
            again |= {path} & self._files
        again |= {*(await self.work(mentioning, self._files - again, stems) or ())}
        await self._check_files(sorted(again))

    async def _check_files(self, paths: Sequence[Path]) -> None:
        """Publish the diagnostics of files that are not open, one after the other."""
        for path in paths:
            uri = views.uri_of(path)
            found = await self.work(diagnose, path, uri, self.encoding, self._buffers())
            if found is not None and all(document.path != path for document in self.documents.values()):
                self._publish(uri, None, found)

    async def related(self, analysis: Analysis, symbol: Symbol) -> tuple[list[Analysis], Place]:
        """Return the documents that can use a symbol, and the place of its definition."""
        place = navigation.place_of(analysis, symbol)
        found = [analysis]
        if place[0] is None or symbol.kind == "file":
            return found, place
        opened = {document.path: uri for uri, document in self.documents.items() if document.path is not None}
        near = self._files | {*place[0].parent.glob(f"*{SUFFIX}")}
        closed = {*(await self.work(mentioning, near - {*opened}, {place[0].stem}) or ()), place[0]}
        for path in sorted({*opened, *closed}):
            if path == analysis.path:
                continue
            if path in opened:
                other = await self.current(opened[path])
            else:
                other = await self.work(analyze_file, path, self.encoding, self._buffers())
            if other is not None:
                found.append(other)
        return found, place

    async def references(self, params: lsp.ReferenceParams) -> list[lsp.Location] | None:
        """Return the uses of what is at a position."""
        analysis = await self.current(params.text_document.uri)
        found = navigation.occurrence_at(analysis, params.position) if analysis is not None else None
        if analysis is None or found is None:
            return None
        analyses, place = await self.related(analysis, found.symbol)
        with_definition = params.context.include_declaration
        return navigation.references(analyses, place, found.symbol.kind, with_definition=with_definition)

    async def rename(self, params: lsp.RenameParams) -> lsp.WorkspaceEdit | None:
        """Rename what is at a position; an annotation or a message says if keys of the state dict change.

        Raises:
            JsonRpcException: It cannot be renamed.
        """
        analysis, new = await self.current(params.text_document.uri), params.new_name
        if analysis is None:
            return None
        symbol = navigation.renamable(analysis, params.position).symbol
        analyses, place = await self.related(analysis, symbol)
        done = await self.work(navigation.rename, analyses, place, symbol, new)
        if done is None:
            return None
        workspace = self.server.client_capabilities.workspace
        able = workspace.workspace_edit if workspace is not None else None
        if able is None or not able.document_changes or not able.change_annotation_support:
            if done.note:
                self._tell(f"`{new}`: {done.note}")
            return lsp.WorkspaceEdit(changes=done.edits)
        annotations = {"keys": lsp.ChangeAnnotation("changes keys", True, done.note)} if done.note else None
        documents: list[lsp.TextDocumentEdit] = []
        for other, changes in done.edits.items():
            version = self.documents[other].version if other in self.documents else None
            marked = [lsp.AnnotatedTextEdit("keys", e.range, e.new_text) if done.note else e for e in changes]
            documents.append(lsp.TextDocumentEdit(lsp.OptionalVersionedTextDocumentIdentifier(other, version), marked))
        return lsp.WorkspaceEdit(document_changes=documents, change_annotations=annotations)

    async def work(self, function: Callable[..., T], *args: Any) -> T | None:
        """Run a function in the worker thread; None after an internal error, which is logged."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, function, *args)
        except JsonRpcException:  # the answer
            raise
        except Exception:  # noqa: BLE001  # a failed request does not stop the server
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

    def text(self, uri: str) -> Text | None:
        """Return the current text of a document; None if it is longer than any spec."""
        document = self.documents.get(uri)
        return document.text if document is not None and len(document.text.text) <= MAX_FILE_BYTES else None

    def _earlier(self, uri: str) -> Analysis | None:
        return self._compiled.get(uri, (None, None))[1]

    async def names(self, uri: str) -> Names | None:
        """Return the names of a document, those of an earlier text if the current one has no structure."""
        await self.soon(uri)
        return self._names.get(uri)

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
        earlier = self._earlier(uri)
        if earlier is None:
            return await self.current(uri), None
        patience = self.patience if earlier.cost <= self.patience else 0  # a long text will take longer again
        try:
            return await asyncio.wait_for(self.current(uri), patience / 1000), None
        except TimeoutError:
            self._answered_late = True
            document = self.documents.get(uri)
            if document is None:
                return None, None
            changes = [change for _, made in document.history for change in made]
            return earlier, Moved(earlier.text, document.text, changes)

    def shown(self, feature: Callable[[Analysis, Any], Any]) -> Callable[[Any], Any]:
        """Return a handler for requests about a document."""

        async def answer(params: Any) -> Any:
            analysis, moved = await self.soon(params.text_document.uri)
            found = feature(analysis, params) if analysis is not None else None
            return found if moved is None else moved.answer(found)

        return answer

    def at_position(self, feature: Callable[[Analysis, lsp.Position], Any]) -> Callable[[Any], Any]:
        """Return a handler for requests about a position."""

        async def answer(params: Any) -> Any:
            uri = params.text_document.uri
            analysis, moved = await self.soon(uri)
            place = params.position if moved is None else moved.back(params.position)
            if place is None:  # in the text that was edited
                analysis, moved, place = await self.current(uri), None, params.position
            found = feature(analysis, place) if analysis is not None else None
            return found if moved is None else moved.answer(found)

        return answer

    def computed(self, feature: Callable[[Analysis, Any], Any]) -> Callable[[Any], Any]:
        """Return a handler for requests that are answered in the worker thread, for the current text."""

        async def answer(params: Any) -> Any:
            analysis = await self.current(params.text_document.uri)
            return await self.work(feature, analysis, params) if analysis is not None else None

        return answer

    def of_text(self, feature: Callable[[Text], Any]) -> Callable[[Any], Any]:
        """Return a handler for requests that need no compilation."""

        def answer(params: Any) -> Any:
            text = self.text(params.text_document.uri)
            return feature(text) if text is not None else None

        return answer

    async def complete(self, params: lsp.CompletionParams) -> lsp.CompletionList | None:
        """Return what can be written at a position."""
        uri = params.text_document.uri
        names, text = await self.names(uri), self.text(uri)
        path = self.documents[uri].path if text is not None else None
        return completion.completion(text, params.position, names, path) if text is not None else None

    async def help(self, params: lsp.SignatureHelpParams) -> lsp.SignatureHelp | None:
        """Return the parameters of the call at a position."""
        names, text = await self.names(params.text_document.uri), self.text(params.text_document.uri)
        return completion.signature_help(text, params.position, names) if text is not None else None

    # --- commands --------------------------------------------------------------------------------

    async def draw(self, uri: str, format: str) -> str | None:
        """Return the diagram of a document in a text format; without one, show it as a page.

        Raises:
            JsonRpcException: The diagram is to be returned, and there is none.
        """
        try:
            drawn = await self._drawn(uri, format)
        except JsonRpcException as error:
            if format:  # a preview asks after each edit
                raise
            return self._tell(error.message)
        return drawn.decode() if format else await self.show_page("diagram.html", drawn, external=True)

    async def _drawn(self, uri: str, format: str) -> bytes:
        analysis = await self.current(uri)
        graph = analysis.compilation.graph if analysis is not None else None
        if graph is None:
            raise navigation.refused("cannot draw: the spec has errors, or defines no network")
        try:
            suffix = diagram.format_of(f"diagram.{format or 'html'}")
            if suffix in (".png", ".pdf"):
                raise navigation.refused(f"cannot draw: `{format}` is not a text format")
            return await asyncio.get_running_loop().run_in_executor(self._worker, diagram.draw, graph, suffix)
        except CnnspecError as error:
            raise navigation.refused(f"cannot draw: {error.diagnostics[0].message}") from error

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
    """Return the path of a document; None if it is not a file, or not with a valid name."""
    path = to_fs_path(uri)
    try:
        if path:
            Path(path).resolve()
    except (OSError, ValueError, RuntimeError):  # an invalid file name, or a cycle of links
        return None
    return Path(path) if path else None


def specs_in(folder: Path) -> list[Path]:
    """Return the specs below a folder, without hidden folders and symbolic links."""
    found: list[Path] = []
    for count, (place, folders, files) in enumerate(os.walk(folder)):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "node_modules")
        found += [Path(place, name) for name in sorted(files) if name.endswith(SUFFIX)]
        if len(found) >= MAX_WORKSPACE_FILES or count >= MAX_WORKSPACE_FOLDERS:
            break
    return [path for path in found[:MAX_WORKSPACE_FILES] if path.is_file() and not path.is_symlink()]


def mentioning(paths: Collection[Path], words: Collection[str]) -> list[Path]:
    """Return the specs that contain one of some words."""
    texts = ((path, read_text(path, path.name, Reporter()) or "") for path in paths if path.is_file())
    return [path for path, text in texts if any(word in text for word in words)]


def analyze_file(path: Path, encoding: str, buffers: dict[Path, str]) -> Analysis | None:
    """Compile a file from the disk; None if it cannot be read."""
    text = read_text(path, path.name, Reporter())
    return Analysis.ready(Text(text, encoding), views.uri_of(path), path, buffers) if text is not None else None


def diagnose(path: Path, uri: str, encoding: str, buffers: dict[Path, str]) -> list[lsp.Diagnostic] | None:
    """Return the diagnostics of a file on the disk."""
    analysis = analyze_file(path, encoding, buffers)
    if analysis is not None:
        return views.diagnostics(analysis)
    reporter = Reporter()
    read_text(path, path.name, reporter)
    return [views.to_protocol(Analysis(Text(""), uri, path), found) for found in reporter.sorted()]


def create() -> LanguageServer:
    """Create the server with its handlers."""
    server = LanguageServer("cnnspec", cnnspec.__version__, protocol_cls=Protocol, max_workers=2)
    session = Session(server)
    kinds = [lsp.CodeActionKind.QuickFix, lsp.CodeActionKind.SourceFixAll]
    completing = lsp.CompletionOptions(trigger_characters=completion.TRIGGERS, resolve_provider=True)
    handlers: list[tuple[str, Callable[..., Any], Any]] = [
        (lsp.INITIALIZE, session.initialize, None),
        (lsp.INITIALIZED, session.initialized, None),
        (lsp.WORKSPACE_DID_CHANGE_WATCHED_FILES, session.files_changed, None),
        (lsp.TEXT_DOCUMENT_DID_OPEN, session.open, None),
        (lsp.TEXT_DOCUMENT_DID_CHANGE, session.change, None),
        (lsp.TEXT_DOCUMENT_DID_CLOSE, session.close, None),
        (lsp.TEXT_DOCUMENT_HOVER, session.at_position(views.hover), None),
        (lsp.TEXT_DOCUMENT_DEFINITION, session.at_position(navigation.definition), None),
        (lsp.TEXT_DOCUMENT_DOCUMENT_HIGHLIGHT, session.at_position(navigation.highlights), None),
        (lsp.TEXT_DOCUMENT_CODE_LENS, session.shown(lambda found, _: views.code_lenses(found)), None),
        (lsp.TEXT_DOCUMENT_DOCUMENT_SYMBOL, session.shown(lambda found, _: navigation.document_symbols(found)), None),
        (lsp.TEXT_DOCUMENT_INLAY_HINT, session.shown(lambda found, p: views.inlay_hints(found, p.range)), None),
        (lsp.TEXT_DOCUMENT_FOLDING_RANGE, session.of_text(tokens.folding_ranges), None),
        (lsp.TEXT_DOCUMENT_SEMANTIC_TOKENS_FULL, session.of_text(tokens.semantic_tokens), tokens.LEGEND),
        (lsp.TEXT_DOCUMENT_COMPLETION, session.complete, completing),
        (lsp.COMPLETION_ITEM_RESOLVE, completion.resolve, None),
        (lsp.TEXT_DOCUMENT_SIGNATURE_HELP, session.help, lsp.SignatureHelpOptions(trigger_characters=[" ", "="])),
        (lsp.TEXT_DOCUMENT_FORMATTING, session.computed(lambda found, _: edits.formatting(found)), None),
        (lsp.TEXT_DOCUMENT_CODE_ACTION, session.computed(edits.code_actions), lsp.CodeActionOptions(kinds)),
        (lsp.TEXT_DOCUMENT_REFERENCES, session.references, None),
        (lsp.TEXT_DOCUMENT_PREPARE_RENAME, session.computed(navigation.prepare_rename), None),
        (lsp.TEXT_DOCUMENT_RENAME, session.rename, None),
    ]
    for method, handler, options in handlers:
        server.feature(method, options)(partial(handler))

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
    gc.freeze()
    gc.disable()  # a collection stops all threads; see `Session._collect`
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], JsonRpcException)))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])  # an answer that is an error is not logged
    output = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    sys.stdout = sys.stderr  # whatever prints, the client reads nothing but the protocol
    create().start_io(sys.stdin.buffer, output)
