"""Conformance of every rank rule that is found, and how one is found."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.vtr_vllm.ranking.by_itself import score
from tests.vtr_vllm.ranking.given import PREFIX, ROWS, VISION, at_rows, at_tokens, inputs
from vtr_vllm.ranking import RULES, Need, rules
from vtr_vllm.ranking.request_rule import RequestRule

ROOT = Path(__file__).parents[3]
FORMS = [rule for kind in RULES.values() for rule in kind.forms()]
ALL = [rule for rule in FORMS if Need.MODULES not in rule.needs]
"""Without those that trained modules score: ``tests/vtr_vllm/engine/worker/test_modules.py``."""


@pytest.mark.parametrize("rule", ALL, ids=str)
@pytest.mark.parametrize(("generated", "prefix"), [(0, 0), (3, 0), (0, PREFIX), (3, PREFIX)])
def test_scores_are_finite_float32_rows_and_the_same_again(rule, generated, prefix):
    given = inputs(generated, prefix)
    scores = score(rule, given)
    assert scores.shape == (ROWS - prefix + generated,)
    assert scores.dtype == torch.float32
    assert scores.isfinite().all()
    assert len(set(at_tokens(scores, given).tolist())) > 1
    assert torch.equal(scores, score(rule, inputs(generated, prefix)))


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_generated_rows_change_nothing(rule):
    plain, resumed = inputs(), inputs(generated=5)
    torch.testing.assert_close(
        at_tokens(score(rule, plain), plain), at_tokens(score(rule, resumed), resumed)
    )


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_a_warm_prefix_ranks_as_a_cold_one(rule):
    cold, warm = inputs(), inputs(prefix=PREFIX)
    torch.testing.assert_close(
        at_tokens(score(rule, cold), cold), at_tokens(score(rule, warm), warm)
    )


@pytest.mark.parametrize("rule", ALL, ids=str)
def test_tokens_that_earlier_cuts_took_leave_rows_that_still_line_up(rule):
    """A score belongs to its token, whichever others are left; but where attention or states are read,
    it comes of those that are there."""
    given = inputs()
    left = torch.tensor([row for row, number in enumerate(VISION) if number not in (1, 4, 5)])
    kept = at_rows(given, left)
    scores = score(rule, kept)
    assert scores.shape == (len(left),)
    if not rule.needs & {Need.ATTENTION, Need.STATES}:
        assert torch.equal(
            at_tokens(scores, kept), score(rule, given)[left][given.vision[left] >= 0]
        )


@pytest.mark.parametrize("rule", FORMS, ids=str)
def test_the_text_of_every_form_round_trips(rule):
    assert type(rule).parse(str(rule)) == rule


def test_a_rule_of_requests_is_given_no_attention():
    with pytest.raises(TypeError, match="AttentionRule"):

        class Stare(RequestRule):
            needs = frozenset({Need.ATTENTION})


def test_each_rule_lies_in_the_file_of_its_name():
    for name, kind in RULES.items():
        assert kind.__module__ == f"{rules.__name__}.{name}"


EDGE = """
from vtr_vllm.ranking.request_rule import RequestRule
from vtr_vllm.ranking.rule import Need

class Edge(RequestRule):
    name = "edge"
    needs = frozenset({Need.EMBEDDINGS})
    sees_question = False

    def score(self, inputs):
        return inputs.of_tokens(-inputs.embeddings[:, 0])
"""

USE = """
import torch
from tests.vtr_vllm.ranking.given import inputs
from vtr_vllm.schedules import make_plan, parse_wire
keep, parsed = parse_wire({"vtr_keep": [0.5, 0.5], "vtr_rules": ["edge"]}, 2)
rule, = make_plan(keep, parsed, 8).rules
given = inputs()
assert torch.equal(rule.score(given), given.of_tokens(-given.embeddings[:, 0]))
"""


def test_a_file_in_the_folder_is_all_that_a_rule_takes(tmp_path):
    """Requests can name it, it is planned, and it scores, without another line anywhere."""
    package = tmp_path / "vtr_vllm"
    for part in ("ranking", "schedules"):
        shutil.copytree(ROOT / "vtr_vllm" / part, package / part)
    for file in ("__init__.py", "errors.py", "upload.py", "whole_file.py"):
        shutil.copy(ROOT / "vtr_vllm" / file, package)
    (package / "ranking" / "rules" / "edge.py").write_text(EDGE)
    paths = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-c", USE]
    subprocess.run(command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": paths}, check=True)
