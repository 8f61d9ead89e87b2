"""Figures as SVG that stands in a page: text stays text, colours are the page's, so that light and dark both read well.

A series has a colour, a line style and a marker: none of them is the only sign.
"""

import html
import io
import re

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

INK = "#0a0b0c"  # stands for the page's text colour; SERIES for the page's --series-0 to --series-5
SERIES = ["#0a0b10", "#0a0b11", "#0a0b12", "#0a0b13", "#0a0b14", "#0a0b15"]
HOST = "#0a0b1f"
LINES, MARKERS = ["-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))], ["o", "s", "D", "^", "v", "P"]
STYLE = {
    "svg.fonttype": "none",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color", "legend.labelcolor"), INK),
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
LEAST_RANGE = 0.1  # of an axis of differences, each way: zeros are no spike
Points = tuple[list[int], list[float]]


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure for a page. name: apart from other figures' on it; description: for those who do not see it."""
    file = io.StringIO()
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href").replace(INK, "currentColor").replace(HOST, "var(--host)")
    for i, color in enumerate(SERIES):
        text = text.replace(color, f"var(--series-{i})")
    text = re.sub(r'\bid="', f'id="{name}-', text)  # ids are of the whole page
    text = re.sub(r"(url\(#|href=\"#)", rf"\g<1>{name}-", text)
    width, height = (float(v) for v in re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups())
    head = f'<svg role="img" aria-label="{html.escape(description)}" viewBox="0 0 {width} {height}" '
    head += f'style="min-width:{0.8 * width:.0f}px;max-width:{1.35 * width:.0f}px">'
    return re.sub(r"^<svg[^>]*>", lambda _: head, text)


def draw_differences(panels: dict[str, dict[str, dict | None]], unit: str) -> Figure:
    """panels: {metric: {"arm minus host": values by seed, their mean and spread, see results.Difference, or None}}."""
    with matplotlib.rc_context(STYLE):
        labels = list(next(iter(panels.values())))
        columns = min(3, len(panels))
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(2.2 + 2.4 * columns, rows * (0.9 + 0.3 * len(labels))), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axis, (metric, values) in zip(axes.flat, panels.items()):
            for y, label in enumerate(labels):
                _difference(axis, y, values[label])
            if max(map(abs, axis.get_xlim())) < LEAST_RANGE:
                axis.set_xlim(-LEAST_RANGE, LEAST_RANGE)
            axis.axvline(0, color=INK, linewidth=1)
            axis.set(title=metric, ylim=(len(labels) - 0.5, -0.5))
            axis.set_yticks(range(len(labels)), labels)
            axis.xaxis.set_major_locator(MaxNLocator(4))
            axis.grid(axis="x", alpha=0.2)
            axis.margins(x=0.12)
        for axis in list(axes.flat)[len(panels) :]:
            axis.axis("off")
        figure.supxlabel(f"difference to the host, {unit}; right of 0 is better", fontsize=10)
        return figure


def _difference(axis, y: float, found: dict | None) -> None:
    """Gain: a filled disc; loss: an open square. Small marks are seeds, the bar is the spread."""
    if found is None:
        axis.text(0, y, " none", va="center")
        return
    mean, seeds = found["mean"], list(found["values"].values())
    color, marker = (SERIES[0], "o") if mean >= 0 else (SERIES[1], "s")
    if found["spread"] is not None:
        axis.errorbar(mean, y, xerr=found["spread"], color=color, capsize=4, linewidth=1.6)
        axis.plot(seeds, [y + 0.28] * len(seeds), "|", color=INK, markersize=5, alpha=0.7)
    axis.plot([0, mean], [y, y], color=color, linewidth=1, alpha=0.6)
    axis.plot(mean, y, marker, color=color, markerfacecolor=color if mean >= 0 else "none", markersize=7, mew=1.8)


def draw_curves(panels: dict[str, dict[str, list[Points]]], host: str, titles: dict[str, str]) -> Figure:
    """panels: {scalar: {arm: points of each seed}}. The host is the thick grey line; thin lines are single seeds."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.2 * len(panels) + 0.4, 3.4), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for axis, (scalar, arms) in zip(axes, panels.items()):
            for i, (arm, seeds) in enumerate(arms.items()):
                style = {"color": HOST, "linewidth": 3.2, "marker": "."} if arm == host else _series(i - 1)
                means = mean_curve(seeds)
                if len(seeds) > 1:
                    for points in seeds:
                        axis.plot(*points, **{**style, "linewidth": 0.7, "alpha": 0.5, "marker": ""})
                axis.plot(*means, label=f"{arm} (host)" if arm == host else arm, **style)
            axis.set(title=titles[scalar], xlabel="iteration")
            axis.set_xlim(left=0)
            axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axis.grid(alpha=0.2)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, handlelength=3.4)
        return figure


def _series(i: int) -> dict:
    return {
        "color": SERIES[i % len(SERIES)],
        "linestyle": LINES[i % len(LINES)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.8,
    }


def mean_curve(seeds: list[Points]) -> Points:
    """Over the iterations that every seed has."""
    tables = [dict(zip(*points)) for points in seeds]
    iterations = [i for i in seeds[0][0] if all(i in table for table in tables)]
    return iterations, [sum(table[i] for table in tables) / len(tables) for i in iterations]
