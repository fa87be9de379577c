"""The command-line application. The module of a command is imported when the command is run or listed."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

COMMANDS = {
    "build": "cnnspec.cli.modules:build",
    "train": "cnnspec.cli.modules:train",
    "plan": "cnnspec.cli.modules:plan",
    "runs": "cnnspec.cli.modules:runs",
    "test": "cnnspec.cli.modules:test",
    "export": "cnnspec.cli.exporting:export",
    "predict": "cnnspec.cli.inference:predict",
    "match": "cnnspec.cli.modules:match",
    "init": "cnnspec.cli.starter:init",
    "compare": "cnnspec.cli.comparisons:compare",
    "check": "cnnspec.cli.specs:check",
    "explain": "cnnspec.cli.specs:explain",
    "fmt": "cnnspec.cli.specs:fmt",
    "summary": "cnnspec.cli.specs:summary",
    "show": "cnnspec.cli.specs:show",
    "draw": "cnnspec.cli.drawing:draw",
    "watch": "cnnspec.cli.watching:watch",
    "diff": "cnnspec.cli.specs:diff",
    "list": "cnnspec.cli.specs:list_",
    "sweep": "cnnspec.cli.sweeps:sweep",
    "lsp": "cnnspec.cli.editors:lsp",
}
"""The function of each command, in the order of `cnnspec --help`."""


ARGUMENTS = "cnnspec.arguments"
"""The key of the command line in the context."""
HELP = {"help_option_names": ["-h", "--help"]}


@cache
def make_command(name: str) -> Any:
    """Import the function of a command, and return the command.

    Raises:
        KeyError: The command does not exist.
    """
    module, _, function = COMMANDS[name].partition(":")
    gc.disable()  # as in `cnnspec.cli`
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    single.command(name, context_settings=HELP)(getattr(importlib.import_module(module), function))
    command = typer.main.get_command(single)
    gc.freeze()
    gc.enable()
    return command


class Commands(Mapping[str, Any]):
    """The commands by name, each made when it is looked up: `check` does not import what `sweep` needs."""

    def __getitem__(self, name: str) -> Any:
        return make_command(name)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class CommandGroup(TyperGroup):
    """`cnnspec` without a command."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands: Any = Commands()

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse a command line, and keep it for `repeated_command`."""
        given = list(args)
        context = super().make_context(info_name, args, parent, **extra)
        context.meta[ARGUMENTS] = given
        return context


app = typer.Typer(
    cls=CommandGroup,
    help="Check, build and train convolutional networks that are described as text.",
    no_args_is_help=True,
    context_settings=HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(show: bool) -> None:
    if show:
        import cnnspec
        from cnnspec.diagnostics import echo

        echo(f"cnnspec {cnnspec.__version__} (language version {cnnspec.LANGUAGE_VERSION})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("-V", "--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
