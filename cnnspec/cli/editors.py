"""The command `lsp`, which starts the language server."""

from __future__ import annotations

from cnnspec.diagnostics import failure


def lsp() -> None:
    """Serve an editor over the standard input and output, with the Language Server Protocol."""
    try:
        from cnnspec.lsp.server import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("pygls", "lsprotocol", "attrs", "cattrs"):
            raise
        message = f"the language server requires `{error.name.partition('.')[0]}`, which is not installed"
        raise failure("E0507", message, help="install it with `pip install 'cnnspec[lsp]'`") from None
    serve()
