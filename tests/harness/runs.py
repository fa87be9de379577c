"""The network and helpers that tests of training runs share."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from cnnspec import CnnspecError
    from cnnspec.diagnostics import Diagnostic

LAYERS = "stem conv 7x7 4 stride=7 pad=0 | bn | relu"
DEEPER = "stem conv 7x7 8 stride=7 pad=0 | bn | relu\nbody: conv 3x3 8 | bn | relu"


def tiny(
    recipe: str = "", *, name: str = "tiny", shape: str = "1x28x28", classes: int | str = 10, layers: str = LAYERS
) -> str:
    """Return the spec of a small network and its recipe, whose entries are separated by semicolons."""
    head = "head global_avgpool | flatten | linear classes"
    train = f"train {{ {recipe} }}\n" if recipe else ""
    return f"network {name}\ninput {shape}\nclasses {classes}\n{layers}\n{head}\n{train}"


TINY = tiny().replace("head", "head dropout 0.1 |")
"""A network without a recipe."""


def code(error: pytest.ExceptionInfo[CnnspecError]) -> str:
    """Return the code of the first diagnostic of an error."""
    return error.value.diagnostics[0].code


COMMANDS = ("train", "test", "sweep", "compare", "predict")
"""The commands that classify images."""


def refuse(command: str, text: str, folder: Path) -> Diagnostic:
    """Run one of `COMMANDS` on a spec that cannot classify images, and return its only error."""
    import torch
    from typer.testing import CliRunner

    from cnnspec import CnnspecError, build
    from cnnspec.cli.app import app

    spec, weights = folder / "net.cnn", folder / "net.pt"
    spec.write_text(text)
    torch.save(build(spec).state_dict(), weights)
    places = ["--data", "fashion_mini", "--out", str(folder / "runs")]
    arguments = {
        "train": ["build", str(spec), "--train", *places],
        "test": ["test", str(spec), "--weights", str(weights), *places[:2]],
        "sweep": ["sweep", str(spec), "--set", "classes=10,11", *places],
        "compare": ["compare", str(spec), "lenet5", *places],
        "predict": ["predict", str(weights), str(folder), "--spec", str(spec)],
    }[command]
    done = CliRunner().invoke(app, arguments)
    assert isinstance(done.exception, CnnspecError), done.output
    (error,) = done.exception.diagnostics
    assert error.code == "E0508"
    assert not (folder / "runs").exists() or not [*(folder / "runs").rglob("*.ckpt")]
    return error
