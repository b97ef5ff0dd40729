"""What each event counts, that labels are bounded, that processes add up, that the docs agree."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.multiprocess import MultiProcessCollector

from tests.contract.source import ROOT
from tests.deploy import dashboards
from tests.deploy.tools import prometheus, rules, values
from tests.server.bad_input import chat_body
from tests.server.conftest import NAME, Server
from vtr_server.operations import adaptive_metrics, limit_metrics, metrics
from vtr_server.operations.outcomes import Outcome
from vtr_server.policy.vtr_answer import kind_of
from vtr_server.policy.vtr_field import VTRAnswer
from vtr_vllm.errors import InvalidBudget, Overloaded

DOCS = ROOT / "docs" / "metrics.md"


def observe(known: VTRAnswer, bands: tuple[int, ...] = ()) -> None:
    metrics.observe_prompt(known)
    metrics.observe_vision_work(known, bands)


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def told(budget: float, source: str = "p-sigmoid-default", vision_tokens: int = 100) -> VTRAnswer:
    return VTRAnswer(
        budget=budget,
        schedule=f"p-sigmoid-{budget}",
        source=source,
        vision_tokens=vision_tokens,
        kept_per_layer=[vision_tokens, vision_tokens, vision_tokens // 5, vision_tokens // 5],
        mean_keep=0.6,
        flops_fraction=0.5,
    )


def test_a_prompt_counts_tokens_and_their_layers() -> None:
    names = [f"vtr_vision_token{part}_total" for part in ("s", "_layers", "_layers_kept")]
    names += [
        f"vtr_{name}_{part}"
        for name in ("mean_keep", "flops_fraction")
        for part in ("sum", "count")
    ]
    before = [value(name) for name in names]
    observe(told(0.6))
    grown = [value(name) - old for name, old in zip(names, before, strict=True)]
    assert grown == pytest.approx([100, 400, 240, 0.6, 1, 0.5, 1])


def test_a_band_counts_what_its_first_layer_sees() -> None:
    states = [{"band": band, "state": state} for band in "01" for state in ("seen", "kept")]
    before = [value("vtr_band_vision_tokens_total", **labels) for labels in states]
    observe(told(0.6), (0, 2))
    after = [value("vtr_band_vision_tokens_total", **labels) for labels in states]
    assert [new - old for new, old in zip(after, before, strict=True)] == [100, 100, 100, 20]


@pytest.mark.parametrize(
    ("budget", "reuse", "kind"),
    [(0.5, True, "local"), (0.5, False, "guided"), (1.0, False, "full")],
)
def test_tokens_count_by_the_kind_of_their_schedule(budget: float, reuse: bool, kind: str) -> None:
    def counts() -> list[float]:
        states = ("seen", "returning", "cached")
        return [value("vtr_kind_vision_tokens_total", kind=kind, state=state) for state in states]

    before = counts()
    known = told(budget).model_copy(update={"reuse": reuse})
    metrics.observe_prompt(known, returning=80)
    metrics.observe_cached(64, kind_of(known))
    assert [new - old for new, old in zip(counts(), before, strict=True)] == [100, 80, 64]


def test_text_alone_does_not_count_as_kept_in_full() -> None:
    before = value("vtr_mean_keep_count")
    observe(told(1.0, "full", vision_tokens=0), (0, 2))
    assert value("vtr_mean_keep_count") == before


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("searched", "p-sigmoid-0.3"),  # a stored name, whatever it is
        ("interpolated", "interpolated"),
        ("inline", "inline"),
        ("built-in-form", "form"),
        ("p-sigmoid-default", "form"),
    ],
)
def test_names_that_clients_can_make_up_share_a_label(source: str, label: str) -> None:
    before = value("vtr_schedule_requests_total", schedule=label)
    metrics.observe_schedule("p-sigmoid-0.3", source)
    assert value("vtr_schedule_requests_total", schedule=label) == before + 1


def test_a_request_is_counted_at_its_end() -> None:
    labels = {"tier": "0.25", "source": "built-in-form"}
    names = [("vtr_requests_total", labels | {"outcome": end}) for end in ("ok", "timeout")]
    names += [
        ("vtr_key_requests_total", {"key": "team-a", "outcome": end}) for end in ("ok", "timeout")
    ]
    names += [("vtr_request_seconds_sum", {"tier": "0.25"})]
    before = [value(name, **given) for name, given in names]
    asked = {"tier": "0.25", "source": "built-in-form", "key": "team-a"}
    metrics.observe_outcome("ok", seconds=2.5, **asked)
    metrics.observe_outcome("timeout", seconds=600, **asked)
    grown = [value(name, **given) - old for (name, given), old in zip(names, before, strict=True)]
    assert grown == [1, 1, 1, 1, 2.5]


def test_what_was_never_known_has_a_label_too() -> None:
    series = [
        ("vtr_requests_total", {"tier": "-", "source": "-", "outcome": "refused"}),
        ("vtr_key_requests_total", {"key": "-", "outcome": "refused"}),
    ]
    before = [value(name, **labels) for name, labels in series]
    metrics.observe_outcome("refused")
    assert [value(name, **labels) for name, labels in series] == [old + 1 for old in before]


def test_a_hundred_keys_are_a_few_series_each() -> None:
    """The key is a label of its own counters alone: not times tiers, sources and outcomes."""
    before = series_count()
    names = [f"key-{number}" for number in range(100)]
    metrics.begin_keys(names)
    for name in names:
        for outcome in get_args(Outcome):
            for tier in ("full", "0.25", "0.5"):
                metrics.observe_outcome(outcome, tier=tier, source="searched", key=name)
        metrics.observe_prompt(told(0.5), name)
    assert series_count() - before <= 100 * 8 + 3 * 6


def series_count() -> int:
    return sum(
        not sample.name.endswith(("_created", "_bucket", "_sum", "_count"))
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name.startswith("vtr_")
    )


def test_a_known_key_has_its_series_before_its_first_request() -> None:
    """Or the rise from nothing to the first value would be in nobody's bill."""
    metrics.begin_keys(["new"])
    assert REGISTRY.get_sample_value("vtr_key_requests_total", {"key": "new", "outcome": "ok"}) == 0
    for state in ("seen", "kept"):
        labels = {"key": "new", "state": state}
        assert REGISTRY.get_sample_value("vtr_key_vision_tokens_total", labels) == 0


