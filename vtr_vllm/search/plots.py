"""The figures of a report, one function each: data in, a figure or None without data out.

Figures are made without pyplot, so nothing global is touched and no display is needed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from matplotlib import colormaps
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from vtr_vllm.search.baselines import DOWNSAMPLE, SCHEDULES
from vtr_vllm.search.frontier import HAWK, SINGLE_CUT

Record = Mapping[str, Any]

WIDTH = 6.4  # inches; narrow, so that text stays readable on a phone
DPI = 160
LABEL = 28  # letters; methods have at most 15, but the names come from a file


@dataclass(frozen=True)
class Style:
    """How a method is drawn wherever it occurs."""

    color: str
    marker: str
    line: str = "-"
    ours: bool = False


_GREYS = ("#9a9a9a", "#6e6e6e", "#4f4f4f", "#b0b0b0")
_MARKERS = "xPs^vDd<>phX8*Ho1234"
_LINES = (":", "--", "-.")

# In the order of tables and legends. Ours in the palette of Okabe and Ito, which colour-blind
# readers can tell apart; the others in greys, told apart by their markers.
STYLES = {
    "full": Style("#000000", "", "-"),
    **{
        name: Style(_GREYS[place % len(_GREYS)], marker, _LINES[place % len(_LINES)])
        for place, (name, marker) in enumerate(
            zip(
                (*SCHEDULES[:1], DOWNSAMPLE, *SCHEDULES[1:], HAWK, SINGLE_CUT),
                _MARKERS,
                strict=True,
            )
        )
    },
    "g-search": Style("#0072b2", "o", ours=True),
    "g-search-blind": Style("#56b4e9", "h", ours=True),
    "p-sigmoid": Style("#009e73", "p", ours=True),
    "p-sigmoid-rules": Style("#cc79a7", "<", ours=True),
    "descent": Style("#e69f00", ">", ours=True),
    "searched": Style("#d55e00", "*", ours=True),
    "lossless": Style("#7b3294", "D", ours=True),
    "interpolated": Style("#000000", ".", "--", ours=True),
    "g-search-local": Style("#0072b2", "H", ":", ours=True),
    "p-sigmoid-local": Style("#009e73", "X", ":", ours=True),
    "descent-local": Style("#e69f00", "8", ":", ours=True),
    "local-searched": Style("#d55e00", "P", ":", ours=True),
    "lossless-local": Style("#7b3294", "s", ":", ours=True),
    "local-interpolated": Style("#000000", "^", ":", ours=True),
}
UNKNOWN = Style("#7f7f7f", "+", ":")


def in_order(methods: set[str]) -> list[str]:
    """Return methods in the order of ``STYLES``, those without a style last, by name."""
    return [*(name for name in STYLES if name in methods), *sorted(methods - STYLES.keys())]


def keep_rates(schedules: Sequence[Record]) -> Figure | None:
    """Draw keep rate over layer: a panel a method, a line a schedule, its colour the mean keep."""
    methods = in_order({schedule["method"] for schedule in schedules})
    if not methods:
        return None
    columns = min(2, len(methods))
    figure, panels = _panels([_label(name) for name in methods], columns, height=2.1)
    colors = _budget_colors()
    for method, axes in zip(methods, panels, strict=True):
        for schedule in schedules:
            if schedule["method"] == method:
                edges = [layer - 0.5 for layer in range(len(schedule["keep"]) + 1)]
                color = colors(schedule["mean_keep"])
                axes.stairs(schedule["keep"], edges, baseline=None, color=color, linewidth=1.6)
        axes.set_ylim(-0.03, 1.03)
        axes.margins(x=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for axes in panels[::columns]:
        axes.set_ylabel("keep rate")
    for axes in panels[-columns:]:
        axes.set_xlabel("layer")
        axes.tick_params(labelbottom=True)
    scale = ScalarMappable(Normalize(0, 1), colors)
    figure.colorbar(
        scale, ax=panels, location="bottom", shrink=0.6, aspect=30, label="mean keep rate"
    )
    return figure


def scores(frontier: Record, x: str, x_label: str) -> Figure | None:
    """Draw the score over the row key ``x``, a panel a split, with the intervals.

    Unreduced is a horizontal line with its band. Our methods have bands, the others error bars.
    """
    reduced = [row for row in frontier["rows"] if row["reachable"] and row["method"] != "full"]
    splits = [
        name for name in frontier["meta"]["splits"] if any(name in r["splits"] for r in reduced)
    ]
    if not splits:
        return None
    figure, panels = _panels([_label(name) for name in splits], 1, height=3.6)
    for split, axes in zip(splits, panels, strict=True):
        for row in frontier["rows"]:
            if row["method"] == "full" and split in row["splits"]:
                full = row["splits"][split]
                axes.axhline(full["score"], color="black", linewidth=1, label="full")
                axes.axhspan(full["low"], full["high"], color="black", alpha=0.12, linewidth=0)
        for method in in_order({row["method"] for row in reduced}):
            points = sorted(
                (row[x], *(row["splits"][split][key] for key in ("score", "low", "high")))
                for row in reduced
                if row["method"] == method and split in row["splits"]
            )
            _draw_method(axes, method, points)
        axes.yaxis.set_major_formatter(PercentFormatter(1, symbol=None))
        axes.set_ylabel("score, %")
        axes.set_xlim(0, 1)
    panels[-1].set_xlabel(x_label)
    _legend_below(figure, panels)
    return figure


def trials(records: Sequence[Record]) -> Figure | None:
    """Draw the best value so far over evaluations: a panel a search, a line a budget."""
    searches = list(dict.fromkeys(trial["search"] for trial in records))
    if not searches:
        return None
    figure, panels = _panels([_label(name) for name in searches], 1, height=2.8)
    colors = _budget_colors()
    for search, axes in zip(searches, panels, strict=True):
        own = [trial for trial in records if trial["search"] == search]
        for budget in sorted({trial["budget"] for trial in own}, reverse=True):
            run = sorted((t for t in own if t["budget"] == budget), key=lambda t: t["order"])
            values = [trial["value"] for trial in run]
            numbers = [trial["order"] + 1 for trial in run]
            color, label = colors(budget), f"budget {budget:g}"
            best = list(accumulate(values, max))
            axes.scatter(numbers, values, s=8, color=color, alpha=0.35, linewidths=0)
            axes.step(numbers, best, where="post", color=color, linewidth=1.8, label=label)
        axes.set_ylabel("best value so far")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    panels[-1].set_xlabel("evaluations")
    _legend_below(figure, panels)
    return figure


def cost(stages: Sequence[Record]) -> Figure | None:
    """Draw, for each stage, the requests that ran beside those of a search without any saving."""
    if not stages:
        return None
    figure, (axes,) = _panels(
        ["requests that ran, beside the naive count"], 1, 1 + 0.7 * len(stages)
    )
    rows = range(len(stages))
    ran = [stage["requests"] for stage in stages]
    naive = [stage["naive_requests"] for stage in stages]
    for label, counts, shift, color in (
        ("run", ran, -0.2, "#0072b2"),
        ("naive", naive, 0.2, "#b8b8b8"),
    ):
        bars = axes.barh([row + shift for row in rows], counts, 0.38, color=color, label=label)
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=4, fontsize="small")
    axes.set_yticks(list(rows), [_label(stage["stage"]) for stage in stages])
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_xlim(0, 1.2 * max(1, *ran, *naive))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
    axes.xaxis.set_major_formatter(lambda count, _: f"{count:,.0f}")
    axes.set_xlabel("requests")
    _legend_below(figure, [axes])
    return figure


def _draw_method(
    axes: Axes, method: str, points: Sequence[tuple[float, float, float, float]]
) -> None:
    """Draw (x, score, low, high) of one method in its style."""
    if not points:
        return
    style = STYLES.get(method, UNKNOWN)
    xs, ys, lows, highs = zip(*points, strict=True)
    axes.plot(
        xs,
        ys,
        color=style.color,
        marker=style.marker,
        linestyle=style.line,
        linewidth=1.8 if style.ours else 1.0,
        markersize=7 if style.ours else 5,
        zorder=4 if style.ours else 3,
        label=_label(method),
    )
    if style.ours:
        axes.fill_between(xs, lows, highs, color=style.color, alpha=0.15, linewidth=0, zorder=2)
    # Bars for ours too: a band over a single point has no area.
    axes.vlines(xs, lows, highs, color=style.color, linewidth=1, alpha=0.6, zorder=2)


def _panels(titles: Sequence[str], columns: int, height: float) -> tuple[Figure, list[Axes]]:
    """Return a figure with one panel a title, each ``height`` inches high, axes shared."""
    rows = math.ceil(len(titles) / columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.9), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flatten()
    for axes, title in zip(grid, titles, strict=False):
        axes.set_title(title, fontsize="medium")
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[len(titles) :]:
        axes.remove()
    return figure, list(grid[: len(titles)])


def _legend_below(figure: Figure, panels: Sequence[Axes]) -> None:
    """Put one legend for all panels under the figure, each label once."""
    found: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        list(found.values()),
        list(found),
        loc="outside lower center",
        ncols=4,
        fontsize="small",
        frameon=False,
    )


def _budget_colors() -> Colormap:
    """Return colours for rates in [0, 1]; the palest of the map is left out for white paper."""
    viridis = colormaps["viridis_r"]
    return ListedColormap([viridis(0.12 + 0.88 * step / 255) for step in range(256)])


def _label(name: str) -> str:
    """Return a name as a label: of bounded length, and no dollar sign read as mathematics."""
    short = name if len(name) <= LABEL else name[: LABEL - 1] + "…"
    return short.replace("$", r"\$")
