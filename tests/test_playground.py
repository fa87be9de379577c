"""Tests of the playground in a browser: the page, its worker, and what a stranger's link or spec can do."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import shutil
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import cnnspec

ROOT = Path(__file__).resolve().parents[1]
MIB = 2**20
BOOT = 180_000
"""Milliseconds until Python is loaded, on a machine with other work."""
GOOD = """network t
input 3x32x32
classes 10
stem conv 3x3 16 | bn | relu
head global_avgpool | flatten | linear classes
"""
LINES = """lines => lines.map(
    line => [...line.childNodes].filter(node => node.className !== "cm-shape").map(node => node.textContent).join("")
)"""


def load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


playground = load("playground", ROOT / "docs" / "_ext" / "playground.py")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, format: str, *args: Any) -> None:
        pass


def serve(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/playground/index.html"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The assembled page."""
    if not playground.is_fetched():
        pytest.skip("run `make docs-setup`: the packages of the playground are not downloaded")
    folder = tmp_path_factory.mktemp("site")
    playground.assemble(folder / "playground")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    yield from serve(folder)


class Page:
    """The page in a browser, which must not load anything from elsewhere."""

    def __init__(self, browser: Any, address: str, fragment: str = "", **options: Any) -> None:
        self.page = browser.new_page(**options)
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        own = (address.removesuffix("playground/index.html"), "data:", "blob:")
        self.page.on("request", lambda request: request.url.startswith(own) or self.problems.append(request.url))
        self.page.goto(address + fragment)

    def write(self, text: str) -> None:
        """Replace the text of the editor, as with the keyboard."""
        self.page.locator(".cm-content").click()
        self.page.keyboard.press("Control+a")
        self.page.keyboard.insert_text(text)

    def text(self) -> str:
        return "\n".join(self.page.locator(".cm-line").evaluate_all(LINES))

    def wait(self, status: str, timeout: int = BOOT) -> None:
        # Not `wait_for_function`, which needs `unsafe-eval`.
        self.page.locator("#status", has_text=re.compile(f"^{status}$")).wait_for(timeout=timeout)


@pytest.fixture(scope="module")
def page(browser: Any, address: str) -> Iterator[Page]:
    page = Page(browser, address, viewport={"width": 1280, "height": 800})
    page.wait("no errors")
    yield page
    page.page.close()


def test_without_its_packages_the_page_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playground, "PACKAGES", tmp_path / "none")
    playground.assemble(tmp_path / "playground")
    assert [path.name for path in (tmp_path / "playground").iterdir()] == ["index.html"]
    assert "make docs-setup" in (tmp_path / "playground" / "index.html").read_text("utf-8")


def test_without_npm_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(playground, "PACKAGES", tmp_path / "none")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    playground.fetch()
    assert "npm is not installed" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_packages_are_pinned_with_hashes() -> None:
    lock = json.loads((playground.PAGE / "package-lock.json").read_text("utf-8"))
    packages = {name: about for name, about in lock["packages"].items() if name}
    assert len(packages) > 5
    assert all(about["integrity"].startswith("sha512-") and "resolved" not in about for about in packages.values())
    wanted = json.loads((playground.PAGE / "package.json").read_text("utf-8"))["dependencies"]
    assert {name: packages[f"node_modules/{name}"]["version"] for name in wanted} == wanted
    lines = [line for line in (playground.PAGE / "requirements.txt").read_text("utf-8").splitlines() if line[0] != "#"]
    assert lines
    assert all(re.fullmatch(r"[\w-]+==[\d.]+ --hash=sha256:[0-9a-f]{64}", line) for line in lines)


def test_the_first_load_is_small_and_all_licenses_are_listed(folder: Path) -> None:
    files = [path for path in (folder / "playground").rglob("*") if path.is_file()]
    assert sum(len(gzip.compress(path.read_bytes(), 6)) for path in files) < 15 * MIB
    licenses = (folder / "playground" / "licenses.txt").read_text("utf-8")
    listed = set(re.findall(r"^== ([@\w/-]+) [\d.]+: ", licenses, re.MULTILINE))
    scripts = {path.stem for path in files if path.suffix == ".js"} - {"playground", "worker", "cnn"}
    assert {name.removeprefix("@").replace("/", "-") for name in listed} >= scripts
    assert listed >= {"pyodide", "lark", "pydantic", "pydantic_core", "typing_extensions"}
    names = zipfile.ZipFile(folder / "playground" / "packages.zip").namelist()
    assert not [name for name in names if re.match(r"cnnspec/(training|cli|inference|testing|backends/torch)", name)]