def test_vision_tokens_of_a_key_are_what_its_allowance_counts() -> None:
    labels = [{"key": "team-b", "state": state} for state in ("seen", "kept")]
    before = [value("vtr_key_vision_tokens_total", **each) for each in labels]
    metrics.observe_prompt(told(0.6), "team-b")
    after = [value("vtr_key_vision_tokens_total", **each) for each in labels]
    assert [new - old for new, old in zip(after, before, strict=True)] == [100, 60]


def test_a_first_token_is_timed_by_tier_and_of_streams_once_more() -> None:
    names = ["vtr_engine_first_token_seconds", "vtr_time_to_first_token_seconds"]
    before = [value(f"{name}_bucket", tier="full", le="0.5") for name in names]
    metrics.observe_first_token(0.4, "full", streamed=True)
    metrics.observe_first_token(0.3, "full", streamed=False)
    metrics.observe_first_token(0.6, "full", streamed=True)
    after = [value(f"{name}_bucket", tier="full", le="0.5") for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 1]


def test_jobs_and_background_tasks_are_counted_from_the_start() -> None:
    assert REGISTRY.get_sample_value("vtr_jobs_finished_total", {"state": "failed"}) is not None
    before = value("vtr_jobs_finished_total", state="failed")
    metrics.observe_jobs(queued=3, running=1)
    metrics.observe_job_end("failed")
    assert [value("vtr_jobs", state=state) for state in ("queued", "running")] == [3, 1]
    assert value("vtr_jobs_finished_total", state="failed") == before + 1
    metrics.observe_background("tidy", failures=0)
    failed = REGISTRY.get_sample_value("vtr_background_failures_total", {"task": "tidy"})
    assert failed is not None
    metrics.observe_background("tidy", failures=1)
    assert value("vtr_background_failures_total", task="tidy") == failed + 1


