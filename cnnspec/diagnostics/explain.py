"""Explanations of the codes: one page per code, with an example that fails and the fixed one."""

from __future__ import annotations

from functools import lru_cache

from cnnspec.resources import resource


@lru_cache(maxsize=1)
def titles() -> dict[str, str]:
    """Return the title of each code, sorted by code."""
    pages = sorted(resource("docs", "errors").glob("[EW]*.md"))
    firsts = (page.read_text("utf-8").split("\n", 1)[0] for page in pages)
    return {page.stem: first.partition(": ")[2] for page, first in zip(pages, firsts, strict=True)}


def explanation(code: str) -> str:
    """Return the page of a code.

    Raises:
        KeyError: The code does not exist.
    """
    if code not in titles():
        raise KeyError(code)
    return resource("docs", "errors", f"{code}.md").read_text("utf-8")
