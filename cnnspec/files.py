"""Read files of unknown origin: regular files, up to a size, through a schema. Write files in one step.

A file that is missing is None. Any other problem is a `CnnspecError` that names the file and the reason: a folder, a
pipe or a device in its place, a symbolic link that leaves the folder of a run, more bytes than its kind needs, or
contents that do not fit the schema.
"""

from __future__ import annotations

import errno
import io
import os
import pickletools
import stat
import struct
import sys
import threading
import zipfile
import zlib
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from cnnspec.diagnostics import CnnspecError, failure, one_line, reason_of
from cnnspec.limits import (
    MAX_ARCHIVE_RATIO,
    MAX_DIRECTORY_BYTES,
    MAX_JSON_VALUES,
    MAX_PICKLE_BYTES,
    MAX_PICKLE_DEPTH,
    MAX_PICKLE_OPCODES,
    MAX_PICKLE_VALUES,
    OPCODES_PER_ENTRY,
)

T = TypeVar("T")
WEIGHTS = (".ckpt", ".pt", ".pth", ".tar", ".bin", ".safetensors")
"""The extensions of weights files. Their contents decide how they are read."""


def unreadable(path: Path, reason: str, code: str, help: str | None = None) -> CnnspecError:
    """Return the error for a file that cannot be read."""
    return failure(code, f"cannot read `{path.name}`", notes=[reason], file=str(path), help=help)


@contextmanager
def open_regular(path: Path, limit: int, code: str, *, inside: Path | None = None) -> Generator[IO[bytes] | None]:
    """Open a regular file for reading; None if it does not exist.

    Args:
        path: The file.
        limit: The maximum size in bytes.
        code: The code of errors.
        inside: A folder that the file must be in, with symbolic links resolved.

    Raises:
        CnnspecError: It is not a regular file, cannot be read, is too large, or is outside of the folder.
    """
    try:
        if inside is not None and not path.resolve().is_relative_to(inside.resolve()):
            raise unreadable(path, "it is a symbolic link to a file outside its folder", code)
        # Without O_NONBLOCK, opening a pipe waits for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except FileNotFoundError:
        if path.is_symlink():
            raise unreadable(path, "it is a symbolic link to a file that does not exist", code) from None
        yield None
        return
    except OSError as error:
        raise unreadable(path, reason_of(error), code) from None
    except (RuntimeError, ValueError) as error:  # a cycle of symbolic links, an invalid name
        raise unreadable(path, one_line(error), code) from None
    with file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise unreadable(path, f"it is not a {'file' if stat.S_ISDIR(status.st_mode) else 'regular file'}", code)
        if status.st_size > limit:
            reason = f"it has {status.st_size:,} bytes, more than the limit of {limit:,}"
            raise unreadable(path, reason, code)
        yield file


def read_bytes(path: Path, limit: int, code: str, *, inside: Path | None = None) -> bytes | None:
    """Read a regular file; see `open_regular` for the arguments and errors."""
    with open_regular(path, limit, code, inside=inside) as file:
        if file is None:
            return None
        try:
            return file.read(os.fstat(file.fileno()).st_size)
        except OSError as error:
            raise unreadable(path, reason_of(error), code) from None


def read_text(path: Path, limit: int, code: str, *, inside: Path | None = None) -> str | None:
    """Read a text file in UTF-8; see `open_regular` for the arguments and errors."""
    data = read_bytes(path, limit, code, inside=inside)
    try:
        return None if data is None else data.decode()
    except UnicodeDecodeError:
        raise unreadable(path, "it is not UTF-8 text", code) from None


def read_json(
    path: Path, schema: TypeAdapter[T], limit: int, code: str, *, inside: Path | None = None, help: str | None = None
) -> T | None:
    """Read a JSON file through a schema; see `open_regular` for the other arguments and errors.

    Raises:
        CnnspecError: Also if the contents are not JSON or do not fit the schema.
    """
    data = read_bytes(path, limit, code, inside=inside)
    return None if data is None else parse_json(data, schema, path, code, help)


