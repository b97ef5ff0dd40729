"""The report of an offline search: one HTML page and its figures, from the JSON beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.search import plots
from vtr_vllm.search.families import INTERPOLATED, NAMES, PAPER, SEARCHED
from vtr_vllm.search.report_data import read_frontier, read_search
from vtr_vllm.search.trials_table import write_trials
from vtr_vllm.whole_file import whole_file, whole_file_of_bytes

TEMPLATE = "report.html.jinja"
NOT_REACHABLE = "–"
_NOT_ASKED_FOR = frozenset(
    {
        *(name for found in (PAPER, *NAMES.values()) for name in (found.g_search, found.lossless)),
        *INTERPOLATED.values(),
    }
)
"""Methods whose schedules have a mean keep rate that nobody asked the search for."""
_SERVED = ("full", *SEARCHED.values())


@dataclass(frozen=True)
class Cell:
    """One method at one budget: its text, and whether nothing in the column scores higher."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """The scores of one split: ``lines`` has, for each method, a cell per budget."""

    budgets: tuple[float, ...]
    lines: Mapping[str, tuple[Cell, ...]]
    families: Mapping[str, str]
    """Of each method that is known to be local, guided, or either by its budget; else empty."""


def write_report(folder: Path) -> Path:
    """Write ``index.html``, its figures and ``trials.csv``, each at once or not at all.

    From ``search.json`` and, if there, ``frontier.json``. Returns the page's path. Figures of an earlier report that have no data now are removed.
    Raises ConfigurationError when a file is missing or malformed, or when the two are about
    different models.
    """
    search = read_search(folder)
    frontier = read_frontier(folder)
    if frontier is not None:
        _check_same_model(folder, search["meta"]["fingerprint"], frontier["meta"]["fingerprint"])
    figures = _draw(search, frontier)
    for name, figure in figures.items():
        if figure is None:
            (folder / name).unlink(missing_ok=True)
        else:
            with whole_file_of_bytes(folder / name) as file:
                figure.savefig(file, format="png", facecolor="white", bbox_inches="tight")
    write_trials(folder, search)
    page = folder / "index.html"
    with whole_file(page) as text:
        text.write(_render(search, frontier, figures))
    return page


def frontier_table(frontier: Mapping[str, Any]) -> str:
    """Return a held-out comparison, as ``read_frontier`` gives it, as Markdown, one table a split.

    Rows are methods, columns budgets, a cell is ``score [low, high]`` in points. The best reduced
    score of a column is bold, a budget that a method cannot reach is a dash, one that was not
    measured is empty. Schedules whose budget nothing else was measured at follow in a table of
    their own.
    """
    meta = frontier["meta"]
    parts = [_alone_table(frontier)]
    for split, data in meta["splits"].items():
        table = _table(frontier["rows"], split)
        kind = ["family"] if any(table.families.values()) else []
        heads = ["method", *kind, *(f"{budget:g}" for budget in table.budgets)]
        lines = [_markdown(heads), _markdown(["---"] * len(heads), pad="")]
        for method, cells in table.lines.items():
            texts = [f"**{cell.text}**" if cell.best else cell.text for cell in cells]
            kind = [table.families[method]] if kind else []
            lines.append(_markdown([method, *kind, *texts]))
        title = f"Split `{split}`, {data['n']:,} questions, {meta['level']:.0%} intervals:"
        parts.insert(-1, "\n".join([title, "", *lines, ""]))
    return "\n".join(part for part in parts if part)


def kinds_table(frontier: Mapping[str, Any]) -> str:
    """Return the scores of what is served, and of no reduction, by kind of question, or turn, as Markdown;
    a table for each split that has several."""
    parts = []
    for split in frontier["meta"]["splits"]:
        scores = {
            row["name"]: row["splits"][split]["kinds"] or {}
            for row in frontier["rows"]
            if row["method"] in _SERVED and split in row["splits"]
        }
        numbers = {kind: each["n"] for found in scores.values() for kind, each in found.items()}
        if len(numbers) < 2:
            continue
        heads = ["schedule", *(f"{kind} ({numbers[kind]:,})" for kind in sorted(numbers))]
        lines = [_markdown(heads), _markdown(["---"] * len(heads), pad="")]
        for name, found in scores.items():
            texts = [_points(found[kind]["score"]) for kind in sorted(numbers)]
            lines.append(_markdown([name, *texts]))
        parts += [f"Split `{split}`, by kind:", "", *lines, ""]
    return "\n".join(parts)


def cost_table(search: Mapping[str, Any]) -> str:
    """Return what each stage of a search (``search.json``) took, as Markdown."""
    heads = ["stage", "evaluations", "reused", "stopped early", "requests", "naive count"]
    lines = [_markdown([*heads, "seconds", "occupancy"]), _markdown(["---"] * 8, pad="")]
    for cost in search["cost"]:
        counts = [cost["evaluations"], cost["reused"], cost["stopped"]]
        texts = [str(count) for count in counts]
        texts += [f"{cost['requests']:,}", f"{cost['naive_requests']:,}"]
        texts += [f"{cost['seconds']:.0f}", f"{cost['occupancy']:.2f}"]
        lines.append(_markdown([cost["stage"], *texts]))
    return "\n".join([*lines, ""])


def _check_same_model(folder: Path, searched: str, compared: str) -> None:
    if searched != compared:
        raise ConfigurationError(
            f"{folder / 'frontier.json'} was measured on {compared}, the search ran on {searched};"
            " compare the schedules of this folder on the model that they were searched for"
        )


def _draw(
    search: Mapping[str, Any], frontier: Mapping[str, Any] | None
) -> dict[str, Figure | None]:
    """Return file name -> figure, None where its data is missing."""
    drawn = {
        "keep-rates.png": plots.keep_rates(search["schedules"]),
        "frontier.png": None,
        "flops.png": None,
        "trials.png": plots.trials(search["trials"]),
        "cost.png": plots.cost(search["cost"]),
    }
    if frontier is not None:
        drawn["frontier.png"] = plots.scores(frontier, "mean_keep", "mean keep rate")
        drawn["flops.png"] = plots.scores(frontier, "flops_fraction", "share of prefill FLOPs")
    return drawn


def _render(
    search: Mapping[str, Any],
    frontier: Mapping[str, Any] | None,
    figures: Mapping[str, Figure | None],
) -> str:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        points=_points, interval=_interval, runs=_runs, parameters=_parameters
    )
    tables = {}
    if frontier is not None:
        tables = {split: _table(frontier["rows"], split) for split in frontier["meta"]["splits"]}
    return environment.get_template(TEMPLATE).render(
        search=search,
        frontier=frontier,
        tables=tables,
        best_trials=_best_trials(search["trials"]),
        drawn={name for name, figure in figures.items() if figure is not None},
    )


def _table(rows: Iterable[Mapping[str, Any]], split: str) -> Table:
    """Lay the rows out by method and budget."""
    by_place = {(row["method"], row["budget"]): row for row in rows}
    methods = plots.in_order({method for method, _ in by_place})
    budgets = sorted(_shared_budgets(by_place), reverse=True)
    methods = [m for m in methods if any((m, budget) in by_place for budget in budgets)]
    best: dict[float, float] = {}
    for (method, budget), row in by_place.items():
        if method != "full" and row["reachable"] and split in row["splits"]:
            score = row["splits"][split]["score"]
            best[budget] = max(score, best.get(budget, score))
    lines = {
        method: tuple(
            _cell(by_place.get((method, budget)), split, best.get(budget)) for budget in budgets
        )
        for method in methods
    }
    families = {method: _families(by_place, method) for method in methods}
    return Table(tuple(budgets), lines, families)


def _families(rows: Mapping[tuple[str, float], Mapping[str, Any]], method: str) -> str:
    """A method's family; both, where its schedules differ."""
    found = {row["family"] for (name, _), row in rows.items() if name == method}
    return ", ".join(sorted(family for family in found if family))


