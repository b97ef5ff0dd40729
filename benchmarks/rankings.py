"""How alike the layers rank the vision tokens: ``python -m benchmarks.rankings --help``.

Zhao et al. (CVPR 2025, arXiv 2412.00556) find that attention ranks the vision tokens alike in
every layer but the first, Kendall's tau 0.7 and above. First part: is it so in the demo model, in
plain transformers. Second part: what follows for ranking once, at the first cut, against ranking
at each cut, in the engine and at equal counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.stats import kendalltau
from transformers import AutoProcessor, LlavaForConditionalGeneration

from benchmarks.accuracy import SCENES_PER_BATCH, Z95, Engine
from benchmarks.run import measured_with, say
from benchmarks.shapes import make_shape
from vtr_vllm import demo
from vtr_vllm.demo.evaluate import by_length, rounded
from vtr_vllm.demo.model import vision_features
from vtr_vllm.demo.world import KINDS, VISION_TOKENS
from vtr_vllm.ranking import RankInputs
from vtr_vllm.schedules import FORMS, ModelGeometry, RankRule, Schedule, full
from vtr_vllm.schedules.keep_rates import keep_counts

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ATTENTION_RULES = ("last", "last-max", "instruction")
BLIND_RULES = ("saliency", "cls")
TOP_SHARES = (0.10, 0.25)
ALIKE = 0.7  # the tau that the paper reports for every layer but the first
COMPARED = ("p-sigmoid", "pdrop")
BUDGETS = (0.75, 0.5, 0.375, 0.25)
RESAMPLES = 10_000


def attention_scores(attention: torch.Tensor, vision: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return every attention rule's scores ``[samples, layers, n_vision]``.

    attention: ``[samples, layers, heads, rows, rows]``, probabilities over every key. vision:
    ``[rows]``, whether a row is a vision token.
    """
    instruction = int(vision.nonzero()[-1]) + 1
    received = attention[..., instruction:, vision]
    return {
        "last": received[..., -1, :].mean(2),
        "last-max": received[..., -1, :].amax(2),
        "instruction": received.mean((2, 3)),
    }