def test_a_fault_is_shown_and_fixed(page: Page) -> None:
    shown = page.page
    assert shown.locator("#examples option").count() > 50
    page.write(GOOD)
    page.wait("no errors")
    shown.get_by_alt_text("Graph('t', ").wait_for()
    before = shown.locator("#diagram img").get_attribute("src")
    assert shown.locator(".cm-shape").all_inner_texts() == ["[N, 16, 32, 32]", "[N, 10]"]
    page.write(GOOD.replace("| bn", "| bm").replace(" 16", " 24"))
    page.wait("1 error")
    assert "unknown operator or block `bm`" in shown.locator("#diagnostics").inner_text()
    assert "stale" in (shown.locator("#diagram").get_attribute("class") or "")
    assert shown.locator(".cm-lintRange-error").inner_text() == "bm"
    shown.get_by_role("button", name="Fix: did you mean `bn`?").click()
    page.wait("no errors")
    assert "conv 3x3 24 | bn | relu" in page.text()
    after = shown.locator("#diagram img").get_attribute("src")
    assert after != before
    shown.get_by_role("tab", name="Summary").click()
    cells = shown.locator("#summary tr").last.locator("td").all_inner_texts()
    assert cells[0] == "total"
    assert cells[3] == "946"
    shown.get_by_role("tab", name="Diagram").click()
    assert page.problems == []


def test_an_example_and_its_format(page: Page) -> None:
    page.page.locator("#examples").select_option("vgg11")
    page.page.get_by_alt_text("input=(3, 224, 224)").wait_for(timeout=60_000)
    page.write(GOOD.replace("conv 3x3 16", "conv   3x3  16"))
    page.wait("no errors")
    page.page.get_by_role("button", name="Format").click()
    page.page.locator(".cm-line", has_text="conv 3x3 16 | bn").wait_for()
    assert page.problems == []


@pytest.mark.parametrize("name", ["resnet20", "convnext_base", "googlenet", "hrnet_w18_small"])
def test_the_browser_computes_what_python_does(page: Page, name: str) -> None:
    """Python 3.14 with 32 bits draws the same bytes."""
    graph = cnnspec.loads((ROOT / "specs" / f"{name}.cnn").read_text("utf-8"))
    wanted = cnnspec.draw(graph).decode()
    page.page.locator("#examples").select_option(name)
    drawn = ""
    for _ in range(300):
        drawn = unquote(page.page.locator("#diagram img").get_attribute("src") or "").partition(",")[2]
        if drawn == wanted:
            break
        page.page.wait_for_timeout(100)
    assert drawn == wanted
    page.wait("no errors")
    page.page.get_by_role("tab", name="Summary").click()
    cells = page.page.locator("#summary tr").last.locator("td").all_inner_texts()
    page.page.get_by_role("tab", name="Diagram").click()
    assert cells[3:5] == [f"{graph.parameter_count:,}", f"{graph.macs:,}"]


def test_a_link_holds_the_text(page: Page, address: str) -> None:
    text = "# Größe 🙂 <b>\n" + GOOD
    page.write(text)
    page.page.get_by_role("button", name="Share").click()
    page.page.wait_for_url(re.compile("#spec=."))
    link = page.page.url
    page.write("changed")
    assert page.text() == "changed"
    page.page.evaluate(
        "fragment => { history.replaceState(null, '', '#'); location.hash = fragment }", link.partition("#")[2]
    )
    page.page.locator(".cm-line", has_text="Größe").wait_for()
    assert page.text() == text
    page.wait("no errors")
    assert page.problems == []