def _shared_budgets(places: Iterable[tuple[str, float]]) -> set[float]:
    """The budgets that methods were asked for and meet at, and that of no reduction."""
    methods: dict[float, list[str]] = {}
    for method, budget in places:
        if method not in _NOT_ASKED_FOR:
            methods.setdefault(budget, []).append(method)
    return {budget for budget, found in methods.items() if len(found) > 1 or "full" in found}


def _alone_table(known: Mapping[str, Any]) -> str:
    """The schedules at budgets of their own: G-Search's, and what is served between budgets."""
    shared = _shared_budgets((row["method"], row["budget"]) for row in known["rows"])
    rows = [row for row in known["rows"] if row["budget"] not in shared and row["splits"]]
    if not rows:
        return ""
    splits = list(known["meta"]["splits"])
    kind = ["family"] if any(row["family"] for row in rows) else []
    heads = ["schedule", *kind, "mean keep", "FLOPs"]
    for split in splits:
        heads += [f"`{split}`", "minus full"]
    lines = [_markdown(heads), _markdown(["---"] * len(heads), pad="")]
    for row in sorted(rows, key=lambda row: -row["mean_keep"]):
        texts = [row["name"], *([row["family"] or ""] if kind else [])]
        texts += [f"{row['mean_keep']:.3f}", f"{row['flops_fraction']:.3f}"]
        for split in splits:
            score = row["splits"].get(split)
            minus = score and score.get("minus_full")
            texts.append(f"{_points(score['score'])} {_interval(score)}" if score else "")
            texts.append(
                f"{_points(minus['difference'], '+')} {_interval(minus, '+')}" if minus else ""
            )
        lines.append(_markdown(texts))
    return "\n".join(["At mean keep rates of their own:", "", *lines, ""])


