"""The figures of a report."""

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageStat

from tests.vtr_vllm.search.report_records import (
    BASELINES,
    BUDGETS,
    FOUND,
    LAYERS,
    OURS,
    frontier_record,
    search_record,
)
from vtr_vllm.search import plots

FIGURES: dict[str, Callable[[], Figure | None]] = {
    "keep rates": lambda: plots.keep_rates(search_record()["schedules"]),
    "frontier": lambda: plots.scores(frontier_record(), "mean_keep", "mean keep rate"),
    "flops": lambda: plots.scores(frontier_record(), "flops_fraction", "share of FLOPs"),
    "trials": lambda: plots.trials(search_record()["trials"]),
    "cost": lambda: plots.cost(search_record()["cost"]),
}


def drawn(figure: Figure | None) -> FigureCanvasAgg:
    """Return the canvas of a figure, drawn."""
    assert figure is not None
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return canvas


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_shows_something_and_nothing_overlaps(name: str) -> None:
    canvas = drawn(FIGURES[name]())
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    assert min(ImageStat.Stat(image).var) > 100
    figure, renderer = canvas.figure, canvas.get_renderer()
    places = [part.get_tightbbox(renderer) for part in (*figure.axes, *figure.legends)]
    for index, place in enumerate(places):
        assert place.x0 >= 0
        assert place.y0 >= 0
        assert place.x1 <= image.width
        assert place.y1 <= image.height
        for other in places[index + 1 :]:
            assert not place.overlaps(other)


def test_nothing_to_draw_is_no_figure() -> None:
    frontier = frontier_record()
    frontier["rows"] = [row for row in frontier["rows"] if row["method"] == "full"]
    assert plots.scores(frontier, "mean_keep", "mean keep rate") is None
    assert plots.keep_rates([]) is None
    assert plots.trials([]) is None
    assert plots.cost([]) is None


def test_keep_rates_are_a_step_line_each() -> None:
    schedules = search_record()["schedules"]
    figure = plots.keep_rates(schedules)
    assert figure is not None
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert set(FOUND) <= set(panels)
    for method in FOUND:
        lines = [patch.get_data() for patch in panels[method].patches]  # type: ignore[attr-defined]
        expected = [s["keep"] for s in schedules if s["method"] == method]
        assert [line.values.tolist() for line in lines] == expected
        assert lines[0].edges.tolist() == [layer - 0.5 for layer in range(LAYERS + 1)]


@pytest.mark.parametrize("x", ["mean_keep", "flops_fraction"])
def test_scores_have_every_reachable_row_and_its_interval(x: str) -> None:
    frontier = frontier_record()
    figure = plots.scores(frontier, x, "x")
    assert figure is not None
    assert [axes.get_title() for axes in figure.axes] == ["test", "shifted"]
    for axes in figure.axes:
        lines = {line.get_label(): line for line in axes.lines}
        assert set(lines) == {"full", *BASELINES, *OURS}
        rows = {r["name"]: r for r in frontier["rows"]}
        assert lines["full"].get_ydata()[0] == rows["full-1"]["splits"][axes.get_title()]["score"]
        fastv = [rows[f"fastv-{budget:g}"] for budget in sorted(BUDGETS) if budget > 0.125]
        scores = [row["splits"][axes.get_title()] for row in fastv]
        assert lines["fastv"].get_xdata().tolist() == [row[x] for row in fastv]
        assert lines["fastv"].get_ydata().tolist() == [score["score"] for score in scores]
        bars = [
            [tuple(end) for end in segment]
            for collection in axes.collections
            if hasattr(collection, "get_segments")
            for segment in collection.get_segments()
        ]
        for row, score in zip(fastv, scores, strict=True):
            assert [(row[x], score["low"]), (row[x], score["high"])] in bars


def test_a_split_without_a_method_draws_the_others() -> None:
    frontier = frontier_record()
    for row in frontier["rows"]:
        if row["method"] == "descent":
            row["splits"].pop("shifted", None)
    figure = plots.scores(frontier, "mean_keep", "mean keep rate")
    assert figure is not None
    by_title = {a.get_title(): {line.get_label() for line in a.lines} for a in figure.axes}
    assert by_title["test"] - by_title["shifted"] == {"descent"}


def test_best_value_so_far_never_falls_and_follows_the_order() -> None:
    values = [0.3, 0.1, 0.5, 0.4]
    records = [
        {"budget": 0.5, "search": "p-sigmoid", "order": order, "value": value}
        for order, value in enumerate(values)
    ]
    figure = plots.trials(records[::-1])
    assert figure is not None
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata().tolist() == [0.3, 0.3, 0.5, 0.5]
    assert line.get_label() == "budget 0.5"


def test_cost_has_both_counts_of_a_stage() -> None:
    stages = search_record()["cost"]
    figure = plots.cost(stages)
    assert figure is not None
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [s["requests"] for s in stages] + [s["naive_requests"] for s in stages]


@pytest.mark.filterwarnings("error")  # matplotlib warns where a layout does not fit
@pytest.mark.parametrize("name", ["$", "$x$", r"$\frac{$", "new-method", "x" * 96])
def test_any_method_name_can_be_drawn(name: str) -> None:
    frontier = frontier_record()
    for row in frontier["rows"]:
        row["method"] = name if row["method"] == "fastv" else row["method"]
    schedules = [{"method": name, "keep": [1.0, 0.5], "mean_keep": 0.75}]
    drawn(plots.scores(frontier, "mean_keep", "mean keep rate"))
    drawn(plots.keep_rates(schedules))


def test_methods_are_told_apart() -> None:
    looks = {(style.color, style.marker) for style in plots.STYLES.values()}
    assert len(looks) == len(plots.STYLES)
    markers = [plots.STYLES[method].marker for method in BASELINES]
    assert len(set(markers)) == len(BASELINES)
    assert plots.in_order({"b", "searched", "a", "full"}) == ["full", "searched", "a", "b"]


def test_pyplot_is_never_loaded() -> None:
    code = "import sys, vtr_vllm.search.plots; print('matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
