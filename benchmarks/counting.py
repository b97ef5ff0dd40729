"""An arm that runs requests whose counts the model finds, and then the same with these counts known."""

from __future__ import annotations

from typing import Any

from benchmarks.worker import Worker, main
from vtr_vllm.engine.frontend.first_tokens import collect_first_tokens
from vtr_vllm.ranking import Need
from vtr_vllm.schedules import KEEP_KEY, RULES_KEY, RankRule, make_plan, to_wire

INSTRUCTION = RankRule.parse("instruction")


class Counting(Worker):
    """``measure`` learns the counts of each request; with ``spec['known']`` these are given beforehand."""

    def __init__(self, setup: dict[str, Any]) -> None:
        super().__init__(setup)
        self.counts: dict[int, tuple[int, ...]] = {}

    def measure(self, spec: dict[str, Any]) -> dict[str, object]:
        """Those of ``Worker``, and ``counts`` of each request."""
        own = range(spec["first"], spec["first"] + spec["requests"])
        if spec.pop("known"):
            spec["wires"] = [known(spec["wire"], self.counts[index]) for index in own]
            return super().measure(spec)
        with collect_first_tokens() as first:
            result = super().measure(spec)
        for index in own:
            found = first.counts(f"r{index}")
            assert found is not None, "every request has an adaptive cut"
            self.counts[index] = found
        return result | {"counts": [self.counts[index] for index in own]}


def known(wire: dict[str, Any], counts: tuple[int, ...]) -> dict[str, Any]:
    """``wire`` with the counts that its adaptive cuts found."""
    rules = [RankRule.parse(rule) for rule in wire[RULES_KEY]]
    n_vision = counts[0]  # no adaptive cut lies before layer 0
    plan = make_plan(wire[KEEP_KEY], rules, n_vision).settled(counts)
    # What modules cost to ask is part of what it costs to find counts by them.
    plain = [INSTRUCTION if Need.MODULES in rule.needs else rule for rule in plan.rules]
    return to_wire([count / n_vision for count in counts], plain)


if __name__ == "__main__":
    main(Counting)
