"""Output of the commands: diagnostics, JSON, the console of rich, and streams that nothing can control."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from json.encoder import encode_basestring_ascii
from pathlib import Path
from typing import Any

from cnnspec.diagnostics import Diagnostic, LossyStream, failure, printable, reason_of, render, without_commands
from cnnspec.resources import without_garbage_collection


class GuardedStream:
    """A text stream that escapes control characters, for messages of other libraries.

    Attributes:
        stream: The stream without the guard, for text that is escaped already and has colors.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text. Its line breaks and tabs stay, and so does the carriage return before a progress bar."""
        bar = text.startswith("\r")
        self.stream.write("\r" * bar + printable(text[bar:], keep="\n\t"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def guard_streams() -> None:
    """Escape what is written to the standard streams, also characters that their encoding lacks.

    A stream that is closed is replaced by one that fails when it is used. Otherwise the next file that is opened would
    take its place. Messages on the standard error that cannot be written are dropped.
    """
    for name, mode, wrong in (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, wrong), mode, encoding="utf-8"))  # noqa: SIM115
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
            setattr(sys, name, GuardedStream(LossyStream(stream) if name == "stderr" else stream))


_OUTPUT_ERRORS = (
    errno.EPIPE,
    errno.EBADF,
    errno.EFBIG,
    errno.EIO,
    errno.ENOSPC,
    getattr(errno, "EDQUOT", errno.ENOSPC),
)


def is_output_error(error: Exception) -> bool:
    """Return whether a standard stream could not be written. Errors of files name the file."""
    return isinstance(error, OSError) and error.filename is None and error.errno in _OUTPUT_ERRORS


def drop_output() -> None:
    """Discard what is left to be written to the standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unguarded(stream: Any) -> Any:
    return stream.stream if isinstance(stream, GuardedStream) else stream


def print_diagnostics(diagnostics: Iterable[Diagnostic]) -> None:
    color = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    text = "\n\n".join(render(diagnostic, color=color) for diagnostic in diagnostics)
    _unguarded(sys.stderr).write("".join(f"{without_commands(line)}\n" for line in text.split("\n")))


@without_garbage_collection()
def print_json(data: Any) -> None:
    """Print data as JSON in ASCII."""
    sys.stdout.write(f"{escape_json(json_text(data))}\n")


def escape_json(text: str) -> str:
    """Escape what is left of control characters and workflow commands in JSON of ASCII characters."""
    return text.replace("\x7f", "\\u007f").replace("##[", "#\\u0023[")


def json_text(data: Any, newline: str = "\n") -> str:
    """Return the same as `json.dumps(data, indent=2, default=str)`, which takes three times as long.

    NaN and infinity, which JSON lacks, become null.
    """
    if plain := _PLAIN.get(type(data)):
        return plain(data)
    if isinstance(data, float) and not math.isfinite(data):
        return "null"
    if isinstance(data, (float, int, str)):
        return json.dumps(data)
    inner = f"{newline}  "
    if isinstance(data, dict):
        items = [
            f"{encode_basestring_ascii(key if isinstance(key, str) else json.dumps(key))}: {json_text(value, inner)}"
            for key, value in data.items()
        ]
        return f"{{{inner}{f',{inner}'.join(items)}{newline}}}" if items else "{}"
    if isinstance(data, (list, tuple)):
        items = [json_text(value, inner) for value in data]
        return f"[{inner}{f',{inner}'.join(items)}{newline}]" if items else "[]"
    return encode_basestring_ascii(str(data))


_PLAIN: dict[type, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    int: str,
    bool: ("false", "true").__getitem__,
    type(None): lambda _: "null",
}
"""How to render values of the most frequent types."""


@contextmanager
def importing() -> Iterator[None]:
    """Show a message on a terminal while PyTorch is imported, which takes seconds."""
    if "torch" in sys.modules or not sys.stderr.isatty():
        yield
        return
    with make_console(stderr=True).status("loading PyTorch"):
        yield


def write_file(path: Path, data: bytes) -> None:
    """Create or replace a file atomically: if writing fails, an old file remains, and no part of the new one.

    Raises:
        CnnspecError: E0212 if it cannot be written.
    """
    from cnnspec.files import write_atomically  # not needed by a check

    try:
        write_atomically(path.resolve(), data)
    except OSError as error:
        message = f"cannot write `{path}`: {reason_of(error)}"
        help = "write to a folder that exists and that you may write to"
        raise failure("E0212", message, file=str(path), help=help) from None


def make_console(*, stderr: bool = False, lossy: bool = False) -> Any:
    """Return a console that interprets no markup. What it prints must be printable.

    Args:
        stderr: Print to the standard error.
        lossy: Drop what cannot be written: a run goes on after its terminal was closed.
    """
    from rich.console import Console

    own = _unguarded(sys.stderr if stderr else sys.stdout)
    stream: Any = LossyStream(own) if lossy else own
    return Console(
        file=stream, width=None if stream.isatty() else 120, highlight=False, markup=False, emoji=False, stderr=stderr
    )