def test_a_refusal_is_counted_by_its_code() -> None:
    before = value("vtr_refused_requests_total", reason="invalid_budget")
    metrics.observe_refusal(InvalidBudget("budget 5 is not a number in (0, 1]"))
    assert value("vtr_refused_requests_total", reason="invalid_budget") == before + 1


def test_every_refusal_has_a_series_before_it_happens() -> None:
    name = "vtr_refused_requests_total"
    assert REGISTRY.get_sample_value(name, {"reason": Overloaded.code}) is not None


def test_a_rejected_reload_is_not_a_load() -> None:
    metrics.observe_schedules(4)
    loaded = value("vtr_schedules_loaded_timestamp_seconds")
    before = value("vtr_schedule_reloads_total", outcome="rejected")
    metrics.observe_reload("rejected")
    assert value("vtr_schedules_loaded_timestamp_seconds") == loaded > 1.7e9
    assert value("vtr_schedule_reloads_total", outcome="rejected") == before + 1
    assert value("vtr_schedules") == 4


def test_workers_tell_totals_and_a_new_start_is_no_fall() -> None:
    names = [
        "vtr_rank_seconds_total",
        "vtr_gather_seconds_total",
        "vtr_reduced_steps_total",
        "vtr_uncompiled_layers_total",
    ]
    metrics.observe_workers(0, 0, 0, 0)
    before = [value(name) for name in names]
    metrics.observe_workers(1.5, 0.5, 10, 2)
    metrics.observe_workers(2.0, 0.75, 12, 2)
    metrics.observe_workers(0.25, 0.25, 1, 1)  # the engine started anew
    grown = [value(name) - old for name, old in zip(names, before, strict=True)]
    assert grown == [2.25, 1.0, 13, 3]


def test_states_are_told_as_they_are() -> None:
    metrics.observe_kv(total=100, free=60, held=40, saved=25)
    metrics.observe_elastic(level=0.5, predicted=0.8, backlog=1200, objective=1.0)
    metrics.observe_ready(True)
    metrics.observe_info("0.3.0", "demo", "abc")
    kv = [value("vtr_kv_blocks", state=state) for state in ("total", "free", "held", "saved")]
    assert kv == [100, 60, 40, 25]
    assert value("vtr_elastic_level") == 0.5
    assert value("vtr_elastic_predicted_ttft_seconds") == 0.8
    assert value("vtr_elastic_backlog_token_layers") == 1200
    assert value("vtr_elastic_objective_seconds") == 1.0
    assert value("vtr_ready") == 1
    assert value("vtr_info", version="0.3.0", model="demo", fingerprint="abc") == 1
    before = value("vtr_elastic_steps_total", direction="down")
    metrics.observe_elastic_step("down")
    assert value("vtr_elastic_steps_total", direction="down") == before + 1


def test_no_label_takes_a_client_string() -> None:
    observe(told(0.123456789))
    metrics.observe_schedule("p-sigmoid-0.123456789", "p-sigmoid-default")
    samples = [sample for family in REGISTRY.collect() for sample in family.samples]
    ours = [sample for sample in samples if sample.name.startswith("vtr_")]
    assert ours
    assert not any("0.1234" in text for sample in ours for text in sample.labels.values())


WRITE = """
import sys
from vtr_server.operations import adaptive_metrics, limit_metrics, metrics
n = int(sys.argv[1])
metrics.observe_outcome("ok", tier="full", source="full", key="-", seconds=1.0)
metrics.observe_first_token(n, "full", streamed=True)
limit_metrics.observe_in_flight(1)
limit_metrics.observe_uploads(1)
metrics.observe_kv(total=100, free=100 - n, held=n, saved=0)
if n == 1:  # the first API server alone asks the engine
    metrics.observe_ready(True)
    metrics.observe_schedules(7)
metrics.observe_info("1", "demo", "abc")
metrics.observe_elastic(n / 10, n, n, 1.0)
print("told", flush=True)
sys.stdin.read()
"""


