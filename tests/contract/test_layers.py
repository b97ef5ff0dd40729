"""Imports go down only, and each library has its place."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.contract.layers import (
    ALLOWED,
    cycles,
    imports_of_other_processes,
    misplaced_libraries,
    part_of,
    upward_imports,
)
from tests.contract.source import ROOT, code_files


def test_imports_go_down_only() -> None:
    assert upward_imports(code_files()) == []


def test_a_process_of_the_engine_imports_no_other() -> None:
    assert imports_of_other_processes(code_files()) == []


@pytest.mark.parametrize(
    ("path", "text", "found"),
    [
        ("vtr_vllm/engine/worker/a.py", "from vtr_vllm.engine.scheduler import kv_bands", True),
        ("vtr_vllm/engine/common/a.py", "import vtr_vllm.engine.worker.model", True),
        ("vtr_vllm/engine/frontend/a.py", "def f():\n    from ..worker import trace", True),
        ("vtr_vllm/engine/worker/a.py", "from vtr_vllm.engine.common import config", False),
        ("vtr_vllm/engine/worker/a.py", "from vtr_vllm.engine.worker import model", False),
        ("vtr_vllm/engine/register.py", "from vtr_vllm.engine.worker import model", False),
    ],
)
def test_an_import_of_another_process_is_found(path: str, text: str, found: bool) -> None:
    assert bool(imports_of_other_processes({path: text})) is found


def test_no_modules_import_each_other() -> None:
    assert cycles(code_files()) == []


def test_a_circle_is_found() -> None:
    files = {
        "vtr_vllm/a.py": "def late():\n    from vtr_vllm.b import x",
        "vtr_vllm/b.py": "import vtr_vllm.c",
        "vtr_vllm/c.py": "from vtr_vllm.a import y",
        "vtr_vllm/d.py": "import vtr_vllm.a",
    }
    assert cycles(files) == [["vtr_vllm.a", "vtr_vllm.b", "vtr_vllm.c", "vtr_vllm.a"]]
    assert cycles({"vtr_vllm/a.py": "import vtr_vllm.b", "vtr_vllm/b.py": ""}) == []


def test_libraries_stay_in_their_places() -> None:
    assert misplaced_libraries(code_files()) == []


def test_every_file_belongs_to_a_part_with_a_rule() -> None:
    assert {part_of(path) for path in code_files()} <= set(ALLOWED)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("vtr_vllm/errors.py", "import vtr_vllm.schedules.schedule"),
        ("vtr_vllm/schedules/cost.py", "from vtr_vllm.reduction.plan import Plan"),
        ("vtr_vllm/schedules/cost.py", "from vtr_vllm import reduction"),
        ("vtr_vllm/schedules/cost.py", "from ..reduction import plan"),
        ("vtr_vllm/reduction/plan.py", "def plan():\n    from vtr_vllm.engine import model"),
        (
            "vtr_vllm/reduction/plan.py",
            "if TYPE_CHECKING:\n    import vtr_vllm.engine.worker.model",
        ),
        ("vtr_vllm/reduction/plan.py", "importlib.import_module('vtr_vllm.engine.worker.model')"),
        ("vtr_vllm/engine/worker/model.py", "import vtr_server.admission"),
        ("vtr_vllm/engine/worker/model.py", "import vtr_vllm.search"),
        ("vtr_vllm/engine/worker/model.py", "import vtr_vllm.demo"),
        ("vtr_vllm/demo/model.py", "import vtr_vllm.engine"),
        ("vtr_vllm/search/run.py", "import vtr_server"),
        ("server/vtr_server/app.py", "from vtr_vllm.search import run"),
        ("server/vtr_server/app.py", "from vtr_vllm import search"),
        ("server/vtr_server/app.py", "import benchmarks.run"),
        ("vtr_vllm/unheard_of.py", "import vtr_vllm.errors"),
    ],
)
def test_an_import_upwards_is_found(path: str, text: str) -> None:
    assert len(upward_imports({path: text})) >= 1


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (
            "vtr_vllm/reduction/plan.py",
            "from vtr_vllm import errors\nfrom vtr_vllm.schedules import cost",
        ),
        (
            "vtr_vllm/engine/worker/model.py",
            "from .compat import patch\nfrom ..reduction import plan",
        ),
        (
            "server/vtr_server/app.py",
            "import vtr_vllm.engine.common.request_view\nfrom vtr_server.operations.metrics import Metrics",
        ),
        ("vtr_vllm/cli.py", "def search():\n    from vtr_vllm.search import run"),
    ],
)
def test_an_import_downwards_passes(path: str, text: str) -> None:
    assert upward_imports({path: text}) == []


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("vtr_vllm/demo/model.py", "import vllm"),
        ("vtr_vllm/reduction/plan.py", "def late():\n    from vllm.config import VllmConfig"),
        ("server/vtr_server/app.py", "from vllm import LLM"),
        ("server/vtr_server/app.py", "__import__('vllm')"),
        ("vtr_vllm/search/g_search.py", "import vllm.outputs"),
        ("vtr_vllm/cli.py", "import fastapi"),
        ("vtr_vllm/schedules/cost.py", "import torch"),
        ("vtr_vllm/__init__.py", "from torch import Tensor"),
        ("vtr_vllm/demo/__init__.py", "import vllm"),
    ],
)
def test_a_misplaced_library_is_found(path: str, text: str) -> None:
    assert len(misplaced_libraries({path: text})) == 1


def test_a_second_user_of_a_library_is_found() -> None:
    files = {
        "vtr_vllm/search/proposer.py": "import skopt",
        "vtr_vllm/search/run.py": "import skopt",
    }
    assert len(misplaced_libraries(files)) == 1


def test_schedules_and_the_names_of_rank_rules_are_read_without_torch() -> None:
    script = """
import sys
sys.modules["torch"] = sys.modules["numpy"] = None  # importing either fails
from vtr_vllm.schedules import RankRule, make_plan, parse_wire
from vtr_vllm.ranking import RULES
rules = [str(rule) for kind in RULES.values() for rule in kind.forms()]
assert "last-norope-max" in rules
assert [str(RankRule.parse(rule)) for rule in rules] == rules
make_plan(*parse_wire({"vtr_keep": [0.5], "vtr_rules": ["saliency"]}, 1), 10)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True)


def test_names_that_only_begin_alike_pass() -> None:
    files = {"vtr_vllm/schedules/cost.py": "import torchless\nimport vllm_other"}
    assert misplaced_libraries(files) == []
