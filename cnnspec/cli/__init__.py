"""The command line. Only the commands that build a module import torch."""

from __future__ import annotations

import gc

gc.disable()  # imports create no garbage, and collection would take a fifth of the start-up time

import os  # noqa: E402
import sys  # noqa: E402
from contextlib import suppress  # noqa: E402
from typing import Any, NoReturn  # noqa: E402

from cnnspec.cli.app import app  # noqa: E402
from cnnspec.cli.output import drop_output, guard_streams, is_output_error, print_diagnostics  # noqa: E402
from cnnspec.diagnostics import CnnspecError, echo, printable, reason_of  # noqa: E402

gc.freeze()
gc.enable()


def main() -> NoReturn:
    """Run the command line. Exit code 0 is success, 1 an error in the spec or its data, 2 wrong usage or a bug."""
    guard_streams()
    try:
        code = _run()
        sys.stdout.flush()
    except OSError as error:
        code = 1
        drop_output()
        if not isinstance(error, BrokenPipeError):
            with suppress(OSError):
                echo(f"cannot write the output: {reason_of(error)}", file=sys.stderr)
    sys.exit(code)


def _run() -> int:
    """Run a command, and return the exit code.

    Raises:
        OSError: A standard stream cannot be written.
    """
    try:
        code = app(standalone_mode=False)
        return code if isinstance(code, int) else 0
    except CnnspecError as error:
        print_diagnostics(error.diagnostics)
        return 1
    except KeyboardInterrupt:
        echo("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # usage errors of the command line
            _show_usage_error(error)
            return 2
        if type(error).__name__ == "Abort":
            return 130
        if is_output_error(error):
            raise
        if os.environ.get("CNNSPEC_DEBUG"):
            raise
        echo(
            f"internal error: {type(error).__name__}: {error}",
            "this is a bug in cnnspec; set CNNSPEC_DEBUG=1 to see the traceback",
            file=sys.stderr,
        )
        return 2


def _show_usage_error(error: Any) -> None:
    if type(error).__name__ != "NoArgsIsHelpError" and error.message:  # that message is the help
        error.message = printable(error.message)
    error.show(file=sys.stderr)
