from pathlib import Path

import pytest

from benchmarks.adaptive_cuts import modules, parse, schedule, table
from benchmarks.counting import known
from benchmarks.shapes import Shape, make_shape
from vtr_vllm.atp.artefact import Artefact
from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.schedules import ModelGeometry, explicit, make_plan

GEOMETRY = ModelGeometry(8, 64, 128, 4, 2, 16)


class _Shape:
    geometry = GEOMETRY


def adaptive():
    shape: Shape = _Shape()  # type: ignore[assignment]
    return schedule(shape, parse(["--cuts", "2", "5", "--share", "0.3"]))


def test_each_cut_keeps_a_share_of_what_the_last_one_may() -> None:
    made = adaptive()
    assert [str(rule) for rule in made.rules] == ["last@0.3"] * 2
    assert made.counts(100) == (100, 100, 80, 80, 80, 64, 64, 64)


@pytest.mark.parametrize(
    "counts", [(100, 100, 31, 31, 31, 9, 9, 9), (100, 100, 31, 31, 31, 31, 31, 31)]
)
def test_the_same_counts_are_given_beforehand(counts: tuple[int, ...]) -> None:
    wire = known(adaptive().wire(), counts)
    made = explicit(GEOMETRY, wire["vtr_keep"], wire["vtr_rules"])
    plan = make_plan(made.keep, made.rules, 100)
    assert plan.counts == counts
    assert not plan.is_adaptive


def test_a_ratio_is_of_the_two_of_a_pair() -> None:
    options = parse(["--concurrency", "1"])

    def pair(tokens, own, other):
        return {"concurrency": 1, "tokens": tokens, "same": True, "mean_keep": 0.5} | {
            "adaptive": {"wall_s": own, "kv": 3},
            "known": {"wall_s": other, "kv": 2},
        }

    rows = table([pair(1, 1.5, 1.0), pair(64, 4.0, 5.0)], options).splitlines()
    assert rows[2] == (
        "| 1 | 0.500 | 500.0 | 1.500 [1.500, 1.500] | 0.800 [0.800, 0.800] | 1.500 [1.500, 1.500] |"
    )
    assert rows[-1] == "Same tokens in 2 of 2 pairs."


def test_modules_are_of_the_model_that_is_measured(tmp_path: Path) -> None:
    shape = make_shape("llava", tmp_path, None, False, "float32")
    options = parse(["--cuts", "2", "5", "--modules"])
    facts = Artefact.load(modules(shape, options.cuts)).facts
    facts.check_geometry(shape.geometry)
    facts.check_checkpoint(checkpoint_digest(str(shape.model)))
    assert (facts.grid, facts.layers) == ((24, 24), (2, 5))
    made = schedule(shape, options)
    assert [str(rule) for rule in made.rules] == ["atp", "atp"]
    counts = (576,) * 2 + (200,) * 3 + (90,) * 19
    assert known(made.wire(), counts)["vtr_rules"] == ["instruction", "instruction"]
