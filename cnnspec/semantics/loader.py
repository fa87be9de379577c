"""Find and read spec files: next to the file that names them, then among the shipped ones.

Only files in the folder of the user's file and in the shipped folder are opened, after symbolic links are resolved.
"""

from __future__ import annotations

import re
import stat
import sys
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath

from cnnspec.diagnostics import Edit, Fix, Reporter, Source, Span, did_you_mean, reason_of, respell
from cnnspec.limits import MAX_FILE_BYTES, MAX_FILES, MAX_WORDS
from cnnspec.resources import resource
from cnnspec.syntax import ast, count_words, parse

SUFFIX = ".cnn"


def shipped_folder() -> Path:
    """Return the folder of the shipped specs; its subfolder `blocks` has the standard blocks."""
    return resource("specs").resolve()


@lru_cache(maxsize=1)
def shipped_specs() -> dict[str, Path]:
    """Return the files of the shipped networks by name."""
    return {path.stem: path for path in sorted(shipped_folder().glob(f"*{SUFFIX}"))}


@lru_cache(maxsize=1)
def standard_blocks() -> dict[str, Path]:
    """Return the files of the standard blocks by name."""
    return {path.stem: path for path in sorted((shipped_folder() / "blocks").glob(f"*{SUFFIX}"))}


def read_text(path: Path, name: str, reporter: Reporter) -> str | None:
    """Read the text of a spec file; returns None after an error, which is reported."""
    help = None
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            code, problem, help = "E0212", f"`{name}` is a folder", "choose a file in the folder"
        elif not stat.S_ISREG(mode):
            code, problem = "E0212", f"`{name}` is not a regular file"
        else:
            with path.open("rb") as file:
                return _decode(file.read(MAX_FILE_BYTES + 1))
    except FileNotFoundError:
        code, problem = "E0212", f"file `{name}` not found"
        near = (
            did_you_mean(path.stem, [*shipped_specs(), *(p.stem for p in path.parent.glob(f"*{SUFFIX}"))])
            if path.parent.is_dir()
            else None
        )
        help = near or "run `cnnspec list` to see the shipped networks"
    except ValueError:
        _report_encoding(name, reporter)
        return None
    except OSError as error:
        code, problem = "E0212", f"cannot read `{name}`: {reason_of(error)}"
    reporter.error(code, problem, file=name, help=help)
    return None


def read_stdin(reporter: Reporter) -> str | None:
    """Read the text of a spec from the standard input; returns None after an error, which is reported."""
    try:
        return _decode(sys.stdin.buffer.read(MAX_FILE_BYTES + 1))
    except ValueError:
        _report_encoding("-", reporter)
    except OSError as error:
        reporter.error("E0212", f"cannot read the standard input: {reason_of(error)}", file="-", help="pass a file")
    return None


def _decode(data: bytes) -> str:
    """Decode the bytes of a spec.

    Raises:
        ValueError: They are not text.
    """
    if b"\0" in data:
        raise ValueError
    return Source.plain(data.decode("utf-8-sig"))


def _report_encoding(name: str, reporter: Reporter) -> None:
    reporter.error("E0107", f"`{name}` is not a UTF-8 text file", file=name, help="save the spec as UTF-8 text")


@lru_cache(maxsize=256)
def _shipped_tree(path: Path) -> ast.File | None:
    """Read and parse a shipped file once."""
    reporter = Reporter()
    name = path.relative_to(shipped_folder()).as_posix()
    text = read_text(path, name, reporter)
    return parse(Source(name, text, shipped=True), reporter) if text is not None else None


def standard_block(name: str) -> tuple[ast.File, ast.Block] | None:
    """Return a standard block and its file, which is read on first use."""
    path = standard_blocks().get(name)
    file = _shipped_tree(path) if path else None
    if file is None:
        return None
    blocks = (node for node in file.statements if isinstance(node, ast.Block) and node.name == name)
    block = next(blocks, None)
    return (file, block) if block else None


def path_below(base: Path, path: str) -> Path | None:
    """Return a path that a spec states, relative to its folder; None if it is absolute or leaves the folder.

    Symbolic links are resolved.
    """
    if path.startswith("~") or PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor:
        return None
    found = base / path
    return found if is_below(found, base) else None


def is_below(path: Path, base: Path) -> bool:
    """Return whether a path is in a folder, with symbolic links resolved."""
    try:
        return path.resolve().is_relative_to(base.resolve())
    except (OSError, ValueError, RuntimeError):  # an invalid file name, or a cycle of links
        return False