def blind_scores(embeddings: torch.Tensor, cls_attention: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the question-blind rules' scores ``[1, n_vision]`` of one image.

    embeddings: ``[n_vision, hidden]``. cls_attention: ``[n_vision]``.
    """
    tokens = len(embeddings)
    inputs = RankInputs(
        vision=torch.arange(tokens),
        prompt_rows=tokens,
        instruction_rows=0,
        image_sizes=[tokens],
        vision_rows=tokens,
        seeds=[0],
        grids=[None],
        embeddings=embeddings,
        cls_attention=cls_attention,
    )
    return {rule: RankRule.parse(rule).score(inputs)[None] for rule in BLIND_RULES}


@torch.no_grad()
def scored(
    folder: Path, samples: list[demo.Sample]
) -> Iterator[tuple[demo.Sample, dict[str, Array]]]:
    """Yield every sample with each rule's scores, ``[layers or 1, n_vision]``."""
    model = LlavaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    processor = AutoProcessor.from_pretrained(folder)
    for batch in by_length(samples):
        inputs = processor(
            images=[item.image for item in batch],
            text=[demo.prompt(item.question) for item in batch],
            return_tensors="pt",
        )
        attention = torch.stack(model(**inputs, output_attentions=True).attentions, 1)
        found = attention_scores(attention, inputs["input_ids"][0] == model.config.image_token_id)
        features = vision_features(model, inputs["pixel_values"])
        tower = model.model.vision_tower(inputs["pixel_values"], output_attentions=True)
        cls = tower.attentions[model.config.vision_feature_layer][:, :, 0, 1:].mean(1)
        for index, item in enumerate(batch):
            own = {rule: scores[index] for rule, scores in found.items()}
            own |= blind_scores(features[index], cls[index])
            yield item, {rule: scores.double().numpy() for rule, scores in own.items()}


def tau_matrix(scores: Array) -> Array:
    """Return Kendall's tau-b between the rows of ``[layers, tokens]``, ``[layers, layers]``."""
    tau = np.eye(len(scores))
    for a, b in zip(*np.triu_indices(len(scores), 1), strict=True):
        tau[a, b] = tau[b, a] = kendalltau(scores[a], scores[b]).statistic
    return tau


def in_top(scores: Array, share: float) -> Mask:
    """Return which tokens a cut to ``share`` keeps by each row of ``[layers, tokens]``."""
    count = keep_counts([share], scores.shape[1])[0]
    kept = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(kept, np.argsort(-scores, axis=1, kind="stable")[:, :count], True, axis=1)
    return kept


def overlap_matrix(kept: Mask) -> Array:
    """Return the share of tokens that rows of ``[layers, tokens]`` keep alike."""
    return kept.astype(np.float64) @ kept.T / kept[0].sum()


def measure_layers(folder: Path, samples: list[demo.Sample]) -> dict[str, Any]:
    """Return taus, overlaps and target shares, each the mean over the samples.

    Samples whose answer is read from no patch (nothing is there) count for no target share.
    """
    taus, overlaps = defaultdict(list), defaultdict(list)
    targets: dict[str, dict[str, list[Array]]] = defaultdict(lambda: defaultdict(list))
    for item, found in scored(folder, samples):
        for rule, scores in found.items():
            kept = {share: in_top(scores, share) for share in TOP_SHARES}
            if item.targets:
                for share in TOP_SHARES:
                    share_in = kept[share][:, list(item.targets)].mean(1)
                    targets[rule][str(share)].append(share_in)
            if rule in ATTENTION_RULES:
                taus[rule].append(tau_matrix(scores))
                overlaps[rule].append(overlap_matrix(kept[TOP_SHARES[0]]))
    return {
        "tau": {rule: np.mean(each, 0).tolist() for rule, each in taus.items()},
        "tau_half_interval": {
            rule: float(np.max(Z95 * np.std(each, 0, ddof=1)) / len(each) ** 0.5)
            for rule, each in taus.items()
        },
        "overlap": {rule: np.mean(each, 0).tolist() for rule, each in overlaps.items()},
        "targets": {
            rule: {share: np.mean(each, 0).tolist() for share, each in by_share.items()}
            for rule, by_share in targets.items()
        },
    }


@dataclass(frozen=True)
class Pair:
    """Two schedules of equal counts that differ in how often they rank."""

    form: str
    budget: float
    each: Schedule
    once: Schedule


def rank_once(schedule: Schedule) -> Schedule:
    """Return the schedule with the order of its first cut at every later one."""
    rules = (schedule.rules[0], *[RankRule.parse("previous")] * (len(schedule.rules) - 1))
    return replace(schedule, name=f"{schedule.name}-once", rules=rules, method="explicit")


def pairs(geometry: ModelGeometry) -> list[Pair]:
    """Return what is compared: every form at every budget, ranked by ``last``."""
    found = []
    for form in COMPARED:
        for budget in BUDGETS:
            schedule = FORMS[form](geometry, budget)
            found.append(Pair(form, budget, schedule, rank_once(schedule)))
    return found


def right_answers(
    engine: Engine, split: str, n: int, schedules: list[Schedule]
) -> tuple[Mask, npt.NDArray[np.str_]]:
    """Return which questions are answered right, ``[schedules, n]``, and their kinds, ``[n]``."""
    right: list[Mask] = []
    kinds: list[str] = []
    begun = time.monotonic()
    for first in range(0, n, SCENES_PER_BATCH):
        samples = [demo.sample(split, i) for i in range(first, min(n, first + SCENES_PER_BATCH))]
        asked = [(sample, schedule) for schedule in schedules for sample in samples]
        told = engine.answers(asked)
        same = [answer == sample.answer for (sample, _), answer in zip(asked, told, strict=True)]
        right.append(np.array(same).reshape(len(schedules), len(samples)))
        kinds += [sample.kind for sample in samples]
        say(f"{split}: {first + len(samples)} of {n} in {time.monotonic() - begun:.0f} s")
    return np.concatenate(right, 1), np.array(kinds)


def paired_interval(gain: Array) -> tuple[float, float]:
    """Return the 95% interval of the mean of ``[n]`` paired differences (bootstrap, one seed)."""
    rng = np.random.default_rng(0)
    means = [rng.choice(gain, len(gain)).mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def describe(pair: Pair, each: Mask, once: Mask, kinds: npt.NDArray[np.str_]) -> dict[str, Any]:
    """Return one comparison for the results file; all arrays are ``[n]``, the masks right answers."""
    gain = each.astype(np.float64) - once
    low, high = paired_interval(gain)
    counts = pair.each.counts(VISION_TOKENS)
    return {
        "form": pair.form,
        "budget": pair.budget,
        "cuts": {str(cut): counts[cut] for cut in pair.each.cuts},
        "each": float(each.mean()),
        "once": float(once.mean()),
        "gain": float(gain.mean()),
        "low": low,
        "high": high,
        "gain_by_kind": {kind: float(gain[kinds == kind].mean()) for kind in KINDS},
    }


def compare(folder: Path, split: str, n: int, dtype: str | None) -> dict[str, Any]:
    """Answer ``n`` questions in the engine under every schedule and describe every pair."""
    shape = make_shape("demo", Path(), folder, has_gpu=False, dtype=dtype)
    table = pairs(shape.geometry)
    schedules = [full(shape.geometry)]
    schedules += [schedule for pair in table for schedule in (pair.each, pair.once)]
    right, kinds = right_answers(Engine(shape), split, n, schedules)
    rows = zip(table, right[1::2], right[2::2], strict=True)
    return {
        "dtype": shape.dtype,
        "full": float(right[0].mean()),
        "pairs": [describe(pair, each, once, kinds) for pair, each, once in rows],
    }


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
    lines = [
        "| form | budget | tokens from each cut | once | each | each - once"
        f" | {' | '.join(KINDS)} |",
        f"|{'---|' * (6 + len(KINDS))}",
    ]
    for row in compared:
        cuts = ", ".join(f"{layer}: {count}" for layer, count in row["cuts"].items())
        cells = [row["form"], str(row["budget"]), cuts, f"{row['once']:.3f}", f"{row['each']:.3f}"]
        if len(row["cuts"]) == 1:
            cells += ["one cut: the same", *[""] * len(KINDS)]
        else:
            cells.append(f"{row['gain']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]")
            cells += [f"{row['gain_by_kind'][kind]:+.3f}" for kind in KINDS]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render(results: dict[str, Any]) -> str:
    """Return all tables as markdown."""
    meta, layers, engine = results["meta"], results["layers"], results["engine"]
    split = meta["split"]
    parts = [
        f"Measured {meta['date']} on {meta['cpu']}, commit {meta['commit']}.",
        f"Kendall's tau-b between the layers' rankings of {VISION_TOKENS} vision tokens, mean over"
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
        image = panel.imshow(tau, cmap="RdBu", vmin=-1, vmax=1)
        for (row, column), value in np.ndenumerate(tau):
            ink = "white" if abs(value) > ALIKE else "black"
            panel.text(column, row, f"{value:.2f}", ha="center", va="center", size=6, color=ink)
        panel.set(title=rule, xlabel="layer", xticks=range(len(tau)), yticks=range(len(tau)))
    panels[0].set_ylabel("layer")
    figure.colorbar(image, ax=panels, shrink=0.8, label="Kendall's tau")
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = BytesIO()
    figure.savefig(pixels, dpi=90)
    Image.open(pixels).convert("RGB").quantize(256).save(path, optimize=True)  # half the size


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rankings", description=__doc__)
    parser.add_argument("--split", choices=demo.SPLITS, default="test")
    parser.add_argument("--samples", type=int, default=500, help="for the rankings by layer")
    parser.add_argument("--n", type=int, default=1000, help="questions to the engine")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rankings.json"))
    parser.add_argument("--figure", type=Path, default=Path("docs/assets/rankings-tau.png"))
    parser.add_argument("--checkpoint", type=Path, default=demo.CHECKPOINT)
    parser.add_argument("--dtype", help="of the engine, as in benchmarks.accuracy")
    parser.add_argument("--table", type=Path, help="print the tables of a results file and end")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Measure, write JSON, markdown and the heat map, print the tables."""
    options = parse(arguments)
    if options.table:
        print(render(json.loads(options.table.read_text())))
        return
    meta = measured_with(options)
    meta |= {name: meta["options"][name] for name in ("split", "samples", "n")}
    samples = [demo.sample(options.split, i) for i in range(options.samples)]
    layers = measure_layers(options.checkpoint, samples)
    say(f"{options.split}: ranked at every layer, {options.samples} samples")
    engine = compare(options.checkpoint, options.split, options.n, options.dtype)
    results = rounded({"layers": layers, "engine": engine}) | {"meta": meta}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(render(results) + "\n")
    draw(results["layers"], options.figure)
    print(render(results))


if __name__ == "__main__":
    main()
