"""Every command with an output that cannot be written: a closed stream, a full device, a pipe that nothing reads."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness.runs import TINY

from cnnspec.api import check
from cnnspec.cli.app import COMMANDS

pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")

RECIPE = TINY + "train {\n    data fashion_mini val=1500\n    optimizer sgd lr=0.1\n    batch 500\n    epochs 2\n}\n"
QUICK: dict[str, tuple[str, ...]] = {
    "check": ("net.cnn",), "explain": ("E0301",), "fmt": ("--diff", "loose.cnn"), "summary": ("net.cnn",),
    "show": ("net.cnn",), "draw": ("net.cnn", "-o", "net.svg"), "diff": ("net.cnn", "loose.cnn"), "list": (),
    "runs": (), "watch": ("net.cnn", "-o", "net.svg"), "init": ("images", "--out", "new.cnn"),
}  # fmt: skip
SLOW: dict[str, tuple[str, ...]] = {
    "build": ("net.cnn",), "train": ("net.cnn",), "plan": ("net.cnn",),
    "test": ("net.cnn", "--weights", "runs/tiny/1/checkpoints/best.safetensors"), "export": ("runs/tiny/1", "net.onnx"),
    "predict": ("runs/tiny/1", "images"), "match": ("net.cnn", "runs/tiny/1/checkpoints/best.safetensors"),
    "compare": ("net.cnn", "loose.cnn", "--seeds", "1", "--epochs", "1"),
    "sweep": ("net.cnn", "--set", "lr=0.1,0.2", "--trials", "2", "--epochs", "1"),
}  # fmt: skip
LOST = ("1>/dev/full", "1>&-", "1|", "2>/dev/full", "2>&-")
"""What happens to the standard output (1) or the standard error (2); `|` is a pipe that nothing reads."""


def run(lost: str, *command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command without one of its outputs."""
    read, write = os.pipe()
    os.close(read)
    redirection = "" if lost == "1|" else lost
    try:
        return subprocess.run(
            ["sh", "-c", f'exec "$0" -m cnnspec "$@" {redirection}', sys.executable, *command],
            cwd=folder, stdout=write if lost == "1|" else subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            stdin=subprocess.DEVNULL, timeout=500,
        )  # fmt: skip
    finally:
        os.close(write)


def fill(folder: Path) -> None:
    """Write the files that the commands read."""
    from PIL import Image

    (folder / "net.cnn").write_text(RECIPE)
    (folder / "loose.cnn").write_text(RECIPE.replace("network tiny", "network   loose"))
    for split in ("train", "test"):
        for name in ("a", "b"):
            (folder / "images" / split / name).mkdir(parents=True)
            for number in range(2):
                Image.new("L", (28, 28), 90 * number).save(folder / "images" / split / name / f"{number}.png")


def check_files(command: str, folder: Path) -> None:
    """Check that the files of a command are complete."""
    assert [path for path in folder.rglob("*") if path.name.endswith((".tmp", ".part"))] == []
    match command:
        case "draw" | "watch":
            path = folder / "net.svg"
            assert (command == "watch" and not path.exists()) or path.read_text().endswith("</svg>\n")
        case "init":
            assert not [found for found in check((folder / "new.cnn").read_text()) if found.severity == "error"]
        case "export":
            assert sum(path.suffix == ".onnx" for path in folder.iterdir()) == 1
        case "train":
            assert json.loads((folder / "runs" / "tiny" / "2" / "result.json").read_text())["epochs"] == 2
        case "compare":
            assert json.loads(next(folder.glob("comparisons/*/comparison.json")).read_text())["rows"]
        case "sweep":
            assert not list(check(next(folder.glob("sweeps/*/best.cnn")).read_text()))
        case _:
            pass


def check_outcome(command: str, lost: str, args: tuple[str, ...], folder: Path) -> None:
    if command == "watch" and lost[0] == "2":
        return  # it does not end
    done = run(lost, command, *args, folder=folder)
    assert done.returncode == (1 if lost[0] == "1" or command == "fmt" else 0), done.stderr
    for word in ("Traceback", "internal error", "Exception ignored", "Logging error"):
        assert word not in done.stderr + (done.stdout or "")
    if lost[0] == "1":
        last = done.stderr.splitlines()[-1:]
        assert (last != [] and last[0].startswith("cannot write the output: ")) != (lost == "1|"), done.stderr
    check_files(command, folder)


def test_every_command_is_tested() -> None:
    assert {*QUICK, *SLOW, "lsp"} == {*COMMANDS}


OFTEN = ("draw", "runs", "watch", "init")
"""Commands that are tested in each run; `tests/cli/test_commands.py` tests most of the others."""


@pytest.mark.parametrize(
    "command", [*OFTEN, *(pytest.param(name, marks=pytest.mark.slow) for name in QUICK if name not in OFTEN)]
)
def test_quick_commands_without_an_output(command: str, tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    fill(tmp_path)
    for lost in LOST if command not in OFTEN else LOST[1:4]:
        (tmp_path / "new.cnn").unlink(missing_ok=True)
        (tmp_path / "net.svg").unlink(missing_ok=True)
        check_outcome(command, lost, QUICK[command], tmp_path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("pytorch_lightning")
    folder = tmp_path_factory.mktemp("trained")
    fill(folder)
    done = subprocess.run([sys.executable, "-m", "cnnspec", "train", "net.cnn"], cwd=folder, capture_output=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("lost", LOST, ids=["full", "closed", "pipe", "full-stderr", "closed-stderr"])
@pytest.mark.parametrize("command", SLOW)
def test_other_commands_without_an_output(command: str, lost: str, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx" if command == "export" else "torch")
    import shutil

    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    check_outcome(command, lost, SLOW[command], tmp_path)


@pytest.mark.slow
def test_a_language_server_without_an_output_ends() -> None:
    message = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"capabilities": {}}})
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" -m cnnspec lsp >&-', sys.executable],
        input=f"Content-Length: {len(message)}\r\n\r\n{message}", stderr=subprocess.PIPE, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode in (0, 1)
    assert "internal error" not in done.stderr


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_stops_and_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "net.cnn").write_text(RECIPE.replace("epochs 2", "epochs 30"))
    command = [sys.executable, "-m", "cnnspec", "train", "net.cnn"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # `nohup` may run this test
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch"):
            break
    process.stdout.close()
    for _ in range(2):  # of the terminal, and of its shell
        process.send_signal(signal.SIGHUP)
    assert process.wait(200) == 128 + signal.SIGHUP
    done = subprocess.run([*command, "--resume"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resuming after step" in done.stdout
    assert json.loads((tmp_path / "runs" / "tiny" / "1" / "result.json").read_text())["epochs"] == 30
