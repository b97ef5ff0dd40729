"""A model that answers by a simple law, as an Evaluator: search tests without an engine.

Each item needs vision tokens up to some layer, fewer the deeper, and each rank rule keeps the right
ones to some degree. All of it is drawn from the item's id, so answers are the same in every process.
With fewer tokens anywhere, or a cut moved towards the input, no wrong answer becomes right.
"""

import hashlib
import math
import random
import time
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from vtr_vllm.adaptive import Prompt
from vtr_vllm.errors import EvaluationFailed
from vtr_vllm.schedules import ModelGeometry, RankRule, make_plan
from vtr_vllm.search.answers import Answer, Batch, GeneratedToken, Task
from vtr_vllm.search.calibration import Dataset, Item, write_items
from vtr_vllm.search.candidates import Candidate
from vtr_vllm.search.journal import Journal
from vtr_vllm.search.progress import Progress
from vtr_vllm.search.study import Study
from vtr_vllm.search_options import Kind, Objective, SearchOptions

PLACES = 64
"""Requests that run at once, as in an engine."""

QUALITY: Mapping[str, float] = {
    "instruction-norope": 0.9,
    "instruction": 0.85,
    "last-norope": 0.8,
    "last": 0.75,
    "last-norope-prior": 0.72,
    "last-prior": 0.7,
    "cls": 0.6,
    "cls-spread": 0.58,
    "cls-rows": 0.35,
    "self": 0.65,
    "saliency": 0.55,
    "orthogonal": 0.5,
    "diverse": 0.45,
    "grid": 0.4,
    "prefix": 0.2,
    "random": 0.3,
}
"""Share of a rule's kept tokens that are of use, before layer 0; it rises with depth, up to 1.
Heads merged by maximum take .05 away; the second of two heads is worth nothing, and takes .08 away."""

_ANSWERS = ("red", "green", "blue", "dark red", "dark green", "dark blue")
_SURE = 0.95  # of the probability, shared by right and wrong token; .02 is on no listed token
_REST = {" maybe": 0.015, " some": 0.01, " no": 0.005}


@dataclass(frozen=True)
class Needs:
    """What it takes to answer an item."""

    first: float
    """Tokens of use needed at layer 0, as a share of all; from there they fall to none."""
    until: float
    """The depth, as a share of the layers, from which no vision token is needed."""
    hopeless: bool
    """Wrong even without reduction."""
    wrong: str
    """What is answered instead of the right answer."""


def right_answer(item: Item) -> str:
    """What the law holds for right, also where the file does not say it."""
    number = int(item.id.removeprefix("item-"))
    return item.answers[0] if item.answers else _ANSWERS[number % len(_ANSWERS)]


@cache
def needs(item: Item) -> Needs:
    """The law of one item."""
    draw = random.Random(hashlib.sha256(item.id.encode()).digest())
    others = [answer for answer in _ANSWERS if answer != right_answer(item)]
    return Needs(
        first=draw.uniform(0.05, 0.95) ** 2,
        until=draw.uniform(0.2, 1.0),
        hopeless=draw.random() < 0.1,
        wrong=draw.choice(others),
    )


