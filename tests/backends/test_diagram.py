"""Test the diagram backend: every operator is drawn once, nothing overlaps, and text from a spec stays text."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations, pairwise
from math import comb
from pathlib import Path
from typing import Any

import pytest
from harness.effort import bounded

from cnnspec import CnnspecError, Graph, load, loads
from cnnspec.analysis.diff import compare, node_statuses
from cnnspec.analysis.features import tap
from cnnspec.backends.diagram import DIRECTIONS, FORMATS, draw, figures_of
from cnnspec.backends.diagram.layout import Drawing, Edge, Point, lay_out
from cnnspec.backends.diagram.outline import Box, Outliner, kind_of
from cnnspec.backends.diagram.svg import KINDS, style
from cnnspec.ops import JOINS, OPS
from cnnspec.resources import resource
from cnnspec.syntax.formatter import format_file
from cnnspec.testing.generator import SpecGenerator

SHIPPED = sorted(path.stem for path in resource("specs").glob("*.cnn"))
QUICK = [
    "resnet20",
    "resnet50_fpn",
    "googlenet",
    "inception_v3",
    "densenet121",
    "hrnet_w18_small",
    "mixnet_s",
    "dpn68",
    "vovnet39a",
]
PLANAR = [
    name
    for name in SHIPPED
    if re.match(r"(resnet|wide_resnet|resnext|preact|plain|googlenet|incep|densenet)(?!.*_fpn)", name)
]
SVG = "{http://www.w3.org/2000/svg}"
TEXTS = (".svg", ".html", ".mmd", ".dot")

HEAD = "network test\ninput 3x32x32\nclasses 10\n"
TAIL = "head global_avgpool | flatten | linear classes\n"
UNET = """
network unet
input 3x64x64
block double(c) { conv 3x3 c | bn | relu | conv 3x3 c | bn | relu }
down1: double 16
down2: maxpool 2x2 | double 32
down3: maxpool 2x2 | double 64
maxpool 2x2 | double 128
up3: concat { conv_transpose 2x2 64 stride=2; @down3 } | double 64
up2: concat { conv_transpose 2x2 32 stride=2; @down2 } | double 32
up1: concat { conv_transpose 2x2 16 stride=2; @down1 } | double 16
head conv 1x1 2 bias
"""
DENSE = "".join(
    f"x{k}: concat {{ {'; '.join(f'@x{j}' for j in range(k))} }} | bn | relu | conv 3x3 8\n" for k in range(2, 7)
)
DENSE = f"{HEAD}x0: conv 3x3 8\nx1: bn | relu | conv 3x3 8\n{DENSE}{TAIL}"
"""Every layer reads the outputs of all layers before it."""


def exchange(branches: int, stages: int = 1, rng: random.Random | None = None) -> str:
    """Return a network in the style of HRNet: each stage adds a branch of half the resolution and exchanges all.

    With `rng`, branches and inputs are in random order, and joins also read results of earlier stages.
    """
    text = "network exchange\ninput 3x64x64\nclasses 10\nconv 3x3 8\nlabel0: relu\n"
    known, earlier = ["label0"], list[tuple[int, str]]()
    shuffled = (lambda items: rng.sample(items, len(items))) if rng else list
    for stage in range(branches - 1):
        text += f"@{known[-1]}\nt{stage}: conv 3x3 8 stride=2\n"
        known.append(f"t{stage}")
        for turn in range(stages):
            name = f"s{stage}{turn}"
            for k in shuffled(range(len(known))):
                text += f"@{known[k]}\n{name}b{k}: conv 3x3 8 | bn | relu\n"
            for k in shuffled(range(len(known))):
                parts = [f"    {{ @{other} }}\n" for lane, other in earlier if lane == k and rng and rng.random() < 0.3]
                for j in range(len(known)):
                    down = " | ".join(["conv 3x3 8 stride=2"] * (k - j))
                    change = f"; {down}" if k > j else f"; conv 1x1 8 | upsample {2 ** (j - k)}" if j > k else ""
                    parts.append(f"    {{ @{name}b{j}{change} }}\n")
                text += f"add {{\n{''.join(shuffled(parts))}}}\n{name}r{k}: relu\n"
            known = [f"{name}r{k}" for k in range(len(known))]
            earlier += enumerate(known)
    sizes = [f"{{ @{name}; upsample {2**k} }}" for k, name in enumerate(known)]
    return f"{text}concat {{ {'; '.join(sizes)} }}\n{TAIL}".replace("; upsample 1 ", " ")


def drawings(graph: Graph, depth: int | None = None, direction: str = "TB") -> list[Drawing]:
    main, blocks = figures_of(Outliner(graph, depth))
    assert main is not None
    return [lay_out(figure, direction=direction) for figure in (main, *blocks)]


def leaves(boxes: list[Box]) -> list[Box]:
    return [leaf for box in boxes for leaf in (leaves(box.inner) if box.inner is not None else [box])]


def crossings(drawing: Drawing) -> list[tuple[Edge, Edge]]:
    """Return the pairs of edges that cross, other than at a common end."""
    found = []
    for one, two in combinations(drawing.edges, 2):
        segments = [list(zip(edge.points, edge.points[1:], strict=False)) for edge in (one, two)]
        if any(_cross(a, b) for a in segments[0] for b in segments[1]):
            found.append((one, two))
    return found


def _cross(one: tuple[Point, Point], two: tuple[Point, Point]) -> bool:
    def side(a: Point, b: Point, c: Point) -> float:
        return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])

    (a, b), (c, d) = one, two
    return side(a, b, c) * side(a, b, d) < -1e-6 and side(c, d, a) * side(c, d, b) < -1e-6


def shared_lines(drawing: Drawing) -> list[str]:
    """Return the pairs of edges without a common end that run over each other."""
    found = []
    for one, two in combinations(drawing.edges, 2):
        if {one.source, one.target} & {two.source, two.target}:
            continue
        for a, b in ((a, b) for a in pairwise(one.points) for b in pairwise(two.points)):
            for side in (0, 1):
                fixed = {point[side] for point in (*a, *b)}
                spans = [sorted(point[1 - side] for point in line) for line in (a, b)]
                if len(fixed) == 1 and min(spans[0][1], spans[1][1]) - max(spans[0][0], spans[1][0]) > 0.1:
                    found.append(f"{one.source} -> {one.target} and {two.source} -> {two.target}")
    return found


def overlaps(drawing: Drawing) -> list[str]:
    """Return the boxes that overlap, and edges that run through a box."""
    found = []
    solid = [p for p in drawing.placed if p.box.inner is None]
    for p, q in combinations(solid, 2):
        if (
            p.x - p.left < q.x + q.right - 0.01
            and q.x - q.left < p.x + p.right - 0.01
            and p.y < q.y + q.height - 0.01
            and q.y < p.y + p.height - 0.01
        ):
            found.append(f"{p.box.path} and {q.box.path}")
    for edge in drawing.edges:
        for (x1, y1), (x2, y2) in zip(edge.points, edge.points[1:], strict=False):
            for p in solid:
                inside = (
                    min(x1, x2) < p.x + p.right - 0.6
                    and max(x1, x2) > p.x - p.left + 0.6
                    and min(y1, y2) < p.y + p.height - 0.6 - 5 * (p.box.repeat > 1)
                    and max(y1, y2) > p.y + 0.6
                )
                if inside:
                    found.append(f"{edge.source} -> {edge.target} runs through {p.box.path}")
    return found


def check_drawings(graph: Graph, depth: int | None = None) -> None:
    """Check what holds for every diagram."""
    main, _ = figures_of(Outliner(graph, depth))
    assert main is not None
    drawn = leaves(main.boxes)
    nodes = [node for box in drawn for node in box.nodes]
    names = {box.path for box in drawn}
    missing = set(range(len(graph.nodes))) - set(nodes)
    assert len(nodes) == len(set(nodes))
    if all(box.repeat == 1 for box in _all(main.boxes)):
        assert not missing
    assert sum(box.parameters for box in main.boxes) == graph.parameter_count, names
    assert sum(box.macs for box in main.boxes) == sum(node.macs for node in graph.nodes)
    for drawing in (each for direction in DIRECTIONS for each in drawings(graph, depth, direction)):
        assert overlaps(drawing) == []
        assert all(
            0 <= x <= drawing.width + 1 and 0 <= y <= drawing.height + 1 for e in drawing.edges for x, y in e.points
        )


def _all(boxes: list[Box]) -> list[Box]:
    return [found for box in boxes for found in (box, *_all(box.inner or []))]


@pytest.mark.parametrize("name", QUICK)
def test_nothing_overlaps_and_every_operator_is_drawn(name: str) -> None:
    graph = load(name)
    for depth in (None, 1, 2):
        check_drawings(graph, depth)
    root = ET.fromstring(draw(graph, ".svg").decode())
    assert root.get("role") == "img"
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    assert {root.get("aria-labelledby")} == {"title desc"}
    links = [element.get("href", "")[1:] for element in root.iter(f"{SVG}a")]
    assert set(links) <= set(ids)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*SHIPPED} - {*QUICK}))
def test_nothing_overlaps_in_any_shipped_network(name: str) -> None:
    test_nothing_overlaps_and_every_operator_is_drawn(name)


@pytest.mark.parametrize("name", PLANAR)
def test_residual_dense_and_inception_networks_have_no_crossings(name: str) -> None:
    graph = load(name)
    for drawing in (each for direction in DIRECTIONS for each in drawings(graph, direction=direction)):
        assert not any(edge.curved for edge in drawing.edges)
        assert crossings(drawing) == []


@pytest.mark.parametrize("text", [UNET, DENSE], ids=["unet", "dense"])
def test_nested_shortcuts_have_no_crossings(text: str) -> None:
    graph = loads(text)
    check_drawings(graph)
    assert [crossings(drawing) for direction in DIRECTIONS for drawing in drawings(graph, direction=direction)] == [
        [] for _ in DIRECTIONS for _ in drawings(graph)
    ]


def test_crossings_are_counted() -> None:
    text = "s: conv 3x3 8\na: conv 3x3 8\n@s\nb: conv 3x3 8\np: add { @a; @b }\nq: mul { @a; @b }\nadd { @p; @q }\n"
    drawing = drawings(loads(HEAD + text + TAIL))[0]
    assert any(edge.curved for edge in drawing.edges)
    assert [(one.source, two.source) for one, two in crossings(drawing)] == [("b", "a")]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(
    ("text", "units"),
    [
        ("hrnet_w18_small", [2, 3, 4]),
        *((exchange(branches), [*range(2, branches + 1)]) for branches in (2, 3, 5)),
        (exchange(4, 2), [2, 2, 3, 3, 4, 4]),
    ],
    ids=["hrnet", "2", "3", "5", "4-twice"],
)
def test_branches_that_exchange_their_outputs_have_lanes(text: str, units: list[int], direction: str) -> None:
    """Each resolution has an axis; an exchange of n branches in two layers has at least (n over 2)^2 crossings."""
    graph = load(text) if "\n" not in text else loads(text)
    check_drawings(graph)
    drawing = drawings(graph, direction=direction)[0]
    assert len(crossings(drawing)) == sum(comb(n, 2) ** 2 for n in units)
    assert shared_lines(drawing) == []
    axes: dict[Any, set[float]] = {}
    for placed in drawing.placed:
        if placed.box.kind == "join" and len(placed.box.inputs) > 1 and placed.box.rows[0][0].kind == "add":
            axis = placed.x if direction == "TB" else placed.y + placed.height / 2
            axes.setdefault(placed.box.shape[1:], set()).add(round(axis, 3))
    main = [found for size, found in axes.items() if len(found) > 1]
    assert len(axes) >= max(units)
    assert main == [] or text == "hrnet_w18_small"  # whose last join is the end of all lanes


@pytest.mark.parametrize("seed", range(8))
def test_random_exchanges_have_separate_lines(seed: int) -> None:
    rng = random.Random(seed)
    graph = loads(exchange(rng.randint(2, 4), rng.randint(1, 2), rng))
    check_drawings(graph)
    for direction in DIRECTIONS:
        assert shared_lines(drawings(graph, direction=direction)[0]) == []


def test_branches_that_read_each_other_have_no_lanes() -> None:
    """They cannot be side by side."""
    text = "s: conv 3x3 8\na: conv 3x3 8\nb: conv 3x3 8 stride=2\n"
    text += "p: add { @a; { @b; upsample 2 } }\nq: add { @b; { @a; conv 3x3 8 stride=2 } }\n"
    graph = loads(HEAD + text + "add { @q; { @p; conv 3x3 8 stride=2 } }\n" + TAIL)
    check_drawings(graph)
    assert any(edge.curved for edge in drawings(graph)[0].edges)


@pytest.mark.parametrize("name", ["resnet20", "googlenet"])
def test_a_diagram_from_left_to_right_is_as_wide_as_the_other_is_high(name: str) -> None:
    """Edges lead to the right, and text stays horizontal."""
    graph = load(name)
    for down, right in zip(drawings(graph), drawings(graph, direction="LR"), strict=True):
        assert [(e.source, e.target) for e in down.edges] == [(e.source, e.target) for e in right.edges]
        places = {p.box.path or p.box.kind: p for p in right.placed}
        for edge in right.edges:
            if edge.source in places and edge.target in places:
                assert places[edge.source].x <= places[edge.target].x
        for one, two in zip(down.placed, right.placed, strict=True):
            if one.box.inner is None:
                assert one.left + one.right == pytest.approx(two.left + two.right)
                assert one.height == pytest.approx(two.height)
    text = draw(graph, ".svg", direction="LR").decode()
    assert "transform" not in text
    assert "rotate" not in text
    root = ET.fromstring(text)
    width, height = (float(root.get(side, "")) for side in ("width", "height"))
    assert width > 1.5 * height
    assert all(
        0 < float(e.get("x", "")) < width and 0 < float(e.get("y", "")) < height for e in root.iter(f"{SVG}text")
    )
    assert b"flowchart LR" in draw(graph, ".mmd", direction="LR")
    assert b"rankdir=LR;" in draw(graph, ".dot", direction="LR")
    assert draw(graph, ".html", direction="LR") != draw(graph, ".html")


def test_random_networks() -> None:
    for seed in range(60):
        graph = loads(format_file(SpecGenerator(random.Random(seed).randint).file()))
        check_drawings(graph)
        for paper in (False, True):
            ET.fromstring(draw(graph, ".svg", paper=paper, direction=DIRECTIONS[seed % 2]).decode())
        for form in (".mmd", ".dot"):
            draw(graph, form)


@pytest.mark.parametrize("form", TEXTS)
def test_bytes_are_deterministic(form: str) -> None:
    assert draw(load("googlenet"), form) == draw(load("googlenet"), form)


def test_repeats_are_collapsed_and_blocks_drawn_once() -> None:
    main, blocks = figures_of(Outliner(load("resnet20")))
    assert main is not None
    found = [(box.repeat, box.rows[0][0].text) for box in leaves(main.boxes) if box.kind == "block"]
    assert found == [(3, "resnet_block A"), *[(1, "resnet_block B"), (2, "resnet_block A")] * 2]
    assert [(figure.title, len(figure.uses)) for figure in blocks] == [("resnet_block A", 7), ("resnet_block B", 2)]
    text = HEAD + "repeat 5 { conv 3x3 8 | bn | relu | maxpool 3x3 stride=1 pad=1 }\n" + TAIL
    main, _ = figures_of(Outliner(loads(text)))
    assert main is not None
    assert [box.repeat for box in main.boxes if box.inner and box.repeat > 1] == [
        5
    ]  # although the first reads three channels


def test_labels_hold_for_all_calls_of_a_block() -> None:
    _, blocks = figures_of(Outliner(load("googlenet")))
    texts = [cell.text for box in blocks[0].boxes for row in box.rows for cell in row]
    assert "conv 1×1, 64–384" in texts
    assert not any(box.edge for box in blocks[0].boxes)  # the sizes differ


def test_speed() -> None:
    graph = load("resnet152")
    draw(graph, ".svg")
    with bounded(0.5):
        draw(graph, ".svg")


HOSTILE = [
    "<script>alert(1)</script>",
    '"]; x --> y; %%{init: {}}%%',
    "\\",
    "&amp;",
    "]]>",
    "a\x00\x1b\u202e\nb",
    "`#quot;",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_escaped(name: str) -> None:
    """A graph may come from anywhere, so that its names may contain anything."""
    graph = load("resnet20")
    paths = {"stem": name, "stage1": f"{name}2", "head": f"{name}3"}

    def renamed(path: str) -> str:
        first, dot, rest = path.partition(".")
        return paths.get(first, first) + dot + rest

    scopes = {renamed(path): block.replace("resnet_block", name) for path, block in graph.scopes.items()}
    for node in graph.nodes:
        node.path = renamed(node.path)
    hostile = Graph(**{**vars(graph), "name": name, "scopes": scopes, "ends": {}, "origins": {}, "text": name})
    plain = draw(load("resnet20"), ".svg").decode()
    text = draw(hostile, ".svg").decode()
    ET.fromstring(text)
    assert text.count("<script") == 0
    assert len(re.findall(r"<[a-z]+", text)) == len(re.findall(r"<[a-z]+", plain))
    page = draw(replace(hostile, text=graph.text), ".html").decode()
    assert "<script>a" not in draw(hostile, ".html").decode()
    ordinary = draw(load("resnet20"), ".html").decode()
    assert len(re.findall(r"<[a-z]+", page)) == len(re.findall(r"<[a-z]+", ordinary))
    mermaid = draw(hostile, ".mmd").decode()
    assert mermaid.count("\n") == draw(load("resnet20"), ".mmd").decode().count("\n")
    assert all(mark not in mermaid for mark in ("%%", "`", "<script", "\x1b", '""]'))
    dot = draw(hostile, ".dot").decode()
    assert all(re.fullmatch(r'[^"]*("([^"\\]|\\.)*"[^"]*)*', line) for line in dot.splitlines())


def test_errors() -> None:
    graph = load("resnet20")
    with pytest.raises(CnnspecError) as unknown:
        draw(graph, ".svg", block="resnet_blok")
    assert unknown.value.diagnostics[0].code == "E0523"
    assert "`resnet_block`" in (unknown.value.diagnostics[0].help or "")
    text = HEAD + "repeat 2100 as k { conv 3x3 (4 + k % 13) }\n" + TAIL
    with pytest.raises(CnnspecError, match="more than the limit of 2,000"):
        draw(loads(text), ".svg")


@pytest.mark.parametrize("paper", [False, True])
@pytest.mark.parametrize("form", [".png", ".pdf"])
def test_pictures(form: str, paper: bool) -> None:
    pytest.importorskip("typst", reason="PNG and PDF need typst, which is in the extra `draw`")
    for direction in DIRECTIONS:
        data = draw(load("resnet20"), form, paper=paper, direction=direction)
        assert data.startswith(b"\x89PNG" if form == ".png" else b"%PDF")
        assert data == draw(load("resnet20"), form, paper=paper, direction=direction)


def test_every_format_is_tested() -> None:
    assert {*TEXTS, ".png", ".pdf"} == {*FORMATS}


def test_a_stack_of_deep_shortcuts_is_drawn(tmp_path: Path) -> None:
    """Nesting is limited only by the number of boxes."""
    depth = 300
    down = "".join(f"d{k}: conv 3x3 {4 + k % 2}\n" for k in range(depth))
    up = "".join(f"u{k}: concat {{ in; @d{k} }} | conv 1x1 {4 + k % 2}\n" for k in reversed(range(depth)))
    ET.fromstring(draw(loads(HEAD + down + up + TAIL), ".svg").decode())


@pytest.mark.parametrize(
    ("file", "names"), [("resnet20", ["resnet20"]), ("difference", ["resnet20", "preact_resnet20"])]
)
def test_the_pictures_of_the_documentation_are_up_to_date(file: str, names: list[str]) -> None:
    """To update one: `cnnspec draw NAMES -o docs/images/FILE.svg`."""
    path = Path(__file__).parents[2] / f"docs/images/{file}.svg"
    graphs = [load(name) for name in names]
    assert path.read_bytes() == draw(graphs[0], ".svg", other=graphs[1] if len(graphs) > 1 else None)


def test_the_difference_of_two_networks() -> None:
    """Boxes are marked as `cnnspec diff` lists the operators."""
    one = loads(
        HEAD + "a: conv 3x3 8\nb: conv 3x3 8\nblock pair(c) { x: conv 3x3 c | bn\n y: conv 3x3 c }\nc: pair 8\n" + TAIL
    )
    two = loads(
        HEAD + "a: conv 3x3 8\nd: conv 5x5 8\nblock pair(c) { x: conv 3x3 c | bn\n y: conv 5x5 c }\nc: pair 8\n" + TAIL
    )
    found = {}
    for number, statuses in enumerate(node_statuses(one, two)):
        graph = (one, two)[number]
        found |= {(number, graph.nodes[i].path): status for i, status in enumerate(statuses) if status}
        main, _ = figures_of(Outliner(graph, None, statuses))
        assert main is not None
        assert {box.path: box.status for box in main.boxes if box.status} == {
            "bd"[number]: ("removed", "added")[number],
            "c": "changed",
        }
    assert found == {(0, "b"): "removed", (0, "c.y"): "changed", (1, "d"): "added", (1, "c.y"): "changed"}
    changes = {(change.path, change.kind) for change in compare(one, two).changes}
    assert {(path, status) for (_, path), status in found.items()} == changes
    text = draw(one, ".svg", other=two).decode()
    root = ET.fromstring(text)
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    for status, count in {"removed": 1, "added": 1, "changed": 4}.items():
        assert len(re.findall(rf'"rim is-{status}"', text)) == count
    assert "is-" not in "".join(re.findall("<rect.*", draw(one, ".svg", other=one).decode()))
    for form in (".mmd", ".dot"):
        assert draw(one, form, other=two) == draw(one, form, other=two)
    page = draw(one, ".html", other=two).decode()
    lines = dict(re.findall(r'<span id="L(.*?)" data-n="\d+">(.*?)</span>', page))
    found = {(path, lines[line]) for path, line in re.findall(r'data-path="(.*?)" data-line="(.*?)"', page)}
    assert {("b", "b: conv 3x3 8"), ("d", "d: conv 5x5 8"), ("c", "c: pair 8")} <= found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_interactive(browser: Any, tmp_path: Path, scheme: str) -> None:
    """Search, expand, collapse, hover, and follow a box to its line and its block; nothing is loaded or logged."""
    file = tmp_path / "net.html"
    file.write_bytes(draw(load("resnet20"), ".html"))
    page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: messages.append(request.url) if request.url != file.as_uri() else None)
    page.goto(file.as_uri())
    nodes = page.locator("section:visible .node")
    whole = nodes.count()
    page.keyboard.press("/")
    page.keyboard.type("downsample")
    assert page.locator("section:visible .hit").count() == 1
    assert page.locator("#count").inner_text() == "1 match"
    page.fill("#search", "")
    page.locator("section:visible .node[data-kind=frame]").first.click(position={"x": 20, "y": 10})
    assert nodes.count() < whole  # collapsed
    page.locator("section:visible .node[data-path=stage2]").press("Enter")
    assert nodes.count() == whole
    call = page.locator("section:visible .node[data-kind=block]").first
    call.hover()
    assert "14,155,776 multiply-adds" in page.locator("#tip").inner_text().split("\n")
    call.click()
    assert page.locator(".here").inner_text() == "stage resnet_block repeat=n c=16"
    assert page.locator(".figure:target").count() == 1
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (dark == "rgb(255, 255, 255)") == (scheme == "light")
    assert messages == []
    page.close()


def test_every_operator_has_a_color_and_a_legend() -> None:
    for kind in {kind_of(op) for op in (*OPS.values(), *JOINS.values())}:
        assert f".{kind}{{fill:" in style("light")
        assert kind in KINDS or kind in JOINS


@pytest.mark.parametrize("name", ["resnet20", "googlenet", "densenet121"])
def test_every_kind_of_graph_is_drawn(name: str) -> None:
    """Graphs with feature outputs, for another image size, and with shapes as functions of the image size."""
    graph = load(name)
    paths = [path for path in graph.paths if graph.feature(path).channels > 16]
    other = next(side for side in (64, 96, 192) if graph.accepts(side, side))
    for found in (tap(graph, paths[5:60:9]), graph.at(other, other), graph.symbolic):
        check_drawings(found)
        for form in TEXTS:
            assert draw(found, form)
        ET.fromstring(draw(found, ".svg", other=graph).decode())
        assert found._repr_html_()  # type: ignore[attr-defined]
    texts = [box.edge for box in figures_of(Outliner(load("resnet20").symbolic))[0].boxes]  # type: ignore[union-attr]
    assert {"3×H×W", "32×((H + 1)//2)×((W + 1)//2)"} <= set(texts)
    assert max(map(len, texts)) <= 34
