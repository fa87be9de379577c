"""Test the report of a comparison in a browser: light and dark, narrow and wide, with hostile texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cnnspec import loads
from cnnspec.training.comparison.candidates import Candidate
from cnnspec.training.comparison.report import MAX_TABLE_CLASSES, render
from cnnspec.training.comparison.table import Row, Run
from cnnspec.training.data.datasets import Pixels, load_data
from cnnspec.training.loop.metrics import calibration, class_metrics, confusion
from cnnspec.training.runs.predictions import write_predictions

EVIL = "</title></pre><script>document.title='owned'</script><img src=http://192.0.2.1/x onerror=alert(1)> $\\frac{"
SPEC = f"""# {EVIL}
input 1x28x28
classes 10
stem conv 7x7 4 stride=7 pad=0 | bn | ACT
head global_avgpool | flatten | linear classes
train {{
    data fashion_mini
    LINES
}}
"""

OPEN_ALL = "document.querySelectorAll('details').forEach(one => one.open = true)"
FAINT = """() => {
  const parts = text => {
    const found = text.match(/[\\d.]+/g).map(Number);
    const scale = text.startsWith('color(') ? 255 : 1;
    return [found[0] * scale, found[1] * scale, found[2] * scale, found.length > 3 ? found[3] : 1];
  };
  const over = (front, back) => front.slice(0, 3).map((v, i) => v * front[3] + back[i] * (1 - front[3]));
  const light = color => {
    const [r, g, b] = color.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = one => {
    const own = [];
    for (let at = one; at; at = at.parentElement) own.unshift(parts(getComputedStyle(at).backgroundColor));
    return own.reduce((back, front) => over(front, back), [255, 255, 255]);
  };
  const faint = [];
  let seen = 0;
  for (const one of document.querySelectorAll('body *')) {
    const own = [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || !one.getClientRects().length || one.closest('style, defs')) continue;
    seen += 1;
    const style = getComputedStyle(one), back = behind(one);
    const color = over(parts(one instanceof SVGElement ? style.fill : style.color), back);
    const [a, b] = [light(color), light(back)].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) faint.push(one.tagName + ': ' + one.textContent.trim().slice(0, 40));
  }
  return {faint, seen};
}"""


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the report of three networks with made-up predictions for real images."""
    folder = tmp_path_factory.mktemp("comparison")
    candidates, rows = [], []
    for place, (act, lines) in enumerate([("relu", ""), ("gelu", "batch 64"), ("silu", "epochs 3")]):
        text = SPEC.replace("LINES", lines).replace("ACT", act)
        graph = loads(text, name=f"{EVIL} {act}.cnn" if place == 0 else f"net{place}")
        label = graph.name if place else EVIL
        candidate = Candidate(label, graph, graph.recipe, {"note": EVIL} if place == 0 else {})
        data = load_data(graph, graph.recipe.data, folder, offline=True)
        runs = [make_run(folder, place, seed, data.test) for seed in (42, 43)]
        if place == 2:
            runs.append(Run(44, "runs/x", {"state": "failed", "error": {"code": "E0509", "message": EVIL}}))
        candidates.append(candidate)
        rows.append(
            Row(
                label,
                graph.name,
                candidate.settings,
                candidate.key,
                graph.parameter_count,
                graph.macs,
                tuple(runs),
                0.3,
            )
        )
    path = folder / "report.html"
    path.write_text(render(candidates, rows, folder, 0.3, folder), "utf-8")
    return path


def write(folder: Path, split: str, labels: torch.Tensor, predicted: torch.Tensor) -> None:
    """Write predictions, which may have a class more than the network."""
    images = Pixels(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels)
    write_predictions(folder, {split: (images, predicted, torch.ones(len(labels)))}, [str(n) for n in range(99)])


