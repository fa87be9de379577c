"""Tests of the displays for notebooks, of `%%cnn`, and of the example notebook."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cnnspec
from cnnspec.diagnostics import Diagnostic, Diagnostics, Source, render, render_html
from cnnspec.diagnostics.escape import printable
from cnnspec.syntax.keywords import LABEL_WORDS, RESERVED

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "examples" / "10_notebook.ipynb"
EXTENSION = ROOT / "editors" / "jupyterlab"
SPEC = "network t\ninput 3x32x32\nclasses 10\nconv 3x3 8 | bn | relu\nglobal_avgpool | flatten | linear classes\n"
CASES = sorted((ROOT / "tests" / "cases" / "errors").glob("*/*.cnn"))
HOSTILE = "<img src=x onerror=alert(1)>&amp;\"'</pre>\x1b[2J\u202e"


class Page(HTMLParser):
    """The text and the tags of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text, self.tags = "", set[str]()
        self.feed(text)
        self.close()

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        assert all(name == "style" for name, _ in attrs)
        self.tags.add(tag)


# --- displays ------------------------------------------------------------------------------------


def test_the_html_of_diagnostics_is_their_text() -> None:
    for path in CASES[::4]:
        found = cnnspec.check(path.read_text("utf-8"), "net.cnn")
        page = Page(render_html(found))
        assert page.text == "\n\n".join(map(render, found)), path
        assert page.tags <= {"pre", "span"}


@settings(max_examples=40)
@given(st.lists(st.text(max_size=12), min_size=6, max_size=6))
def test_html_of_any_texts_is_escaped(texts: list[str]) -> None:
    name, line, message, caption, note, help = texts
    source = Source(name, f"{line}\nx")
    span = source.end
    found = Diagnostic("E0301", message, span, caption, notes=(note,), help=help)
    page = Page(found._repr_html_())
    assert page.text == render(found)
    assert page.tags == {"pre", "span"}


def test_errors_and_lists_of_diagnostics_are_displayed() -> None:
    found = cnnspec.check(SPEC.replace("conv", "cnv"))
    assert isinstance(found, Diagnostics)
    assert found == [*found]
    assert "did you mean `conv`?" in Page(found._repr_html_() or "").text
    assert cnnspec.check(SPEC)._repr_html_() is None
    with pytest.raises(cnnspec.CnnspecError) as caught:
        cnnspec.loads(SPEC.replace("conv", HOSTILE))
    page = Page(caught.value._repr_html_())
    assert page.text == str(caught.value)
    assert page.tags == {"pre", "span"}
    plain = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(caught.value._render_traceback_()))
    assert plain == str(caught.value)


def test_a_module_is_displayed_and_otherwise_unchanged() -> None:
    torch = pytest.importorskip("torch")
    graph = cnnspec.loads(SPEC)
    module = cnnspec.build(graph)
    assert module._repr_html_() == graph._repr_html_()  # type: ignore[attr-defined, operator]
    copy = pickle.loads(pickle.dumps(module))
    assert copy._repr_html_() == graph._repr_html_()  # type: ignore[attr-defined]
    labeled = cnnspec.build(cnnspec.loads(SPEC.replace("conv", "_repr_html_: conv").replace(" | bn | relu", "")))
    image = torch.zeros(2, 3, 32, 32)
    assert labeled(image).shape == module(image).shape
    assert next(iter(labeled.state_dict())) == "_repr_html_.weight"


def test_runs_and_comparisons_are_tables_of_escaped_text() -> None:
    pytest.importorskip("pytorch_lightning")
    from cnnspec.training import Comparison, Result
    from cnnspec.training.comparison.table import Row, Run

    values = {"network": HOSTILE, "val_acc": 0.5, "seconds": 12.34, "data": HOSTILE, "state": "finished"}
    failed = {"state": "failed", "error": {"code": "E0509", "message": HOSTILE}, "network": "t"}
    page = Page(Result(Path(HOSTILE), "finished", 0, values)._repr_html_())
    assert "50.00%" in page.text
    assert "12.3" in page.text
    assert page.text.count(printable(HOSTILE)) == 3
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td"}
    runs = (Run(1, HOSTILE, values), Run(2, "b", failed))
    for run in runs:
        assert Page(run._repr_html_()).tags == page.tags
    comparison = Comparison(Path(), "failed", 1, (Row(HOSTILE, "t", {}, "k", 1000, 2000, runs),))
    page = Page(comparison._repr_html_())
    assert page.text.count(printable(HOSTILE)) == 3
    assert "1 of 2, 1 failed" in page.text
    assert page.tags == {"table", "thead", "tbody", "tr", "th", "td", "p"}


