"""Tests of the built documentation: it builds without warnings, works offline, and has no broken link."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("sphinx", "myst_parser", "furo")
STATE = """() => ({
    links: [...document.querySelectorAll("a[href]")].map(link => link.href),
    images: [...document.images].filter(image => image.complete && !image.naturalWidth).map(image => image.src),
    ids: [...document.querySelectorAll("[id]")].map(element => element.id),
    width: document.documentElement.scrollWidth,
})"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the documentation and return its folder."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"run `make docs-setup`: {', '.join(missing)} not installed")
    out = tmp_path_factory.mktemp("site")
    options = ["--fail-on-warning", "--keep-going", "--quiet", "--jobs", "auto", "-d", str(out / "doctrees")]
    command = [sys.executable, "-m", "sphinx", *options, str(ROOT / "docs"), str(out / "html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return out / "html"


def crawl(page: Any, start: str) -> dict[str, dict[str, Any]]:
    """Open a page and all local pages that it links to, and return the state of each."""
    states: dict[str, dict[str, Any]] = {}
    waiting = [start]
    while waiting:
        url = waiting.pop()
        if url in states:
            continue
        page.goto(url)
        states[url] = page.evaluate(STATE)
        targets = (urldefrag(link).url for link in states[url]["links"] if link.startswith("file:"))
        waiting += [target for target in targets if target.endswith(".html") and exists(target)]
    return states


def exists(url: str) -> bool:
    return Path(unquote(urlsplit(url).path)).is_file()


def test_site_works_offline_without_broken_links(browser: Any, site: Path) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 900})
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(request.url))
    states = crawl(page, (site / "index.html").as_uri())
    assert problems == []
    assert len(states) > 100
    for url, state in states.items():
        for link in state["links"]:
            target, fragment = urldefrag(link)
            if not target.startswith("file:"):
                continue
            assert exists(target), f"{url}: {link}"
            assert not fragment or target not in states or unquote(fragment) in states[target]["ids"], f"{url}: {link}"
        assert state["images"] == [], url
        assert state["width"] <= 400, f"{url} is {state['width']} pixels wide"
    built = {path.as_uri() for path in site.rglob("*.html") if path.name != "search.html"}
    assert sorted(built - states.keys()) == [], "pages that no page links to"
