"""Explanations of the codes: one page per code, with an example that fails and the fixed one."""

from __future__ import annotations

from functools import lru_cache

from cnnspec.resources import resource


@lru_cache(maxsize=1)
def titles() -> dict[str, str]:
    """Every code with what it is about, in the order of the codes."""
    pages = sorted(resource("docs", "errors").glob("[EW]*.md"))
    firsts = (page.read_text("utf-8").split("\n", 1)[0] for page in pages)
    return {page.stem: first.partition(": ")[2] for page, first in zip(pages, firsts, strict=True)}


def explanation(code: str) -> str:
    """The page of a code.

    Raises:
        KeyError: There is no such code.
    """
    if code not in titles():
        raise KeyError(code)
    return resource("docs", "errors", f"{code}.md").read_text("utf-8")