def test_a_table_has_the_same_text_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a notebook, rich displays what it should write to a file."""
    pytest.importorskip("pytorch_lightning")
    from cnnspec.training.comparison.table import Row, Run, format_text
    from cnnspec.training.runs.progress import default_console

    rows = [Row("t", "t", {}, "k", 1000, 2000, (Run(1, "a", {"state": "finished", "val_acc": 0.5}),))]
    text = format_text(rows, None)
    assert not default_console().is_jupyter
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert format_text(rows, None) == text
    console = default_console()
    assert (console.is_jupyter, console.is_terminal) == (False, False)


# --- %%cnn ---------------------------------------------------------------------------------------


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A shell of IPython with the extension."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    interactiveshell = pytest.importorskip("IPython.core.interactiveshell", reason="IPython is not installed")
    shell = interactiveshell.InteractiveShell.instance()
    shell.run_line_magic("load_ext", "cnnspec")
    yield shell
    shell.restore_sys_module_state()
    interactiveshell.InteractiveShell.clear_instance()


def displayed(shell: Any, text: str) -> tuple[list[dict[str, Any]], Any]:
    """Run a cell, and return what it displays and its error."""
    from IPython.utils.capture import capture_output

    with capture_output() as captured:
        done = shell.run_cell(text)
    return [output.data for output in captured.outputs], done.error_before_exec or done.error_in_exec


def test_a_cell_is_checked_and_drawn_and_its_variable_set(shell: Any) -> None:
    outputs, error = displayed(shell, f"%%cnn net --graph\n{SPEC}")
    assert error is None
    assert [output["text/html"][:4] for output in outputs] == ["<img"]
    assert shell.user_ns["net"].name == "t"
    outputs, error = displayed(shell, f"%%cnn --quiet other --graph\n{SPEC}".replace("network t\n", ""))
    assert (outputs, error) == ([], None)
    assert shell.user_ns["other"].name == "other"
    outputs, error = displayed(shell, f"%%cnn\n{SPEC}let x = 1\n")
    assert error is None
    assert "remove `let x`" in outputs[0]["text/html"]
    assert outputs[1]["text/html"].startswith("<img")


def test_a_cell_with_an_error_sets_no_variable(shell: Any) -> None:
    outputs, error = displayed(shell, f"%%cnn net --graph\n{SPEC.replace('conv', 'cnv')}")
    assert outputs == []
    assert isinstance(error, cnnspec.CnnspecError)
    assert "net" not in shell.user_ns
    assert error.diagnostics[0].name == "net"
    assert error.diagnostics[0].line == 5, "the line of the magic counts"


@pytest.mark.parametrize("line", ["3net", "net.x", "class", "a b", "--unknown", "net --graph=1", "'"])
def test_wrong_arguments_of_the_magic_are_usage_errors(shell: Any, line: str) -> None:
    before = {*shell.user_ns}
    _, error = displayed(shell, f"%%cnn {line}\n{SPEC}")
    assert type(error).__name__ == "UsageError"
    assert {*shell.user_ns} - before <= {"_i", "_ii", "_iii", "_i1"}


def test_the_magic_builds_a_module(shell: Any) -> None:
    torch = pytest.importorskip("torch")
    _, error = displayed(shell, f"%%cnn net\n{SPEC}")
    assert error is None
    assert shell.user_ns["net"](torch.zeros(2, 3, 32, 32)).shape == (2, 10)


# --- highlighting --------------------------------------------------------------------------------


def test_the_highlighted_words_are_those_of_the_language() -> None:
    text = (EXTENSION / "static" / "cnn.js").read_text("utf-8")
    words, labels = (set(" ".join(re.findall(r'"([a-z ]+)"', part)).split()) for part in text.split("const LABELS"))
    assert words == RESERVED - {*LABEL_WORDS}
    assert {*LABEL_WORDS} <= labels
    assert json.loads((EXTENSION / "package.json").read_text("utf-8"))["version"] == cnnspec.__version__


@pytest.mark.slow
def test_jupyterlab_highlights_cells_and_files(browser: Any, tmp_path: Path) -> None:
    program = shutil.which("jupyter-lab")
    if program is None:
        pytest.skip("JupyterLab is not installed")
    shutil.copytree(EXTENSION, tmp_path / "extensions" / "cnnspec")
    shutil.copy(NOTEBOOK, tmp_path)
    (tmp_path / "net.cnn").write_text(SPEC, "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", f"--ServerApp.root_dir={tmp_path}", "--IdentityProvider.token=", "--no-browser"]
    options += ["--allow-root", "--ip=127.0.0.1", f"--LabServerApp.extra_labextensions_path={tmp_path / 'extensions'}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    home = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    server = subprocess.Popen([program, *options], env={**environment, **home}, stderr=subprocess.DEVNULL)
    try:
        page = browser.new_page()
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        for _ in range(120):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            time.sleep(1)
        page.goto(f"http://127.0.0.1:{port}/lab/tree/{NOTEBOOK.name}")
        cell = page.locator(".jp-CodeCell").nth(1)
        cell.locator(".cm-line span", has_text=re.compile("^block$")).wait_for(timeout=120_000)
        first = page.locator(".jp-CodeCell").nth(0)
        first.locator(".cm-content").click()
        page.keyboard.press("Control+a")
        page.keyboard.insert_text("%%cnn\nnetwork")
        first.locator(".cm-line span", has_text=re.compile("^network$")).wait_for(timeout=30_000)
        page.keyboard.press("Control+a")
        page.keyboard.insert_text("import network")
        first.locator(".cm-line span", has_text=re.compile("^import$")).wait_for(timeout=30_000)
        page.goto(f"http://127.0.0.1:{port}/lab/tree/net.cnn")
        page.locator(".jp-FileEditor .cm-line span", has_text=re.compile("^classes$")).first.wait_for(timeout=120_000)
        assert problems == []
        page.close()
    finally:
        server.terminate()
        server.wait(60)


# --- the example ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Execute the example, and return the outputs by cell."""
    pytest.importorskip("pytorch_lightning")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the example is stored without outputs"
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert {path.name for path in folder.iterdir()} == {"runs", "comparisons"}
    return {cell.id: cell.get("outputs", []) for cell in notebook.cells}


