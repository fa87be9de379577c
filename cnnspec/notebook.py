"""The cell magic `%%cnn` for IPython and Jupyter, loaded with `%load_ext cnnspec`."""

from __future__ import annotations

from keyword import iskeyword
from typing import Any

from IPython.core.error import UsageError
from IPython.core.magic_arguments import MagicArgumentParser
from IPython.display import display  # pyright: ignore[reportUnknownVariableType]

from cnnspec.api import build
from cnnspec.compiler import compile_source, plain_source
from cnnspec.diagnostics import Diagnostics

_parser: Any = MagicArgumentParser("%cnn", add_help=False)
_parser.add_argument("name", nargs="?", help="The variable of the module; without it, the cell is checked and drawn.")
_parser.add_argument("--graph", action="store_true", help="Set the variable to the Graph; this needs no torch.")
_parser.add_argument("--quiet", action="store_true", help="Do not draw the network.")


def load_ipython_extension(shell: Any) -> None:
    """Register `%%cnn` with a shell of IPython."""

    def cnn(line: str, cell: str) -> None:
        try:
            arguments = _parser.parse_argstring(line)
        except ValueError as error:  # quotes without an end
            raise UsageError(f"cannot read the arguments: {error}") from None
        name: str | None = arguments.name
        if name is not None and (not name.isidentifier() or iskeyword(name)):
            raise UsageError(f"`{name}` is not a variable name")
        # The line of the magic counts, so that positions are those of the cell.
        done = compile_source(plain_source("\n" + cell, name or "cell"))
        graph = done.require_graph()
        value = graph if arguments.graph or name is None else build(graph)
        if done.diagnostics:
            display(Diagnostics(done.diagnostics))
        if not arguments.quiet:
            display(graph)
        if name is not None:
            shell.push({name: value})

    cnn.__doc__ = f"Check, draw and build the network of a cell.\n\n{_parser.format_help()}"
    shell.register_magic_function(cnn, "cell")