def make_run(folder: Path, place: int, seed: int, images: Any) -> Run:
    """Create a run with about half of the predictions correct."""
    name = f"runs/{place}/{seed}"
    (folder / name).mkdir(parents=True)
    generator = torch.Generator().manual_seed(seed + 100 * place)
    guess = torch.randint(10, images.labels.shape, generator=generator)
    predicted = torch.where(torch.rand(guess.shape, generator=generator) < 0.5, images.labels, guess)
    write(folder / name, "test", images.labels, predicted)
    accuracy = float((predicted == images.labels).double().mean())
    epochs = tuple(
        {"epoch": n, "train_loss": 2.0 / n, "train_acc": 0.2, "val_acc": accuracy * n / 3} for n in (1, 2, 3)
    )
    error, bins = calibration(predicted == images.labels, torch.full((len(predicted),), 0.5))
    classes = class_metrics(confusion(images.labels, predicted, 10))
    metrics = {"top5_acc": 0.75, "calibration_error": error, "reliability": bins, "classes": classes}
    result = {
        "state": "finished",
        "metrics": {"test": metrics},
        "test_acc": accuracy,
        "val_acc": accuracy,
        "epoch_seconds": [1.0, 2.0, 3.0],
        "seconds": 3.0,
    }
    return Run(seed, name, result, epochs)


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_in_a_browser(browser: Any, page_file: Path, scheme: str, width: int) -> None:
    context = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900})
    page = context.new_page()
    output: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: output.append(message.text))
    page.on("pageerror", lambda error: output.append(str(error)))
    page.on("dialog", lambda dialog: (output.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(page_file.as_uri())
    page.evaluate(OPEN_ALL)
    assert output == []
    assert [url for url in asked if not url.startswith("data:")] == [page_file.as_uri()]
    assert page.title() != "owned"
    assert page.evaluate("document.scripts.length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sizes = page.evaluate("[...document.images].map(one => [one.naturalWidth, one.clientWidth])")
    assert len(sizes) > 3 * 10
    assert all(natural > 0 and shown > 0 for natural, shown in sizes)
    charts = page.evaluate(
        "[...document.querySelectorAll('.charts svg')].map(one => one.getBoundingClientRect().toJSON())"
    )
    assert len(charts) == 4
    assert all(200 < chart["width"] <= width and chart["height"] > 150 for chart in charts)
    found = page.evaluate(FAINT)
    assert found["seen"] > 300
    assert found["faint"] == []
    named = page.evaluate("[...document.querySelectorAll('[id]')].map(one => one.id)")
    assert len(named) == len(set(named))
    assert page.evaluate("[...document.querySelectorAll('img')].every(one => one.alt)")
    assert page.evaluate("[...document.querySelectorAll('th')].every(one => one.scope)")
    shade = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert shade == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[scheme]
    assert EVIL in page.inner_text("main")
    context.close()


def test_the_report_is_one_deterministic_file(page_file: Path) -> None:
    text = page_file.read_text("utf-8")
    assert "<script" not in text
    assert "<img src=http" not in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    for attribute in ('src="', 'href="'):
        starts = {part[:5] for part in text.split(attribute)[1:]}
        assert all(start.startswith(("data:", "#")) for start in starts), starts


def test_many_classes_are_shown_as_an_image(tmp_path: Path) -> None:
    classes = MAX_TABLE_CLASSES + 5
    graph = loads(
        SPEC.replace("LINES", "").replace("ACT", "relu").replace("classes 10", f"classes {classes}"), name="many"
    )
    labels = torch.arange(classes).repeat(4)
    (tmp_path / "r").mkdir()
    write(tmp_path / "r", "val", labels, labels.roll(1))
    run = Run(1, "r", {"state": "finished", "val_acc": 0.0})
    candidate = Candidate("many", graph, graph.recipe)
    row = Row("many", "many", {}, "k", graph.parameter_count, graph.macs, (run,))
    text = render([candidate], [row], tmp_path, None, tmp_path)
    assert f"over {classes} classes" in text
    assert "images are not available" in text


def test_metrics_by_class_are_in_the_page(page_file: Path) -> None:
    text = page_file.read_text("utf-8")
    assert text.count("Top-5 accuracy 75.00%") == 3
    section = text.split("<h2>Metrics by class</h2>")[1].split("<h2>")[0]
    assert section.count('<th scope="row">') == 30
    assert '<th scope="row">ankle boot</th>' in section


def test_predictions_are_not_trusted(tmp_path: Path) -> None:
    graph = loads(SPEC.replace("LINES", "").replace("ACT", "relu"), name="net")
    runs, labels = [], torch.arange(10)
    for seed, predicted in enumerate(
        [(labels, labels), (labels, labels + 1), (labels[:5], labels[:5]), (labels, labels - 1)]
    ):
        (tmp_path / str(seed)).mkdir()
        write(tmp_path / str(seed), "test", *predicted)
        runs.append(Run(seed, str(seed), {"state": "finished", "test_acc": 1.0}))
    for seed, text in enumerate(["", "split,index,label,predicted\ntest,0,x,y\n", "split\ntest\n"], 10):
        (tmp_path / str(seed)).mkdir()
        (tmp_path / str(seed) / "predictions.csv").write_text(text)
        runs.append(Run(seed, str(seed), {"state": "finished", "test_acc": 1.0}))
    row = Row("net", "net", {}, "k", graph.parameter_count, graph.macs, tuple(runs))
    text = render([Candidate("net", graph, graph.recipe)], [row], tmp_path, None, tmp_path)
    assert text.count(">100.0</td>") == 10


def test_the_page_contains_the_numbers(page_file: Path) -> None:
    text = page_file.read_text("utf-8")
    assert json.dumps("E0509")[1:-1] in text
    assert text.count("±") > 6
    assert "net1: 1 operator and 1 recipe entry differ" in text
