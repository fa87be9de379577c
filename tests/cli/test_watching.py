"""The command `watch`: what it shows after each change, and how it ends."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cnnspec.cli import watching
from cnnspec.cli.app import app
from cnnspec.cli.output import write_file

ROOT = Path(__file__).resolve().parents[2]
HEAD = "head global_avgpool | flatten | linear 10\n"
SPEC = f'network net\ninput 3x8x8\nuse pair from "parts/blocks"\n\nstem pair 4\n{HEAD}'
BLOCK = "block pair(c) {\n    conv 3x3 c\n    relu\n}\n"
BASE = f"network base\ninput 3x8x8\nparam c = 4\n\nstem conv 3x3 c\n{HEAD}"

Action = Callable[[], object]
Rounds = Callable[..., list[str]]


def put(name: str, text: str) -> Action:
    return lambda: Path(name).write_text(text, "utf-8")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "parts").mkdir()
    put("net.cnn", SPEC)()
    put("parts/blocks.cnn", BLOCK)()
    return tmp_path


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> Rounds:
    """Watch with one action after each result, then Ctrl-C. Returns the output of each round."""

    def rounds(actions: Iterable[Action], *arguments: str) -> list[str]:
        waiting, wait, looks = iter(actions), watching._await_change, 0

        def look(_seconds: float) -> None:
            nonlocal looks
            looks += 1
            assert looks < 1000, "a change was not noticed"

        def act(known: Any) -> None:
            sys.stderr.flush()  # it is buffered here, unlike the stderr of a process
            action = next(waiting, None)
            if action is None:
                raise KeyboardInterrupt
            action()
            wait(known)

        with monkeypatch.context() as patch:
            patch.setattr(watching.time, "sleep", look)
            patch.setattr(watching, "_await_change", act)
            done = CliRunner().invoke(app, ["watch", "net.cnn", *arguments], standalone_mode=False)
        assert done.exception is None, done.exception
        assert done.return_value == 0
        return done.output.split("\nnet.cnn: changed\n")

    return rounds


def test_each_change_is_shown_and_drawn(rounds: Rounds) -> None:
    drawn: list[str] = []

    def put_after(name: str, text: str) -> Action:
        def action() -> None:
            drawn.append(Path("out.svg").read_text("utf-8"))
            put(name, text)()

        return action

    shown = rounds(
        [
            put_after("net.cnn", SPEC.replace("pair 4", "pair 6")),
            put_after("net.cnn", SPEC.replace("pair 4", "pear 6")),
            put_after("net.cnn", SPEC.replace("input 3x8x8", "input {")),
            put_after("net.cnn", SPEC),
            put_after("parts/blocks.cnn", BLOCK.replace("3x3", "5x5")),
            put_after("parts/blocks.cnn", BLOCK.replace("relu", "gelou")),
            put_after("parts/blocks.cnn", BLOCK),
        ],
        *("-o", "out.svg"),
    )
    parameters = [line.split(" parameters")[0].rpartition(" ")[2] for line in shown]
    good = ["158", "232", None, None, "158", "350", None, "158"]
    assert [found if "parameters" in text else None for found, text in zip(parameters, shown, strict=True)] == good
    assert ["error[" in text for text in shown] == [number is None for number in good]
    assert ["drawn to out.svg" in text for text in shown] == [number is not None for number in good]
    changes = [a != b for a, b in zip(drawn, [*drawn[1:], Path("out.svg").read_text("utf-8")], strict=True)]
    assert changes == [True, False, False, True, True, False, True]  # a spec with errors leaves the drawing as it is
    assert all("stem" in text and "total" in text for text, number in zip(shown, good, strict=True) if number)
    assert "\x1b" not in "".join(shown)


CHANGES: dict[str, tuple[str, Action, str]] = {
    "a file that is extended": ("extends base", put("base.cnn", BASE.replace("= 4", "= 5")), "195 parameters"),
    "a file that did not exist": (
        'use pair from "later"\ninput 3x8x8\npair 4\n',
        put("later.cnn", BLOCK),
        "108 parameters",
    ),
    "a file in place of a shipped one": ("extends lenet5", put("lenet5.cnn", BASE), "158 parameters"),
    "a file that is used by one that is used": (
        'use outer from "outer"\ninput 3x8x8\nouter 4\n',
        put("parts/blocks.cnn", BLOCK.replace("relu", "relu\n    conv 1x1 c")),
        "124 parameters",
    ),
    "a removed file": (SPEC, lambda: os.remove("parts/blocks.cnn"), "error[E0212]: file `parts/blocks` not found"),
    "the spec itself": (SPEC, lambda: os.remove("net.cnn"), "error[E0212]: file `net.cnn` not found"),
    "a folder in its place": (
        SPEC,
        lambda: (os.remove("net.cnn"), os.mkdir("net.cnn")),
        "error[E0212]: `net.cnn` is a folder",
    ),
    "another file of the same size and time": (
        SPEC,
        lambda: (
            put("other.cnn", SPEC.replace("4", "5"))(),
            os.utime("other.cnn", ns=times()),
            os.replace("other.cnn", "net.cnn"),
        ),
        "195 parameters",
    ),
    "text that is not UTF-8": (SPEC, lambda: Path("net.cnn").write_bytes(b"\xff"), "error[E0107]"),
}


def times() -> tuple[int, int]:
    status = os.stat("net.cnn")
    return status.st_atime_ns, status.st_mtime_ns


@pytest.mark.parametrize("kind", CHANGES)
def test_every_kind_of_change_is_noticed(kind: str, rounds: Rounds) -> None:
    text, action, expected = CHANGES[kind]
    put("base.cnn", BASE)()
    put("outer.cnn", 'use pair from "parts/blocks"\nblock outer(c) {\n    pair c\n}\n')()
    put("net.cnn", text)()
    before, after = rounds([action])
    assert expected in after
    assert expected not in before


def test_only_changes_of_the_text_are_shown(rounds: Rounds) -> None:
    def touch_and_save() -> None:
        os.utime("net.cnn")
        put("net.cnn", SPEC)()
        put("unrelated.cnn", SPEC)()

    with pytest.raises(AssertionError, match="a change was not noticed"):
        rounds([touch_and_save])


def test_files_settle_before_they_are_checked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """An editor that truncates a file and then writes it in two steps is waited for."""
    path = folder / "net.cnn"
    steps = iter(
        [lambda: None, *(lambda text=text: path.write_text(text) for text in ("", "net", "network a\n")), None]
    )
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        step = next(steps, None)
        if step is not None:
            step()

    monkeypatch.setattr(watching.time, "sleep", sleep)
    watching._await_change(watching._states([path]))
    assert path.read_text() == "network a\n"
    assert slept == [watching.INTERVAL] * 2 + [watching.SETTLING] * 3


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["none.cnn"], "E0212"),
        (["parts"], "E0212"),
        (["net.cnn", "-o", "net.xyz"], "E0523"),
        (["net.cnn", "--set", "c=[1,"], "E0204"),
    ],
)
def test_what_cannot_start_is_an_error(arguments: list[str], code: str) -> None:
    done = CliRunner().invoke(app, ["watch", *arguments], standalone_mode=False)
    assert code in str(done.exception)


@pytest.mark.parametrize("arguments", [["-"], ["net.cnn", "--set", "c"], ["net.cnn", "--depth", "0"], []])
def test_wrong_usage(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, ["watch", *arguments]).exit_code == 2


def test_errors_of_options_and_of_the_drawing_are_shown(rounds: Rounds) -> None:
    assert "error[E0204]" in rounds([], "--at", "big")[0]
    assert "error[E0217]" in rounds([], "--set", "unknown=3")[0]
    assert "error[E0212]: cannot write" in rounds([], "-o", "no/folder/net.svg")[0]
    assert "[N, 3, 16, 16]" in rounds([], "--at", "16x16")[0]


# --- a real process ------------------------------------------------------------------------------


def start(**pipes: Any) -> subprocess.Popen[bytes]:
    # A shell that starts the tests in the background lets them ignore Ctrl-C.
    code = "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "sys.modules['torch'] = None\nfrom cnnspec.cli import main\nmain()"
    command = [sys.executable, "-c", code, "watch", "net.cnn"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    return subprocess.Popen(command, env=environment, **pipes)


def read_until(stream: int, end: bytes) -> bytes:
    found = b""
    while end not in found:
        part = os.read(stream, 65536)
        assert part, found
        found += part
    return found


def test_ctrl_c_ends_a_real_process(folder: Path) -> None:
    process = start(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"net.cnn: ok" in read_until(process.stdout.fileno(), b"depth ")
        write_file(folder / "net.cnn", SPEC.replace("pair 4", "pair 6").encode())
        read_until(process.stdout.fileno(), b"232 parameters")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
        assert (process.returncode, errors) == (0, b"")
    finally:
        process.kill()


def test_a_terminal_is_cleared(folder: Path) -> None:
    terminal, side = pty.openpty()
    process = start(stdin=side, stdout=side, stderr=side)
    try:
        os.close(side)
        assert b"\x1b[2J" not in read_until(terminal, b"depth ")
        put("net.cnn", SPEC.replace("pair 4", "pair 6"))()
        assert b"\x1b[2J" in read_until(terminal, b"232 parameters")
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        os.close(terminal)
