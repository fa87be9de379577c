"""Hints for a choice that is not written as a bare name, such as a data set in quotes."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cnnspec.diagnostics import Edit, Fix, Reported, Reporter, Span
from cnnspec.recipe import DATA_SETS
from cnnspec.schema import Declared


def unnamed_choice(reporter: Reporter, span: Span, table: Mapping[str, type[Declared]], what: str) -> Reported:
    """Report a value where the name of a choice is expected: a name in quotes or with signs in it, or a folder."""
    given = span.text.strip('"')
    plain = re.sub(r"[\W_]", "", given.lower())
    written = next((name for name in table if name.replace("_", "") == plain), None)
    if written is None and table is DATA_SETS and re.fullmatch(r"[\w./ -]*[A-Za-z][\w./ -]*", given):
        written = f'folder "{given.removeprefix("folder").strip()}"'
    message = f"`{span.text}` is no {what}"
    if written is None:
        help = f"there are {', '.join(f'`{name}`' for name in table)}"
        return reporter.error("E0201", message, span, help=help)
    help = f"write `{written}`"
    fix = Fix(help, (Edit(span, written),), certain=written in table)
    return reporter.error("E0201", message, span, help=help, fixes=[fix])