def test_two_processes_add_up(tmp_path: Path) -> None:
    """As vLLM's API servers do it: each writes its files, one collects them all."""
    given = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    writers = []
    try:
        for number in ("1", "2"):  # one after the other: the last one told is the one that counts
            writers.append(
                subprocess.Popen(
                    [sys.executable, "-c", WRITE, number],
                    env=given,
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                )
            )
            assert writers[-1].stdout is not None
            assert writers[-1].stdout.readline() == b"told\n"
        registry = CollectorRegistry()
        MultiProcessCollector(registry, path=str(tmp_path))
        text = generate_latest(registry).decode()
    finally:
        for writer in writers:
            writer.communicate(timeout=60)
    served = dict(re.findall(r"^(vtr_\S+(?:{.*})?) (\S+)$", text, re.MULTILINE))
    assert not any("pid=" in series for series in served)
    ok = 'vtr_requests_total{outcome="ok",source="full",tier="full"}'
    assert float(served[ok]) == 2
    assert float(served['vtr_time_to_first_token_seconds_sum{tier="full"}']) == 3
    assert float(served["vtr_in_flight_requests"]) == float(served["vtr_uploads"]) == 2
    assert float(served['vtr_kv_blocks{state="held"}']) == 2
    assert float(served["vtr_elastic_level"]) == 0.2
    assert float(served["vtr_ready"]) == 1, "one that never told must not hide what was told"
    assert float(served["vtr_schedules"]) == 7
    assert float(served['vtr_info{fingerprint="abc",model="demo",version="1"}']) == 1


def documented() -> dict[str, tuple[str, set[str]]]:
    """Name -> type and labels, from the tables of docs/metrics.md."""
    rows = re.findall(r"^\| `(vtr_\w+)` \| (\w+) \| [^|]+ \| ([^|]*) \|", DOCS.read_text(), re.M)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_docs_list_exactly_what_is_served() -> None:
    served = {}
    modules = (metrics, adaptive_metrics, limit_metrics)
    for metric in (value for module in modules for value in vars(module).values()):
        if isinstance(metric, MetricWrapperBase):
            name = metric._name + ("_total" if metric._type == "counter" else "")
            served[name] = (metric._type, set(metric._labelnames))
    families = {family.name for family in REGISTRY.collect() if family.name.startswith("vtr_")}
    assert {name.removesuffix("_total") for name in served} == families
    assert documented() == served


def test_units_are_in_the_names() -> None:
    rows = re.findall(r"^\| `(vtr_\w+)` \| \w+ \| ([^|]+) \|", DOCS.read_text(), re.M)
    assert rows
    for name, unit in rows:
        assert ("_seconds" in name) == (unit == "seconds"), (name, unit)


@pytest.mark.engine
def test_a_loaded_server_has_data_for_every_panel_and_rule(server: Server, tmp_path: Path) -> None:
    """With a real Prometheus: rates need two scrapes with requests between them."""
    asked = {query.text: query.panel for query in dashboards.queries()}
    asked |= {rule["record"]: "recording rule" for rule in rules("record")}
    with prometheus(server.url.removeprefix("http://"), tmp_path) as client:
        end = time.monotonic() + 90
        while asked and time.monotonic() < end:
            load(server)
            for text in list(asked):
                if any(math.isfinite(value) for value in values(client, text)):
                    del asked[text]
        assert not asked
        assert values(client, "vtr_ready") == [1]
        assert values(client, "vtr_schedules >= 2"), "full and the stored one"


def load(server: Server) -> None:
    """Requests of several budgets and with adapt, whole and as a stream, and one that is refused."""
    with server.client() as client:
        asks = ({"budget": 1.0}, {"budget": 0.5}, {"budget": 0.25}, {"budget": 0.5, "adapt": True})
        for vtr in asks:
            for stream in (False, True):
                body = chat_body(NAME) | {"vtr": vtr, "stream": stream}
                assert client.post("/v1/chat/completions", json=body).status_code == 200
        body = chat_body(NAME) | {"vtr": {"budget": 7}}
        assert client.post("/v1/chat/completions", json=body).status_code == 400