@pytest.mark.parametrize("fragment", ["", "AAAA", "%", "_" * 50, "bomb"])
def test_a_damaged_link_changes_nothing(page: Page, fragment: str) -> None:
    page.write(GOOD)
    page.wait("no errors")
    if fragment == "bomb":  # 100 MB
        import base64
        import zlib

        packer = zlib.compressobj(9, wbits=-15)
        data = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
        fragment = base64.urlsafe_b64encode(data).decode().rstrip("=")
    page.page.evaluate("fragment => { location.hash = '#spec=' + fragment }", fragment)
    page.wait("the link is damaged", 30_000)
    assert page.text() == GOOD


@pytest.mark.parametrize(
    "text",
    [
        "<img src=x onerror=document.title='hacked'>",
        GOOD.replace("stem", '"<script>document.title=1</script>"'),
        GOOD.replace("16", "'</pre><svg onload=alert(1)>'"),
        'use "../../../etc/passwd"\n',
        'use "https://example.com/a.cnn"\n',
        "input 3x32x32\n" + "{" * 2000,
        "input 3x32x32\n" + "(" * 2000,
        "input 3x32x32\nrepeat 100000000 { conv 3x3 8 }\n",
        "input 3x32x32\nlet x = 9 ** 9 ** 9 ** 9\nconv 3x3 99999999999999999999\n",
        "\x00\x1b[2J\u202e\ufeff",
        "\U0001f642 conv\n" + GOOD.replace("bn", "bm"),
    ],
    ids=str,
)
def test_a_text_of_a_stranger_is_only_checked(page: Page, text: str) -> None:
    page.write(GOOD)
    page.wait("no errors")
    page.write(text)
    page.wait(r"\d+ errors?(, \d+ warnings?)?", 60_000)
    assert page.page.title() == "cnnspec playground"
    shown = page.page.locator("#diagnostics article")
    assert all(item.startswith("error[") for item in shown.locator("pre").all_inner_texts())
    assert page.page.locator("#diagnostics *").evaluate_all(
        "all => [...new Set(all.map(e => e.localName))].sort()"
    ) == sorted({"article", "pre", *(["button"] if shown.locator("button").count() else [])})
    page.write(GOOD)
    page.wait("no errors", 60_000)
    assert page.problems == []


def test_the_worker_connects_to_no_other_server(page: Page) -> None:
    """`data:` would work without the policy of the page."""
    (worker,) = page.page.workers
    fetched = "address => fetch(address).then(() => 'loaded', () => 'refused')"
    assert worker.evaluate(fetched, "data:text/plain,x") == "refused"
    assert worker.evaluate(fetched, page.page.url.partition("#")[0]) == "loaded"
    page.problems.clear()  # the refusal is logged


@pytest.mark.parametrize("width", [400, 1280])
def test_the_page_fits(page: Page, width: int) -> None:
    page.page.set_viewport_size({"width": width, "height": 800})
    assert page.page.evaluate("document.documentElement.scrollWidth") <= width
    page.page.set_viewport_size({"width": 1280, "height": 800})


@pytest.mark.slow
def test_a_check_that_takes_too_long_is_stopped(browser: Any, folder: Path, tmp_path: Path) -> None:
    """Stop a check that never ends, and check the next text with a new worker."""
    shutil.copytree(folder, tmp_path / "site")
    with zipfile.ZipFile(tmp_path / "site" / "playground" / "packages.zip", "a") as archive:
        archive.writestr("cnnspec_slow.py", "def loop(text):\n    while text.startswith('# loop'):\n        pass\n")
        text = (
            archive.read("check.py")
            .decode()
            .replace("    done =", "    __import__('cnnspec_slow').loop(text)\n    done =", 1)
        )
    names = zipfile.ZipFile(tmp_path / "site" / "playground" / "packages.zip")
    with zipfile.ZipFile(tmp_path / "new.zip", "w") as archive:
        for name in names.namelist():
            archive.writestr(name, text if name == "check.py" else names.read(name))
    shutil.move(tmp_path / "new.zip", tmp_path / "site" / "playground" / "packages.zip")
    for address in serve(tmp_path / "site"):
        page = Page(browser, address)
        page.wait("no errors")
        page.write("# loop\n" + GOOD)
        page.page.locator("#diagnostics", has_text="stopped after 10 s").wait_for(timeout=60_000)
        page.write(GOOD)
        page.wait("no errors")
        assert page.problems == []
