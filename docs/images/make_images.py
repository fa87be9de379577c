"""Make the pictures of the documentation from real output: `python docs/images/make_images.py [diagnostic] [report]`.

Needs the extras `train` and `dev`, and Chromium for the report.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

import cnnspec
from cnnspec.diagnostics import render
from cnnspec.training import TrainOptions, compare

HERE = Path(__file__).resolve().parent
FAULTY = """\
network tiny
input 3x32x32
classes 10

stem  conv 3x3 16 | bn | relu
stage add {
    main: conv 3x3 32 stride=2 | bn
    in
}
head  global_avgpool | flaten | linear classes
"""
RECIPE = """
train {
    data      fashion_mini
    optimizer sgd lr=0.1 momentum=0.9
    epochs    4
    batch     64
}
"""
NETWORKS = {
    "plain": "stage repeat 4 { conv 3x3 16 | bn | relu }",
    "residual": "stage resnet_block x2 16",
    "dense": "stage dense_layer x4 8",
}


def make_diagnostic(file: Path) -> None:
    """Draw the diagnostics of a faulty spec as on a terminal."""
    # Without the web font: the picture loads nothing.
    template = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.S)
    found = cnnspec.check(FAULTY, "tiny.cnn")
    with open("/dev/null", "w") as nowhere:
        console = Console(record=True, width=64, file=nowhere, force_terminal=True)
        console.print(Text("$ cnnspec check tiny.cnn", style="bold"))
        console.print(Text.from_ansi("\n\n".join(render(diagnostic, color=True) for diagnostic in found)))
        svg = console.export_svg(title="cnnspec check", theme=MONOKAI, code_format=template, unique_id="check")
    file.write_text(svg.replace("Fira Code", "DejaVu Sans Mono"), "utf-8")


def make_report(file: Path) -> None:
    """Compare three small networks and take a picture of the start of the report."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, stage in NETWORKS.items():
            text = f"network {name}\ninput 1x28x28\nclasses 10\n\nstem conv 3x3 16 stride=2 | bn | relu\n{stage}\n"
            (folder / f"{name}.cnn").write_text(text + "head global_avgpool | flatten | linear classes\n" + RECIPE)
        specs = [folder / f"{name}.cnn" for name in NETWORKS]
        compare(specs, seeds=2, options=TrainOptions(plots=False), out=folder / "compared")
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 900, "height": 960}, color_scheme="light")
            page.goto((folder / "compared" / "report.html").as_uri())
            page.screenshot(path=file)
            browser.close()


if __name__ == "__main__":
    wanted = sys.argv[1:] or ["diagnostic", "report"]
    if "diagnostic" in wanted:
        make_diagnostic(HERE / "diagnostic.svg")
    if "report" in wanted:
        make_report(HERE / "report.png")
