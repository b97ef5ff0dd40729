"""The tables and the heat map of a results file."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from benchmarks.rankings.layers import ATTENTION_RULES, TOP_SHARES, Array

__all__ = ["draw", "render"]

ALIKE = 0.7  # the tau that the paper reports for every layer but the first
LEGIBLE = 16  # layers of a heat map whose numbers can be read


def off_diagonal(matrix: Array) -> Array:
    """Return the entries of all pairs of different rows."""
    return matrix[np.triu_indices(len(matrix), 1)]


def render_tau(layers: dict[str, Any]) -> str:
    """Return a line per rule: how alike the layers rank."""
    lines = [
        "| rule | all pairs | without layer 0 | neighbours without layer 0 | least | greatest"
        f" | pairs >= {ALIKE} | top {TOP_SHARES[0]:.0%} in common | widest 95% interval |",
        f"|{'---|' * 9}",
    ]
    for rule in ATTENTION_RULES:
        tau, overlap = np.array(layers["tau"][rule]), np.array(layers["overlap"][rule])
        every = off_diagonal(tau)
        cells = [every.mean(), off_diagonal(tau[1:, 1:]).mean(), np.diag(tau, 1)[1:].mean()]
        numbers = " | ".join(f"{value:.2f}" for value in (*cells, every.min(), every.max()))
        alike = f"{(every >= ALIKE).sum()} of {len(every)} | {off_diagonal(overlap).mean():.2f}"
        width = layers["tau_half_interval"][rule]
        lines.append(f"| `{rule}` | {numbers} | {alike} | ±{width:.3f} |")
    return "\n".join(lines)


def render_matrix(matrix: list[list[float]]) -> str:
    """Return a layer-by-layer matrix."""
    size = len(matrix)
    lines = [f"| layer | {' | '.join(map(str, range(size)))} |", f"|{'---|' * (size + 1)}"]
    for layer, row in enumerate(matrix):
        lines.append(f"| {layer} | {' | '.join(f'{value:.2f}' for value in row)} |")
    return "\n".join(lines)


def render_targets(layers: dict[str, Any]) -> str:
    """Return, per rule and share, how many targets are among the best-ranked at each layer."""
    size = len(layers["tau"][ATTENTION_RULES[0]])
    lines = [
        f"| rule | top | {' | '.join(map(str, range(size)))} |",
        f"|{'---|' * (size + 2)}",
    ]
    for rule, by_share in layers["targets"].items():
        for share, values in by_share.items():
            cells = [f"{value:.2f}" for value in values]
            cells += [""] * (size - len(cells))  # a question-blind order is one for all layers
            lines.append(f"| `{rule}` | {float(share):.0%} | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_pairs(compared: list[dict[str, Any]]) -> str:
    """Return a line per form and budget: ranking at each cut against ranking once."""
    kinds = list(compared[0]["gain_by_kind"])
    lines = [
        "| form | budget | tokens from each cut | once | each | each - once"
        f" | {' | '.join(kinds)} |",
        f"|{'---|' * (6 + len(kinds))}",
    ]
    for row in compared:
        cuts = ", ".join(f"{layer}: {count}" for layer, count in row["cuts"].items())
        cells = [row["form"], str(row["budget"]), cuts, f"{row['once']:.3f}", f"{row['each']:.3f}"]
        if len(row["cuts"]) == 1:
            cells += ["one cut: the same", *[""] * len(kinds)]
        else:
            cells.append(f"{row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")
            cells += [f"{row['gain_by_kind'][kind]:+.3f}" for kind in kinds]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render(results: dict[str, Any]) -> str:
    """Return all tables as markdown."""
    meta, layers, engine = results["meta"], results["layers"], results["engine"]
    split = meta["split"]
    parts = [
        f"Measured {meta['date']} on {meta['cpu']}, commit {meta['commit']}: model `{meta['model']}`.",
        f"Kendall's tau-b between the layers' rankings of an image's vision tokens, mean over"
        f" {meta['samples']} samples of `{split}`, plain transformers, float32: means over the pairs"
        f" of layers, then the extremes. Two random orders have tau 0 and {TOP_SHARES[0]:.0%} of"
        " their best-ranked in common.",
        render_tau(layers),
        "Share of the targets among the best-ranked, by layer (the same samples, those with a"
        " target); a question-blind order is the same at all layers.",
        render_targets(layers),
        f"Exact match of {meta['n']} questions of `{split}` in the engine, {engine['dtype']}, ranked"
        " by `last`, at the first cut or at each; difference with its paired 95% interval, and by"
        f" kind of question. Without reduction: {engine['full']:.3f}.",
        render_pairs(engine["pairs"]),
    ]
    for rule in ATTENTION_RULES:
        parts += [f"Tau, `{rule}`:", render_matrix(layers["tau"][rule])]
    for rule in ATTENTION_RULES:
        parts += [
            f"Top {TOP_SHARES[0]:.0%} in common, `{rule}`:",
            render_matrix(layers["overlap"][rule]),
        ]
    return "\n\n".join(parts)


def draw(layers: dict[str, Any], path: Path) -> None:
    """Write a heat map of tau between all layer pairs, one panel a rule."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, len(ATTENTION_RULES))
    for panel, rule in zip(panels, ATTENTION_RULES, strict=True):
        tau = np.array(layers["tau"][rule])
        ticks = range(0, len(tau), 1 if len(tau) <= LEGIBLE else 5)
        image = panel.imshow(tau, cmap="RdBu", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(tau if len(tau) <= LEGIBLE else tau[:0]):
            ink = "white" if abs(value) > ALIKE else "black"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", size=6, color=ink)
        panel.set(title=rule, xlabel="layer", xticks=ticks, yticks=ticks)
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=panels, shrink=0.8, label="Kendall's tau")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = BytesIO()
    figure.savefig(pixels, dpi=90)
    Image.open(pixels).convert("RGB").quantize(256).save(path, optimize=True)  # half the size
