"""Scoring candidates on calibration data: with the journal, reuse, and early stopping."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, islice, pairwise
from operator import itemgetter
from time import monotonic

from vtr_vllm.adaptive import Prompt
from vtr_vllm.errors import ConfigurationError, EvaluationFailed, TimeLimitReached
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.search.answers import Answer, Evaluator, GeneratedToken, Task
from vtr_vllm.search.calibration import Dataset, Item
from vtr_vllm.search.candidates import Candidate, unreduced
from vtr_vllm.search.evaluation import Evaluation
from vtr_vllm.search.journal import Begun, Journal, Key, Measured
from vtr_vllm.search.outcomes import Outcome, best_utility, outcome
from vtr_vllm.search.progress import Progress
from vtr_vllm.search_options import Objective

BLOCK = 100
"""Items of one evaluation: a candidate is stopped, and a killed search resumes, between blocks."""

SMALL_BLOCKS = (50, 25)
"""Of smaller data sets: the first of which there are four, so that stopping early still saves most of it."""

TOGETHER = 16
"""Blocks of one candidate each in one batch, at most: what a killed search may lose."""


@dataclass
class Cost:
    """What a stage of a search took."""

    evaluations: int = 0
    """Candidates asked about."""
    reused: int = 0
    """Of them, those whose every answer was there already."""
    stopped: int = 0
    """Of them, those given up early."""
    requests: int = 0
    """Requests run, this time or before an interruption."""
    naive_requests: int = 0
    """Requests without reuse and early stopping: every candidate asked about, on every item."""
    seconds: float = 0.0
    busy: float = 0.0
    room: float = 0.0

    @property
    def occupancy(self) -> float:
        """Mean share of the engines' places that were taken."""
        return self.busy / self.room if self.room else 0.0