class Library:
    """The files that one compilation reads.

    Args:
        folder: The folder of the user's file; None if the text is not from a file.
        buffers: Texts that replace those of files, by resolved path: what is open in an editor.
    """

    def __init__(self, folder: Path | None, buffers: Mapping[Path, str] | None = None) -> None:
        self._buffers = buffers or {}
        self._given = folder or Path()
        self._root = folder.resolve() if folder else None
        self._trees: dict[Path, ast.File | None] = {}
        self._sought: dict[Path, None] = {}
        self._folders: dict[str, Path] = {}
        self._words = 0

    def add(self, path: Path, file: ast.File) -> None:
        """Add a file that was read elsewhere, so that files that name it get the same tree."""
        self._trees[path.resolve()] = file
        self._words += count_words(file.source.text)

    @property
    def files(self) -> tuple[Path, ...]:
        """The file of the spec, and the files next to it that it uses or extends, whether they exist or not."""
        return tuple(self._trees | self._sought)

    def texts(self, main: Path | None) -> dict[str, str]:
        """Return the texts of the files next to the spec that it uses or extends, by their relative path."""
        main = main.resolve() if main else None
        return {file.source.name: file.source.text for path, file in self._trees.items() if file and path != main}

    def folder_of(self, file: ast.File) -> Path | None:
        """Return the folder of a file that was found here."""
        if file.source.shipped:
            return (shipped_folder() / file.source.name).parent
        return self._folders.get(file.source.name, self._root)

    def path_of(self, source: Source) -> Path | None:
        """Return the path of a file that was read here; None for one that is not stored."""
        folder = shipped_folder() if source.shipped else self._folders.get(source.name)
        if folder is None:
            return None
        return folder / (source.name if source.shipped else PurePosixPath(source.name).name)

    def base_of(self, file: ast.File) -> Path:
        """Return the folder that other paths in a file are relative to, as the user wrote it."""
        folder = self.folder_of(file)
        if folder is None or self._root is None or not folder.is_relative_to(self._root):
            return self._given
        return self._given / folder.relative_to(self._root)

    def find(self, wanted: str, asking: ast.File, at: Span, reporter: Reporter) -> ast.File | None:
        """Return the tree of a file that another one names; None after an error, which is reported.

        Args:
            wanted: The path, with or without its suffix.
            asking: The file that names the path.
            at: The span of the path.
            reporter: Takes the diagnostics.
        """
        relative = wanted if wanted.endswith(SUFFIX) else wanted + SUFFIX
        folder = self.folder_of(asking)
        no_file: str | None = None
        for place in (folder, shipped_folder()):
            if place is None:
                continue
            try:
                path = (place / relative).resolve()
                there = path in self._buffers or path.is_file()
                exists = there or path.exists()
            except (OSError, ValueError, RuntimeError):  # an invalid file name, or a cycle of links
                continue
            roots = [root for root in (self._root, shipped_folder()) if root is not None]
            if not any(path.is_relative_to(root) for root in roots):
                message = f"`{wanted}` is outside the folder of the spec"
                help = "copy the file next to the spec; only that folder and the shipped specs are read"
                reporter.error("E0218", message, at, help=help)
                return None
            if self._root is not None and path.is_relative_to(self._root):
                self._sought[path] = None
            if there:
                return self._read(path, at, reporter)
            if exists:
                no_file = no_file or f"`{relative}` is {'a folder' if path.is_dir() else 'not a regular file'}"
        known = [*shipped_specs(), *(f"blocks/{name}{SUFFIX}" for name in standard_blocks())]
        if folder is not None and folder.is_dir():
            known += [p.stem for p in folder.glob(f"*{SUFFIX}") if p.is_file()]
        quoted = 1 if at.source.text[at.start] == '"' else 0
        help, fixes = respell(Span(at.source, at.start + quoted, at.end - quoted), wanted, known)
        dashed = re.compile(r"(?:-\w+)+").match(at.source.text, at.end)
        if dashed and (name := (wanted + dashed.group()).replace("-", "")) in known:  # `resnet-18`
            at = Span(at.source, at.start, dashed.end())
            wanted, fixes = at.text, (Fix(f"write `{name}`", (Edit(at, name),), certain=True),)
            help = fixes[0].help
        help = help or "check the path: cnnspec looks for files in the folder of the spec, then among the shipped specs"
        reporter.error("E0212", no_file or f"file `{wanted}` not found", at, help=help, fixes=fixes)
        return None

    def _read(self, path: Path, at: Span, reporter: Reporter) -> ast.File | None:
        if path not in self._trees and path not in self._buffers and path.is_relative_to(shipped_folder()):
            return _shipped_tree(path)
        if path not in self._trees:
            if len(self._trees) >= MAX_FILES:
                message = f"the files of the spec exceed the limit of {MAX_FILES}"
                reporter.error("E0405", message, at, help="merge small files")
                return None
            assert self._root is not None
            name = path.relative_to(self._root).as_posix() if path.is_relative_to(self._root) else path.name
            text = self._buffers[path] if path in self._buffers else read_text(path, name, reporter)
            self._words += count_words(text or "")
            if self._words > MAX_WORDS:
                message = f"the files of the spec exceed the limit of {MAX_WORDS} tokens in total"
                reporter.error("E0405", message, at, help="shorten them with `repeat`, `each` and blocks")
                return None
            self._folders[name] = path.parent
            self._trees[path] = parse(Source(name, text), reporter) if text is not None else None
        return self._trees[path]