def test_the_example_shows_what_it_says(executed: dict[str, list[Any]]) -> None:
    html = {name: [o.data.get("text/html", "") for o in outputs if "data" in o] for name, outputs in executed.items()}
    assert html["net"][0].startswith('<img alt="Graph(&#x27;small&#x27;')
    assert executed["module"][0].data["text/plain"] == "torch.Size([2, 10])"
    assert [output.output_type for output in executed["broken"]] == ["error"]
    assert "project the shortcut with `conv 1x1 16`" in executed["broken"][0].evalue
    assert "E0301" in html["diagnostics"][0]
    assert html["fix"][0].startswith("<img")
    assert "10,978" in html["summarize"][0]
    lines = "".join(output.text for output in executed["train"] if output.output_type == "stream")
    assert not re.search(r"\x1b|\r|Warning", lines)
    assert "epoch 2/2" in lines
    assert "finished" in html["train"][0]
    assert re.findall(r"<tr><td>(\w+)</td><td>1</td>", html["compare"][0]) == ["small", "wide"]
    assert [o.output_type for o in executed["compare"]] == ["execute_result"]


THEMES = {  # the body of the page and the setting of the reader, and whether the diagram is dark
    ("", "light"): False,
    ("", "dark"): True,
    ('data-jp-theme-light="true"', "dark"): False,
    ('data-jp-theme-light="false"', "light"): True,
    ('class="vscode-light"', "dark"): False,
    ('class="vscode-dark"', "light"): True,
}


@pytest.mark.parametrize(("body", "scheme"), THEMES)
def test_the_diagram_follows_the_theme_of_the_notebook(browser: Any, body: str, scheme: str) -> None:
    image = pytest.importorskip("PIL.Image")
    page = browser.new_page(color_scheme=scheme)
    page.set_content(f"<body {body}>{cnnspec.loads(SPEC)._repr_html_()}")  # type: ignore[attr-defined]
    page.wait_for_function("document.images[0].complete")
    data = page.locator("img").screenshot()
    corner = image.open(io.BytesIO(data)).convert("L").getpixel((4, 4))
    assert (corner < 60) == THEMES[body, scheme]
    page.close()


@pytest.mark.parametrize("width", [400, 1280])
def test_displays_fit_a_page(browser: Any, executed: dict[str, list[Any]], width: int) -> None:
    """Without the style of a notebook."""
    found = [o.data.get("text/html", "") for outputs in executed.values() for o in outputs if "data" in o]
    parts = [part for part in found if not part.startswith("<table")]  # which scroll in a notebook
    assert len(parts) > 2
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.set_content("<style>img { max-width: 100% }</style>" + "".join(f"<div>{part}</div>" for part in parts))
    page.wait_for_function("[...document.images].every(image => image.complete)")
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.close()
