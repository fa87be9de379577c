"""A session in the real Neovim: keys are typed on a terminal, and the screen is read, as a user would see it."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("pygls")

ROOT = Path(__file__).resolve().parents[2]
NVIM = shutil.which("nvim")
ROWS, COLUMNS = 50, 110
INIT = """
vim.opt.runtimepath:prepend({plugin})
vim.opt.completeopt = "menuone"
vim.opt.swapfile = false
require("cnnspec").setup({{
  cmd = {{ {python}, "-m", "cnnspec", "lsp" }},
  on_attach = function(_, buffer)
    for keys, action in pairs({{ K = "hover", ga = "code_action", gr = "rename", gd = "definition" }}) do
      vim.keymap.set("n", keys, vim.lsp.buf[action], {{ buffer = buffer }})
    end
  end,
}})
"""
SPEC = """network net
input 3x32x32
classes 10

block pair(width) {
    conv 3x3 width | bn | relu
}

stem convv 3x3 16
stage pair 32
head global_avgpool | flatten | linear classes
"""
LINE = "join(map(range(1, &columns), {_, column -> screenstring(row, column)}), '')"
SCREEN = f'join(map(range(1, &lines), {{_, row -> {LINE}}}), "\\n")'

pytestmark = pytest.mark.skipif(NVIM is None, reason="nvim is not installed")


class Editor:
    """Neovim on a terminal."""

    def __init__(self, folder: Path, file: Path) -> None:
        init = folder / "init.lua"
        plugin = ROOT / "editors" / "neovim"
        init.write_text(INIT.format(plugin=json.dumps(str(plugin)), python=json.dumps(sys.executable)), "utf-8")
        self._socket = folder / "nvim.sock"
        self._terminal, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "XDG_STATE_HOME": str(folder)}
        command = [str(NVIM), "-u", str(init), "-i", "NONE", "--listen", str(self._socket), str(file)]
        self._process = subprocess.Popen(
            command, stdin=side, stdout=side, stderr=side, env=environment, cwd=folder, start_new_session=True
        )
        os.close(side)
        self._drawn = b""
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        with suppress(OSError):
            while part := os.read(self._terminal, 65536):
                self._drawn += part

    def type(self, keys: str) -> None:
        r"""Type keys; `\x1b` is Escape, and `\x18\x0f` is Ctrl-X Ctrl-O."""
        self._drawn = b""
        os.write(self._terminal, keys.encode())

    def wait_for_output(self, text: str) -> None:
        """Return when a text was drawn since the last keys: at a prompt Neovim evaluates nothing, and `screenstring`
        lacks floating windows and menus.
        """
        end = time.monotonic() + 30
        while text not in self.drawn:
            assert time.monotonic() < end, f"{text!r} was not drawn: {self.drawn[-3000:]!r}"
            time.sleep(0.05)

    @property
    def drawn(self) -> str:
        """What was drawn since the last keys, without colors and positions."""
        text = re.sub(
            r"\x1b\[([0-9]*)C", lambda match: " " * int(match[1] or 1), self._drawn.decode("utf-8", "replace")
        )
        return re.sub(r"\x1b(\[[0-9;? ]*[A-Za-z]|\][^\x07]*\x07|\(B)", "", text)

    def evaluate(self, expression: str) -> str:
        command = [str(NVIM), "--server", str(self._socket), "--remote-expr", expression]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
        return done.stdout or done.stderr  # old versions print on stderr

    def wait_for(self, text: str, *, gone: bool = False) -> str:
        """Return the screen as soon as it shows a text, or no longer shows it."""
        end = time.monotonic() + 30
        while True:
            screen = self.evaluate(SCREEN)
            if screen and (text in screen) != gone:
                return screen
            assert time.monotonic() < end, f"{text!r} {'still' if gone else 'not'} on the screen:\n{screen}"
            time.sleep(0.1)

    def close(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        os.close(self._terminal)


@pytest.fixture
def editor(tmp_path: Path) -> Iterator[Editor]:
    (tmp_path / "net.cnn").write_text(SPEC, "utf-8")
    editor = Editor(tmp_path, tmp_path / "net.cnn")
    yield editor
    editor.close()


@pytest.mark.slow
def test_a_session(editor: Editor, tmp_path: Path) -> None:
    # an error is shown at its line
    screen = editor.wait_for("unknown operator or block `convv`")
    assert "stem convv 3x3 16" in screen
    # fix: the quick fix of the line
    editor.type("/convv\rga")
    editor.wait_for_output("Type number")
    assert "did you mean `conv`?" in editor.drawn
    editor.type("1\r")
    editor.wait_for("stem conv 3x3 16")
    editor.wait_for("unknown operator", gone=True)
    # hover: documentation, shapes and costs
    editor.type("/stem\rwK")
    editor.wait_for_output("out [N, 16, 32, 32]")
    assert "in [N, 3, 32, 32]" in editor.drawn
    assert "432 parameters, 442,368 MACs" in editor.drawn
    # rename: the parameter of a block, everywhere
    editor.type("/width\rgr")
    editor.wait_for_output("New Name: width")
    editor.type("\x15channels\r")
    screen = editor.wait_for("conv 3x3 channels | bn | relu")
    assert "block pair(channels) {" in screen
    # definition: from the call of the block to the block
    editor.type("/pair 32\rgd")
    editor.wait_for("5,7")
    # completion: an operator with its torch class, then an argument
    editor.type("Gkoconv_t\x18\x0f")
    editor.wait_for_output("torch.nn.ConvTranspose2d")
    editor.type(" 2x2 8 strid\x18\x0f")
    editor.wait_for_output("stride: size = 1x1")
    editor.type("=2\x1b:w\r")
    editor.wait_for("written")
    fixed = SPEC.replace("convv", "conv").replace("width", "channels")
    expected = fixed.replace("stage pair 32\n", "stage pair 32\nconv_transpose 2x2 8 stride=2\n")
    assert (tmp_path / "net.cnn").read_text("utf-8") == expected