def parse_json(data: bytes, schema: TypeAdapter[T], path: Path, code: str, help: str | None = None) -> T:
    """Parse the contents of a JSON file through a schema.

    Raises:
        CnnspecError: They are not JSON, or do not fit the schema.
    """
    if sum(map(data.count, (b"[", b"{", b","))) > MAX_JSON_VALUES:
        raise unreadable(path, f"it has more values than the limit of {MAX_JSON_VALUES:,}", code, help)
    try:
        return schema.validate_json(data)
    except ValidationError as error:
        raise unreadable(path, first_problem(error), code, help) from None


def first_problem(error: ValidationError) -> str:
    """Return the first error of a validation in one line: the key, and what is wrong."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    message = first["msg"][:1].lower() + first["msg"][1:]
    return one_line(f"`{place}`: {message}" if place else message, 300)


# --- pickled tensors -----------------------------------------------------------------------------


def check_pickled_tensors(file: IO[bytes], size: int) -> None:
    """Check a file of `torch.save` before torch reads it, and rewind it.

    `torch.load(..., weights_only=True)` runs no code, but it inflates compressed entries of any size, calls
    constructors that allocate any amount of memory, and hashes keys that take forever.

    Args:
        file: The file, at its start.
        size: Its size in bytes.

    Raises:
        ValueError: It is too expensive to read, or is not such a file.
    """
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":  # as torch decides
        _check_archive(file, size)
    else:  # the format before torch 1.6: five pickles, then the tensors
        left = MAX_PICKLE_OPCODES
        for _ in range(5):
            left = _PickleCheck(left).run(file)
            if file.tell() == size:
                break
    file.seek(0)


def _check_archive(file: IO[bytes], size: int) -> None:
    """Check the sizes that the directory of an archive declares, and its pickles."""
    try:
        _check_directory(file)
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > MAX_ARCHIVE_RATIO * size:
                raise ValueError(f"its entries expand to more than {MAX_ARCHIVE_RATIO} times the size of the file")
            left = MAX_PICKLE_OPCODES + OPCODES_PER_ENTRY * len(entries)
            for entry in entries:
                # torch ignores case, and knows neither names that end at a zero byte nor names in an extra field.
                if any(name.lower().endswith(".pkl") for name in (entry.filename, entry.orig_filename)):
                    with archive.open(entry) as data:
                        left = _PickleCheck(left).run(io.BytesIO(data.read(MAX_PICKLE_BYTES)))
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, OSError, EOFError, zlib.error) as error:
        raise ValueError(f"it is not a valid archive: {one_line(error)}") from None


def _check_directory(file: IO[bytes]) -> None:
    """Check that an archive has one directory, at the place where every program looks for it.

    torch reads the directory at the offset that the end of the archive states, zipfile the bytes before the end. In an
    archive with two, torch would read another one than is checked here.
    """
    end: Any = zipfile._EndRecData(file)  # type: ignore[attr-defined]
    if not end:
        raise ValueError("it is not a valid archive: it has no directory")
    size, offset = int(end[zipfile._ECD_SIZE]), int(end[zipfile._ECD_OFFSET])  # type: ignore[attr-defined]
    place = int(end[zipfile._ECD_LOCATION])  # type: ignore[attr-defined]
    if size > MAX_DIRECTORY_BYTES:
        raise ValueError("it has too many entries")
    file.seek(max(0, place - 20))
    signature, _, record, _ = struct.unpack("<4sLQL", file.read(20).ljust(20))
    if signature == b"PK\x06\x07":  # the directory of a large archive has an end of its own before the other
        place -= 20 + 56
        if record != place or end[zipfile._ECD_SIGNATURE] != b"PK\x06\x06":  # type: ignore[attr-defined]
            raise ValueError("its directory is not where the end of the archive says")
    if offset + size != place:
        raise ValueError("its directory is not where the end of the archive says")


_FORBIDDEN = {
    "builtins bytearray",
    "torch UntypedStorage",
    "torch.storage UntypedStorage",
    "torch.storage TypedStorage",
}
"""Constructors that allocate as many bytes as their argument says. Tensors are made from storages, not by these."""
_MUTATORS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"}
_PUSHES = {op.name for op in pickletools.opcodes if not op.stack_before and len(op.stack_after) == 1} - {
    "GET", "BINGET", "LONG_BINGET", "GLOBAL", "MARK",
}  # fmt: skip
_Extent = tuple[int, int]
"""The depth of a value, and the number of values in it if shared ones are counted each time."""
_LEAF: _Extent = (0, 1)


class _PickleCheck:
    """Follows the opcodes of a pickle without running it.

    Hashing a tuple takes time in proportion to the values in it, where shared values count each time, and a part of
    the C stack for each level. So both are limited.

    Args:
        opcodes: The maximum number of opcodes.
    """

    def __init__(self, opcodes: int) -> None:
        self._left = opcodes
        self._stack: list[_Extent] = []
        self._marks: list[int] = []
        self._memo: dict[Any, _Extent] = {}

    def run(self, data: IO[bytes]) -> int:
        """Check a pickle, and return the number of opcodes that are left.

        Raises:
            ValueError: It has too many opcodes or values, is nested too deeply, or names a forbidden constructor.
        """
        stack, memo, marks = self._stack, self._memo, self._marks
        for opcode, argument, _ in pickletools.genops(data):
            self._left -= 1
            if self._left < 0:
                raise ValueError("it has more objects than a description of its tensors needs")
            name = opcode.name
            if name in _PUSHES:
                stack.append(_LEAF)
            elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[argument] = stack[-1] if stack else _LEAF
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo.get(argument, _LEAF))
            elif name == "DUP":
                stack.append(stack[-1] if stack else _LEAF)
            elif name == "MARK":
                marks.append(len(stack))
            elif name == "GLOBAL":
                self._check_global(str(argument))
            else:
                self._apply(opcode)
                self._check_extent()
        return self._left

    def _check_global(self, name: str) -> None:
        if name in _FORBIDDEN or name.endswith("Tensor"):
            raise ValueError(f"it calls `{name.replace(' ', '.')}`")
        self._stack.append(_LEAF)

    def _check_extent(self) -> None:
        depth, values = self._stack[-1] if self._stack else _LEAF
        if depth > MAX_PICKLE_DEPTH:
            raise ValueError(f"it is nested deeper than the limit of {MAX_PICKLE_DEPTH}")
        if values > MAX_PICKLE_VALUES:
            raise ValueError(f"it has more values than the limit of {MAX_PICKLE_VALUES:,}")

    def _apply(self, opcode: pickletools.OpcodeInfo) -> None:
        """Replace what an opcode takes from the stack by what it makes."""
        stack, takes = self._stack, opcode.stack_before
        taken: list[_Extent] = []
        if pickletools.markobject in takes:
            start = self._marks.pop() if self._marks else 0
            taken = stack[start:]
            del stack[start:]
            takes = takes[: takes.index(pickletools.markobject)]
        count = min(len(takes), len(stack))
        first = stack[-count:] if count else []
        del stack[len(stack) - count :]
        taken = first + taken
        if not opcode.stack_after:
            return
        depth = 1 + max((extent[0] for extent in taken), default=-1)
        if opcode.name in _MUTATORS and taken:
            depth = max(taken[0][0], 1 + max((extent[0] for extent in taken[1:]), default=-1))
        stack.append((depth, 1 + sum(extent[1] for extent in taken)))


def check_nesting(value: Any) -> None:
    """Check that unpickled containers do not contain themselves and are not nested deeper than the limit.

    A pickle can add to a container after it was put into another one, which its opcodes do not show.

    Raises:
        ValueError: They do, or are.
    """
    heights: dict[int, int] = {}

    def height(value: Any, level: int) -> int:
        if not isinstance(value, (Mapping, list, tuple, set, frozenset)):
            return 0
        name = id(cast(Any, value))
        if level <= MAX_PICKLE_DEPTH and name not in heights:
            parts = cast("Collection[Any]", value.values() if isinstance(value, Mapping) else value)
            heights[name] = 1 + max((height(part, level + 1) for part in parts), default=0)
        if level + heights.get(name, 1) > MAX_PICKLE_DEPTH + 1:
            raise ValueError(f"it contains itself, or is nested deeper than the limit of {MAX_PICKLE_DEPTH}")
        return heights[name]

    height(value, 0)


def is_weights_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path has the extension of a weights file."""
    return Path(path).suffix.lower() in WEIGHTS


