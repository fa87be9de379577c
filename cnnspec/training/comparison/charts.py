"""Draw the charts of a comparison as SVG that takes its colors from the page, for light and dark mode."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from cnnspec.diagnostics import printable
from cnnspec.training.comparison.table import Row, Statistic

SERIES = 8
"""The number of colors. Further networks use the colors again with another line style."""
_INK, _GRID = "#010203", "#040506"
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "cnnspec", "text.parse_math": False, "font.size": 11}
_LINES, _MARKS = ("-", "--", ":", "-."), "osD^vPX*"


def curve_chart(rows: Sequence[Row], name: str, title: str, prefix: str) -> Markup | None:
    """Draw a metric over the epochs: a line of means per network, and a band from minimum to maximum.

    Args:
        rows: The networks.
        name: The metric, such as `val_acc` or `train_loss`.
        title: The title of the chart.
        prefix: A prefix for the ids in the SVG, unique on the page.
    """
    with mpl.rc_context(_STYLE):
        chart, panel = _empty(title, "epoch")
        is_drawn = False
        for number, row in enumerate(rows):
            by_epoch: dict[int, list[float]] = {}
            for run in row.finished:
                for line in run.epochs:
                    if name in line:
                        by_epoch.setdefault(line["epoch"], []).append(line[name])
            if not by_epoch:
                continue
            is_drawn = True
            epochs = sorted(by_epoch)
            values = [by_epoch[epoch] for epoch in epochs]
            color = _color(number)
            means = [sum(group) / len(group) for group in values]
            mark = _MARKS[number % SERIES] if len(epochs) < 16 else None
            panel.plot(epochs, means, color=color, linestyle=_line(number), marker=mark, markersize=4, linewidth=1.7)
            if any(len(group) > 1 for group in values):
                panel.fill_between(
                    epochs, [min(s) for s in values], [max(s) for s in values], color=color, alpha=0.16, linewidth=0
                )
        if not is_drawn:
            return None
        if name.endswith("acc"):
            panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        panel.xaxis.get_major_locator().set_params(integer=True)
        description = f"{title} by epoch of {', '.join(row.label for row in rows)}"
        return _svg(chart, description, prefix)


def cost_chart(rows: Sequence[Row], name: str, accuracy: str, title: str, prefix: str) -> Markup | None:
    """Draw accuracy over cost: a point per network, with the standard deviation over its seeds.

    Args:
        rows: The networks.
        name: The cost, `parameters` or `macs`.
        accuracy: `test_acc` or `val_acc`.
        title: The title of the cost.
        prefix: A prefix for the ids in the SVG, unique on the page.
    """
    points = [
        (n, getattr(row, name), statistic) for n, row in enumerate(rows) if (statistic := row.statistic(accuracy))
    ]
    if not points:
        return None
    with mpl.rc_context(_STYLE):
        chart, panel = _empty(f"{_accuracy_title(accuracy)} vs. {title}", title)
        for number, cost, statistic in points:
            _point(panel, number, cost, statistic)
        least, most = min(cost for _, cost, _ in points), max(cost for _, cost, _ in points)
        if least > 0 and most > 10 * least:
            panel.set_xscale("log")
        panel.margins(0.12)
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: format_short(value)))
        panel.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        description = "; ".join(
            f"{rows[n].label}: {statistic.text(2, 100)} % at {format_short(cost)}" for n, cost, statistic in points
        )
        return _svg(chart, f"{_accuracy_title(accuracy)} vs. {title}: {description}", prefix)


def _point(panel: Any, number: int, cost: float, statistic: Statistic) -> None:
    color = _color(number)
    panel.errorbar(
        [cost], [statistic.mean], yerr=statistic.std, color=color, marker=_MARKS[number % SERIES],
        markersize=7, capsize=3, linewidth=1.4, linestyle="none",
    )  # fmt: skip
    panel.annotate(str(number + 1), (cost, statistic.mean), (7, 5), textcoords="offset points", color=_INK)


def format_short(value: float) -> str:
    """Format a large number with a suffix: `272k`, `40.8M`."""
    for power, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= power:
            return f"{value / power:.3g}{letter}"
    return f"{value:.3g}"


def _accuracy_title(accuracy: str) -> str:
    return {"test_acc": "test accuracy", "val_acc": "validation accuracy"}[accuracy]


def _color(number: int) -> str:
    return f"#a0b0c{number % SERIES}"


def _line(number: int) -> str:
    return _LINES[number // SERIES % len(_LINES)]


def _empty(title: str, x: str) -> tuple[Figure, Any]:
    """Create a chart in the placeholder colors that `_svg` replaces."""
    chart = Figure(figsize=(4.6, 3.3), layout="constrained")
    panel: Any = chart.subplots()
    panel.set_title(title, color=_INK, fontsize=12)
    panel.set_xlabel(x, color=_INK)
    panel.tick_params(colors=_INK, which="both")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        panel.spines[side].set_color(_GRID)
    panel.grid(color=_GRID, linewidth=0.6)
    panel.set_axisbelow(True)
    return chart, panel


def _svg(chart: Figure, description: str, prefix: str) -> Markup:
    """Return the chart as an element of an HTML page."""
    text = io.StringIO()
    chart.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>", "", svg, flags=re.S)
    svg = re.sub(r'\bid="', f'id="{prefix}-', svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}-", svg)
    svg = re.sub(r'xlink:href="#', f'xlink:href="#{prefix}-', svg)
    svg = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r"font: ([0-9.]+px)[^;\"]*", r"font: \1 inherit; font-size: \1", svg)
    svg = svg.replace(_INK, "currentColor").replace(_GRID, "var(--line)")
    svg = re.sub(r"#a0b0c([0-7])", lambda match: f"var(--s{match.group(1)})", svg)
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{escape(printable(description))}"', 1))