class Study:
    """One model, one data set, one objective; raises EvaluationFailed when the engine fails.

    ``dataset`` is cut into blocks of BLOCK items, or fewer of a small one (the last may be shorter). Every candidate's
    evaluation on a block is a row of the journal; none is run twice. From ``until`` on, in
    monotonic seconds, nothing new is run: TimeLimitReached is raised instead.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        dataset: Dataset,
        journal: Journal,
        objective: Objective,
        progress: Progress,
        until: float = math.inf,
    ) -> None:
        self._until = until
        self.dataset, self.objective, self.progress = dataset, objective, progress
        self.costs: dict[str, Cost] = {}
        self._evaluator, self._journal = evaluator, journal
        self._size = _block_size(len(dataset))
        edges = [*range(0, len(dataset), self._size), len(dataset)]
        self._blocks = [
            _Block(
                first,
                dataset.items[first:last],
                Dataset(dataset.path, dataset.items[first:last]).sha256,
            )
            for first, last in pairwise(edges)
        ]
        self._seen: set[Key] = set()
        self._steps: dict[str, list[tuple[GeneratedToken, ...]]] = {}

    @property
    def geometry(self) -> ModelGeometry:
        """The model's geometry."""
        return self._evaluator.geometry

    @property
    def versions(self) -> Mapping[str, str]:
        """What the answers depend on beside candidate and item."""
        return self._evaluator.versions

    @property
    def has_cls(self) -> bool:
        """Whether the rank rule ``cls`` can be tried."""
        return self._evaluator.has_cls

    @property
    def band_starts(self) -> tuple[int, ...]:
        """First layer of each of the engine's KV bands."""
        return self._evaluator.band_starts

    @cached_property
    def n_vision(self) -> int:
        """Vision tokens of a prompt: of the largest, where prompts differ."""
        return max(n_vision for n_vision, _ in self._prompts)

    @cached_property
    def n_text(self) -> int:
        """Median number of prompt tokens that are no vision tokens."""
        return sorted(n_text for _, n_text in self._prompts)[len(self._prompts) // 2]

    @cached_property
    def same_n_vision(self) -> int | None:
        """Vision tokens of every prompt; None where prompts differ."""
        return self.n_vision if len({n for n, _ in self._prompts}) == 1 else None

    @cached_property
    def _prompts(self) -> list[tuple[int, int]]:
        self.evaluate("unreduced", [unreduced(self.geometry)])
        key = unreduced(self.geometry).key
        found = [self._journal.find(Key(key, block.sha256)) for block in self._blocks]
        prompts = [(n, m) for part in found if part for _, n, m in part.answers or ()]
        if max(n for n, _ in prompts) < 1:
            raise ConfigurationError(
                f"no prompt of {self.dataset.path} has a vision token; check that the model is a"
                " vision-language model and that its chat template takes the image"
            )
        return prompts

    @cached_property
    def prompts(self) -> list[Prompt]:
        """What a chooser sees of each item's prompt; nothing of it is run."""
        return self._evaluator.prompts(self.dataset.items)

    def part(self, items: Sequence[int]) -> "Study":
        """The same on some of the items, by their indices; what it costs counts here too."""
        chosen = Dataset(self.dataset.path, tuple(self.dataset.items[index] for index in items))
        study = Study(
            self._evaluator, chosen, self._journal, self.objective, self.progress, self._until
        )
        study.costs = self.costs
        return study

    def unreduced(self, items: int | None = None) -> Evaluation:
        """The model without reduction, on the first ``items``; run once, then kept."""
        return self.evaluate("unreduced", [unreduced(self.geometry)], items)[0]

    def evaluate(
        self,
        stage: str,
        candidates: Sequence[Candidate],
        items: int | None = None,
        floor: float | None = None,
    ) -> list[Evaluation]:
        """Score candidates on the first ``items``, in whole blocks (None: all), together.

        With a ``floor``, a candidate is given up once it cannot reach that value any more, or hardly
        will, by its differences to the unreduced model so far.
        """
        blocks = [block for block in self._blocks if items is None or block.first < items]
        asked = sum(len(block.items) for block in blocks)
        cost = self.costs.setdefault(stage, Cost())
        unique = list(dict.fromkeys(candidates))
        known = {candidate: self._known(candidate, blocks) for candidate in unique}
        cost.evaluations += len(candidates)
        cost.reused += len(candidates) - len(unique) + sum(known.values())
        cost.naive_requests += len(candidates) * asked
        found: dict[Candidate, list[Outcome]] = {candidate: [] for candidate in unique}
        alive, left = unique, list(blocks)
        full = [] if floor is None else self._unreduced_on(blocks)
        while alive and left:
            count = max(1, TOGETHER // len(alive))
            if floor is not None:
                scored = [self._evaluation(c, found, asked) for c in alive]
                count = min(count, _blocks_it_lasts(scored, floor, self._size))
                count = min(count, max(1, len(blocks) - len(left)))  # no more at once than so far
            together, left = left[:count], left[count:]
            self._run_blocks(stage, together, alive, cost)
            for block in together:  # what was run of one that is given up meanwhile does not count
                for candidate in alive:
                    found[candidate] += self._outcomes(candidate, block)
                if floor is not None:
                    scored = [self._evaluation(c, found, asked) for c in alive]
                    alive = [e.candidate for e in scored if e.highest(full) >= floor]
        evaluations = {c: self._evaluation(c, found, asked) for c in unique}
        cost.stopped += sum(not evaluation.complete for evaluation in evaluations.values())
        return [evaluations[candidate] for candidate in candidates]

    def race(
        self, stage: str, candidates: Sequence[Candidate], rungs: Sequence[tuple[int, int]]
    ) -> list[Evaluation]:
        """Successive halving: each rung ``(items, survivors)`` scores those who are left.

        Returns the survivors of the last rung, best first; ties go to the earlier candidate.
        """
        left = list(dict.fromkeys(candidates))
        ranked: list[Evaluation] = []
        for items, survivors in rungs:
            scored = self.evaluate(stage, left, items)
            ranked = sorted(scored, key=lambda e: -e.value)[:survivors]
            left = [evaluation.candidate for evaluation in ranked]
        return ranked

    def _unreduced_on(self, blocks: Iterable["_Block"]) -> list[Outcome]:
        """The unreduced model's outcomes on those of ``blocks`` of which they are known."""
        measured = [self._find(unreduced(self.geometry), block) for block in blocks]
        return [Outcome(*values) for each in measured if each for values in each.outcomes]

    def _evaluation(
        self, candidate: Candidate, found: Mapping[Candidate, list[Outcome]], asked: int
    ) -> Evaluation:
        groups = self.dataset.groups[:asked]
        return Evaluation(candidate, tuple(found[candidate]), asked, self.objective, groups)

    def _known(self, candidate: Candidate, blocks: Iterable["_Block"]) -> bool:
        return all(Key(candidate.key, block.sha256) in self._seen for block in blocks)

    def _outcomes(self, candidate: Candidate, block: "_Block") -> list[Outcome]:
        measured = self._find(candidate, block)
        if measured is None:
            raise EvaluationFailed(f"candidate {candidate.key} was not evaluated")
        return [Outcome(*values) for values in measured.outcomes]

    def _run_blocks(
        self, stage: str, blocks: Sequence["_Block"], candidates: Sequence[Candidate], cost: Cost
    ) -> None:
        """Run what the journal does not have; what it has counts as run, once."""
        # the unreduced answers come first: the others are compared with them
        wanted = dict.fromkeys([unreduced(self.geometry), *candidates])
        pairs = [(block, candidate) for block in blocks for candidate in wanted]
        missing = [(block, c) for block, c in pairs if self._find(c, block) is None]
        for first in range(0, len(missing), TOGETHER):
            together = missing[first : first + TOGETHER]
            self._run(stage, together)
            for block, candidate in together:
                self._account(candidate, block, cost)
        for block, candidate in pairs:
            self._account(candidate, block, cost)

    def _find(self, candidate: Candidate, block: "_Block") -> Measured | None:
        return self._journal.find(Key(candidate.key, block.sha256))

    def _account(self, candidate: Candidate, block: "_Block", cost: Cost) -> None:
        """Count an evaluation once, whether it ran now or before an interruption."""
        key, measured = Key(candidate.key, block.sha256), self._find(candidate, block)
        if measured is None or key in self._seen:
            return
        self._seen.add(key)
        cost.requests += len(block.items)
        cost.seconds += measured.seconds
        cost.busy += measured.busy
        cost.room += measured.room
        self.progress.ran(len(block.items), measured.seconds)

    def _run(self, stage: str, pairs: Sequence[tuple["_Block", Candidate]]) -> None:
        """Run pairs, of which those of one block stand together, in one batch."""
        if monotonic() >= self._until:
            raise TimeLimitReached("the time limit is reached; the same command goes on from here")
        begun = [Begun(c, block.sha256, block.first, len(block.items)) for block, c in pairs]
        ids = self._journal.begin(stage, begun)
        by_block = [
            (block, [candidate for _, candidate in group])
            for block, group in groupby(pairs, key=itemgetter(0))
        ]
        tasks = [
            Task(candidate, item)
            for block, candidates in by_block
            for item in block.items
            for candidate in candidates
        ]
        start = monotonic()
        try:
            batch = self._evaluator.run(tasks)
        except EvaluationFailed as err:
            self._journal.fail(ids, str(err))
            raise
        seconds, answers = monotonic() - start, iter(batch.answers)
        measured = []
        for block, candidates in by_block:
            own = list(islice(answers, len(block.items) * len(candidates)))
            share = len(block.items) / len(tasks)
            facts = (seconds * share, batch.busy * share, batch.room * share)
            for index, candidate in enumerate(candidates):
                measured.append(
                    self._measured(block, candidate, own[index :: len(candidates)], facts)
                )
        self._journal.finish(ids, measured)

    def _measured(
        self,
        block: "_Block",
        candidate: Candidate,
        answers: Sequence[Answer],
        facts: tuple[float, float, float],
    ) -> Measured:
        """The outcomes of a candidate on a block; ``facts``: its seconds, busy and room."""
        kept = None
        if candidate == unreduced(self.geometry):
            kept = [_pack(answer) for answer in answers]
            self._steps[block.sha256] = [answer.steps for answer in answers]
        outcomes = _judge(block.items, answers, self._unreduced_steps(block))
        return Measured(outcomes, kept, *facts)

    def _unreduced_steps(self, block: "_Block") -> list[tuple[GeneratedToken, ...]]:
        if block.sha256 not in self._steps:
            measured = self._find(unreduced(self.geometry), block)
            packed = (measured.answers if measured else None) or []
            self._steps[block.sha256] = [
                tuple(GeneratedToken(token, logprobs) for token, logprobs in steps)
                for steps, _, _ in packed
            ]
        return self._steps[block.sha256]


@dataclass(frozen=True, eq=False)
class _Block:
    first: int
    items: tuple[Item, ...]
    sha256: str


def _block_size(items: int) -> int:
    sizes = (BLOCK, *SMALL_BLOCKS)
    return next((size for size in sizes if 4 * size <= items), min(sizes))


def _blocks_it_lasts(scored: Sequence[Evaluation], floor: float, size: int) -> int:
    """Blocks of ``size`` after which, at the rate so far, the first of ``scored`` can be given up; 1 or more."""
    left = []
    for evaluation in scored:
        done = len(evaluation.outcomes)
        if not done:
            return 1
        best = best_utility(evaluation.objective)
        lost = best - evaluation.value
        if lost > 0:
            # a floor below all values is never reached: the items end first
            items = min(evaluation.asked, (best - floor) * evaluation.asked / lost)
            left.append(math.ceil((items - done) / size))
    return max(1, min(left, default=TOGETHER))


def _judge(
    items: Sequence[Item], answers: Sequence[Answer], steps: Sequence[tuple[GeneratedToken, ...]]
) -> list[list[float]]:
    judged = [outcome(*triple) for triple in zip(items, answers, steps, strict=True)]
    return [[o.score, o.logprob, o.divergence] for o in judged]


def _pack(answer: Answer) -> list[object]:
    steps = [[step.token, dict(step.logprobs)] for step in answer.steps]
    return [steps, answer.n_vision, answer.n_text]