class SimulatedEvaluator:
    """Answers by the law. ``n_vision`` has the prompts' sizes, which items take in turn.

    ``fail_on`` are the numbers of the runs, from 1, that raise EvaluationFailed; ``delay`` is what
    each run takes, in seconds; attention ranks half as well before the ``poor`` layers.
    """

    def __init__(
        self,
        layers: int = 5,
        n_vision: Sequence[int] = (16,),
        *,
        fail_on: Collection[int] = (),
        delay: float = 0.0,
        poor: Collection[int] = (),
        has_cls: bool = False,
        bands: Sequence[int] = (0, 2, 4),
    ) -> None:
        self.geometry = ModelGeometry(
            layers=layers, hidden_size=8, intermediate_size=16, heads=2, kv_heads=1, head_dim=4
        )
        self.versions = {"model": "simulated", "dtype": "none"}
        self.has_cls = has_cls
        self.band_starts = tuple(bands)
        self.runs = 0
        """Calls of ``run``."""
        self.tasks: list[Task] = []
        """Every task that was answered, in the order asked."""
        self.closed = False
        self._n_vision, self._fail_on = tuple(n_vision), fail_on
        self._delay, self._poor = delay, poor

    def run(self, tasks: Sequence[Task]) -> Batch:
        self.runs += 1
        if self.runs in self._fail_on:
            raise EvaluationFailed(f"run {self.runs} failed, as it was told to")
        time.sleep(self._delay)
        self.tasks += tasks
        steps = math.ceil(len(tasks) / PLACES)
        return Batch(tuple(self.answer(task) for task in tasks), len(tasks), steps * PLACES)

    def prompts(self, items: Sequence[Item]) -> list[Prompt]:
        """Words tell until which depth vision tokens are needed, in eighths."""
        size = self._n_vision
        return [
            Prompt(
                (1, 2, 3 + int(8 * needs(item).until), 100 + item.line),
                (size[item.line % len(size)],),
            )
            for item in items
        ]

    def close(self) -> None:
        self.closed = True

    def answer(self, task: Task) -> Answer:
        """The answer by itself, counted nowhere."""
        item = task.item
        n_vision = self._n_vision[item.line % len(self._n_vision)]
        sure = self._right(task.candidate, item, n_vision)
        words, steps = [], []
        right, wrong = right_answer(item).split(), needs(item).wrong.split()
        said = right if sure >= _SURE / 2 else wrong
        alike = True  # as far as the right answer and the wrong one are the same
        for place, word in enumerate([*said, "</s>"]):
            one, other = (_token([*w, "</s>"], place) for w in (right, wrong))
            listed = {_token([*said, "</s>"], place): _SURE}
            if alike and one != other:
                listed = {one: sure, other: _SURE - sure}
                alike = False
            logprobs = {token: math.log(p) for token, p in (listed | _REST).items()}
            steps.append(GeneratedToken(_token([*said, "</s>"], place), logprobs))
            words.append(word)
        return Answer(" ".join(words[:-1]), tuple(steps), n_vision, 5 + len(item.question.split()))

    def _right(self, candidate: Candidate, item: Item, n_vision: int) -> float:
        """Probability of the right answer's first own token; at least half of _SURE if right."""
        law = needs(item)
        if law.hopeless:
            return 0.1
        margin = self._margin(candidate, law, n_vision)
        return _SURE * min(0.99, max(0.01, margin / (1 + margin)))

    def _margin(self, candidate: Candidate, law: Needs, n_vision: int) -> float:
        """Least ratio of tokens of use to tokens needed, over the layers."""
        layers = self.geometry.layers
        plan = make_plan(candidate.keep, candidate.rules, n_vision)
        alone = any(getattr(rule, "of_one_image", False) for rule in candidate.rules)
        if alone and not set(plan.cuts) <= set(self.band_starts):  # as an engine refuses it
            raise EvaluationFailed(f"cuts before layers {plan.cuts}, bands {self.band_starts}")
        rules = dict(zip(plan.cuts, plan.rules, strict=True))
        of_use = n_vision * candidate.image_scale
        margin = 100.0
        rule = RankRule.parse("random")
        for layer, count in enumerate(plan.counts):
            if layer in rules:
                rule = rule if rules[layer].name == "previous" else rules[layer]
                of_use = min(of_use, count * self.quality(rule, layer))
            needed = n_vision * law.first * (1 - layer / layers / law.until)
            if needed > 0:
                margin = min(margin, of_use / needed)
        return margin

    def quality(self, rule: RankRule, layer: int) -> float:
        """Share of the tokens kept by ``rule`` before ``layer`` that are of use."""
        text = str(rule).partition("+")[0]  # what is merged makes nothing better here
        text, _, heads = text.partition(":")
        base = QUALITY[text.removesuffix("-max")] - 0.05 * text.endswith("-max")
        if heads:
            base += 0.08 * (int(heads[0]) - int(heads[1])) / (int(heads[0]) + int(heads[1]))
        if rule.needs_attention and layer in self._poor:
            return base / 2
        return base + (1 - base) * layer / self.geometry.layers


def _token(words: Sequence[str], place: int) -> str:
    if place >= len(words):
        return "</s>"
    return words[place] if place == 0 or words[place] == "</s>" else f" {words[place]}"


def items(
    folder: Path, count: int, first: int = 0, name: str = "items.jsonl", answered: bool = True
) -> Dataset:
    """``count`` items in a file of ``folder``; different ``first`` for data without overlap."""
    left_out = () if answered else ("answers", "metric")
    rows = (_row(number) for number in range(first, first + count))
    write_items(folder / name, ({k: v for k, v in r.items() if k not in left_out} for r in rows))
    return Dataset.load(folder / name)


def study(
    evaluator: SimulatedEvaluator,
    dataset: Dataset,
    objective: Objective = "accuracy",
    journal: str = "sqlite://",
) -> Study:
    """A study by the law; its journal, by itself, is in memory."""
    rows = Journal(journal, "simulated", evaluator.versions, 0)
    return Study(evaluator, dataset, rows, objective, Progress())


def _row(number: int) -> dict[str, object]:
    image = Image.new("RGB", (4, 4), (number % 256, number // 256, 99))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return {
        "id": f"item-{number}",
        "image": f"data:image/png;base64,{b64encode(buffer.getvalue()).decode()}",
        "question": "What color is it?",
        "answers": [_ANSWERS[number % len(_ANSWERS)]],
        "metric": "exact_match",
        "kind": "plain" if number % len(_ANSWERS) < 3 else "dark",
    }


def options(kind: Kind = "all", **given: Any) -> SearchOptions:
    """What is asked of a search of the simulated model."""
    return SearchOptions(kind=kind, model="simulated", data="items.jsonl", **given)