def weights_file(source: str | os.PathLike[str]) -> Path:
    """Return the path of a weights file.

    Raises:
        CnnspecError: E0505 if it does not exist, or does not have the extension of one.
    """
    path = Path(source)
    if not is_weights_file(path):
        endings = ", ".join(f"`{known}`" for known in WEIGHTS)
        message = f"`{path.name}` does not have the extension of a weights file"
        raise failure("E0505", message, file=str(path), help=f"use a file with {endings}")
    with open_regular(path, sys.maxsize, "E0505") as file:
        if file is None:
            help = "check the path; a run stores its weights in `checkpoints/best.safetensors`"
            raise failure("E0505", "weights file not found", file=str(path), help=help)
    return path


# --- writing -------------------------------------------------------------------------------------

CHUNK = 1 << 20
"""The number of bytes per call of `write`."""


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Let errors of the file system name a file: failed writes name none, or the temporary file."""
    try:
        yield
    except OSError as error:
        name_file(error, path)
        raise


def name_file(error: OSError, path: Path) -> None:
    """Let an error of the file system name a file, unless it names another one already."""
    if error.errno is not None and error.filename in (None, f"{path}.part"):
        error.filename, error.filename2 = str(path), None


def write_all(file: BinaryIO, content: bytes | memoryview) -> None:
    """Write bytes to a file without a buffer, so that an error appears here and not when the file is closed."""
    view = memoryview(content)
    while view:
        view = view[file.write(view[:CHUNK]) :]


_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EPERM)
"""The errors of systems that cannot sync a folder."""


def sync_folder(folder: Path) -> None:
    """Sync the directory entries to disk, if the system supports it."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not on Windows
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def write_atomically(path: Path, content: bytes, *, shared: bool = False) -> None:
    """Create or replace a file in one step: on failure, the old content stays. A replaced file keeps its permissions.

    Args:
        path: The file.
        content: Its new content.
        shared: Whether several processes may write the file at the same time, as in a cache folder. Each has a
            temporary file of its own then, and only the owner may read the file.

    Raises:
        OSError: The file cannot be written. The error names it.
    """
    write_together({path: content}, shared=shared)


def write_together(files: Mapping[Path, bytes], *, shared: bool = False) -> None:
    """Create or replace files: if one cannot be written, the old contents of all stay; see `write_atomically`."""
    own = f".{os.getpid()}-{threading.get_ident()}" if shared else ""
    temporaries = {path: path.with_name(f"{path.name}{own}.part") for path in files}
    try:
        for path, temporary in temporaries.items():
            with naming(path):
                temporary.unlink(missing_ok=True)  # a link would lead the data to another place
                with temporary.open("xb", buffering=0) as file:
                    if shared or path.exists():
                        temporary.chmod(0o600 if shared else path.stat().st_mode & 0o777)
                    write_all(file, files[path])
                    os.fsync(file.fileno())
        for path, temporary in temporaries.items():
            with naming(path):
                os.replace(temporary, path)
    except OSError:
        for temporary in temporaries.values():
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise
    for path in files:
        with naming(path):
            sync_folder(path.parent)