def _cell(row: Mapping[str, Any] | None, split: str, best: float | None) -> Cell:
    if row is not None and not row["reachable"]:
        return Cell(NOT_REACHABLE)
    if row is None or split not in row["splits"]:
        return Cell("")
    score = row["splits"][split]
    text = f"{_points(score['score'])} {_interval(score)}"
    return Cell(text, best=row["method"] != "full" and score["score"] == best)


def _best_trials(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return, for each search and budget, how many trials it had and the one that was taken."""
    runs: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for trial in trials:
        runs.setdefault((trial["search"], trial["budget"]), []).append(trial)
    return [
        {**max(run, key=lambda trial: (trial["taken"], trial["value"])), "trials": len(run)}
        for run in runs.values()
    ]


def _points(share: float, sign: str = "") -> str:
    """Write a share in [-1, 1] in points: 0.9912 is 99.1."""
    return f"{100 * share:{sign}.1f}"


def _interval(score: Mapping[str, float], sign: str = "") -> str:
    return f"[{_points(score['low'], sign)}, {_points(score['high'], sign)}]"


def _runs(keep: Sequence[float]) -> str:
    """Write keep rates as runs of equal ones: "1.000 ×2, 0.500 ×6"."""
    lengths = ((rate, len(list(run))) for rate, run in groupby(keep))
    return ", ".join(f"{rate:.3f} ×{length}" for rate, length in lengths)


def _parameters(values: Mapping[str, Any]) -> str:
    """Write parameters as "k = 1.25, alpha = 0.5"."""
    return ", ".join(
        f"{name} = {value:.4g}" if isinstance(value, float) else f"{name} = {value}"
        for name, value in values.items()
    )


def _markdown(cells: Sequence[str], pad: str = " ") -> str:
    return "|" + "|".join(f"{pad}{cell}{pad}" for cell in cells) + "|"
