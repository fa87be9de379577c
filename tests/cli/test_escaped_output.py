"""Test that text of a file, a file name or a message cannot control the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cnnspec.cli import main
from cnnspec.cli.output import GuardedStream
from cnnspec.diagnostics import Diagnostic, printable, printable_line, render
from cnnspec.training.runs.progress import print_line

CONTROLS = [*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0))]
HIDDEN = [
    chr(code) for code in (0xAD, 0x61C, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070), 0xFEFF)
]
OTHERS = [chr(code) for code in (0x34F, 0x3164, 0xFFA0, 0xFFF9, 0xD800, 0xDFFF, 0xE0001, 0xE0041, 0xE0100, 0x1BCA0)]
BAD = [*CONTROLS, *HIDDEN, *OTHERS]
SHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
EVIL = "::error file=x::\x1b[2Jé\u202e\n::warning ::a[bold]"


@pytest.mark.parametrize("char", BAD, ids=[f"{ord(char):04x}" for char in BAD])
def test_no_control_character_is_printable(char: str):
    assert printable(f"a{char}b").isascii()
    assert char not in printable_line(char)
    for text in (render(Diagnostic("E0101", char, file=char, notes=(char,), help=char, caption=char)),):
        assert char == "\n" or char not in text
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    print_line(console, f"a{char}b", "yellow")
    shown = re.sub(r"\x1b\[[0-9;]*m|\n", "", console.file.getvalue())  # type: ignore[attr-defined]
    assert char not in shown
    stream = io.StringIO()
    GuardedStream(stream).write(f"a{char}b")
    assert char in "\n\t" or char not in stream.getvalue()


def test_usual_text_stays():
    for text in ("resnet20: 3x32x32 -> 10", "日本語 éß ± →", "a\u00a0b\u3000c", "C:\\net.cnn", "a::b", "# a"):
        assert printable_line(text) == text


def test_a_line_cannot_start_a_workflow_command():
    assert printable_line("::error ::x").startswith("\\x3a:")
    assert "##[" not in printable_line("a ##[error]b")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with specs and runs whose names and contents have control characters."""
    folder = tmp_path_factory.mktemp("evil")
    good = "input 3x8x8\nclasses 10\n# \x1b[2J \u202e\x9b1m\nhead global_avgpool | flatten | linear classes\n"
    (folder / f"{EVIL}.cnn").write_text(good)
    (folder / f"bad{EVIL}.cnn").write_text(good.replace("global", "globl") + "# \x07 \u2028 \x1b]0;x\x07")
    run = folder / "runs" / EVIL / "1"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"format_version": 1, "state": EVIL, "data": EVIL}))
    return folder


def commands(folder: Path) -> Iterator[list[str]]:
    for name in (f"{EVIL}.cnn", f"bad{EVIL}.cnn", f"missing{EVIL}.cnn"):
        for form in ("full", "concise", "github", "json", "sarif"):
            yield ["check", "--format", form, name]
        yield from (["summary", name], ["summary", "--format", "csv", name], ["show", name], ["diff", name, "resnet20"])
        yield from (["show", "--stage", stage, name] for stage in ("tree", "model"))
        yield ["fmt", "--diff", name]
    yield from (["explain", EVIL], [EVIL], ["runs", "runs"], ["runs", EVIL], ["check", f"--{EVIL}"])


def run(command: list[str], encoding: str, patch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Run a command as a program does, and return what it writes to its streams."""
    streams = io.BytesIO(), io.BytesIO()
    with patch.context() as own:
        own.setattr(sys, "argv", ["cnnspec", *command])
        for name, stream, errors in zip(("stdout", "stderr"), streams, ("strict", "backslashreplace"), strict=True):
            own.setattr(sys, name, io.TextIOWrapper(stream, encoding, errors, write_through=True))
        with pytest.raises(SystemExit):
            main()
        sys.stdout.flush()
        return tuple(stream.getvalue().decode(encoding) for stream in streams)  # type: ignore[return-value]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_no_command_prints_control_characters(encoding: str, files: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(files)
    for command in commands(files):
        out, err = run(command, encoding, monkeypatch)
        text = f"{out}\n{err}"
        assert not SHOWN.search(text), (command, ascii(text))
        assert "internal error" not in text, (command, text)
        for line in text.split("\n"):
            annotation = "github" in command and re.match(r"::(error|warning) file=[^:]*title=[EW]\d{4}::", line)
            assert annotation or not line.lstrip().startswith("::"), (command, ascii(line))
        if "json" in command or "sarif" in command:
            json.loads(out)


def test_formatting_from_a_pipe_keeps_the_text():
    text = "input 3x8x8  # é \u200d 日本\nhead global_avgpool | flatten | linear 10\n"
    done = subprocess.run(
        [sys.executable, "-m", "cnnspec", "fmt", "-"],
        input=text.encode(), capture_output=True, timeout=60, env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.stdout.decode() == text
