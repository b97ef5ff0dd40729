"""Real servers against the in-process engine; stubs for what a real server does not do."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.vtr_vllm.search.conftest import MAX_TOKENS, Pools
from tests.vtr_vllm.search.demo_servers import DemoServer, demo_servers
from tests.vtr_vllm.search.stub_server import (
    GEOMETRY,
    Reply,
    completion,
    question,
    refusal,
    stub_server,
)
from vtr_vllm.engine.common.config import band_starts
from vtr_vllm.errors import ConfigurationError, EvaluationFailed
from vtr_vllm.schedules import RankRule, fastv, p_sigmoid
from vtr_vllm.search.answers import Answer, Batch, Evaluator, GeneratedToken, Task
from vtr_vllm.search.calibration import Dataset, Item, Turn
from vtr_vllm.search.candidates import Candidate, unreduced
from vtr_vllm.search.converters import from_demo
from vtr_vllm.search.engine_pool import EnginePool
from vtr_vllm.search.http_evaluator import HTTPEvaluator
from vtr_vllm.search.outcomes import outcome

ITEMS = 40
IN_FLIGHT = 8
TOLERANCE = 1e-4  # two servers make other batches than one engine, which changes the rounding


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    path = tmp_path_factory.mktemp("items") / "items.jsonl"
    from_demo("calibration", ITEMS, path)
    return Dataset.load(path)


def tasks_of(evaluator: Evaluator, items: Dataset) -> list[Task]:
    """Every item: in full, reduced in two ways, by counts that the model finds, on a smaller image."""
    geometry = evaluator.geometry
    whole = unreduced(geometry)
    candidates = [
        whole,
        Candidate.of(p_sigmoid(geometry, 0.5)),
        Candidate.of(fastv(geometry, 0.25)),
        Candidate((1.0, 1.0, *whole.keep[2:-1], 0.5), (RankRule.parse("last@0.5"),)),
        Candidate(whole.keep, image_scale=0.25),
    ]
    return [Task(candidate, item) for item in items.items for candidate in candidates]


@pytest.fixture(scope="module")
def in_process(items: Dataset, pools: Pools) -> tuple[EnginePool, Batch]:
    """The in-process evaluator, one engine, and what it found."""
    engine = pools.get(1)
    return engine, engine.run(tasks_of(engine, items))


SETTINGS = "[budget]\ndefault = 0.25\n"
"""A server's own default would reduce the baseline, if nothing were asked for it."""


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[DemoServer]]:
    with demo_servers(2, tmp_path_factory.mktemp("servers"), SETTINGS) as servers:
        yield servers


@pytest.mark.engine
def test_a_real_server_answers_as_the_engine_in_process(
    items: Dataset, in_process: tuple[EnginePool, Batch], tmp_path: Path
) -> None:
    with demo_servers(1, tmp_path, SETTINGS) as [server]:
        evaluator = HTTPEvaluator([server.url], MAX_TOKENS, IN_FLIGHT)
        check_run(evaluator, items, in_process)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.timeout(1800)
class TestRealServers:
    """Two servers started as users start them; one of them does not live to the end."""

    def test_they_answer_as_the_engine_in_process(
        self, items: Dataset, in_process: tuple[EnginePool, Batch], servers: list[DemoServer]
    ) -> None:
        evaluator = HTTPEvaluator([server.url for server in servers], MAX_TOKENS, IN_FLIGHT)
        check_run(evaluator, items, in_process)
        assert all(server.served >= IN_FLIGHT for server in servers)

    def test_one_killed_half_way_costs_retries_only(
        self, items: Dataset, in_process: tuple[EnginePool, Batch], servers: list[DemoServer]
    ) -> None:
        _, expected = in_process
        evaluator = HTTPEvaluator([server.url for server in servers], MAX_TOKENS, IN_FLIGHT)
        tasks = tasks_of(evaluator, items)
        half = len(tasks) // 2
        killer = threading.Thread(target=kill_after, args=(servers[1], servers, half), daemon=True)
        killer.start()
        found = evaluator.run(tasks)
        killer.join(60)
        check_alike(tasks, found, expected)
        assert evaluator.retries > 0
        # and the search goes on with the server that is left
        assert evaluator.run(tasks[:4]).answers[0].text == expected.answers[0].text


def kill_after(victim: DemoServer, servers: list[DemoServer], answers: int) -> None:
    """Kill it once all servers together have given so many answers from now on."""
    before = sum(server.served for server in servers)
    while sum(server.served for server in servers) < before + answers:
        time.sleep(0.05)
    victim.kill()


def check_run(
    evaluator: HTTPEvaluator, items: Dataset, in_process: tuple[EnginePool, Batch]
) -> None:
    """What is known of the model, and every answer, as in process; nothing is asked twice."""
    pool, expected = in_process
    assert evaluator.geometry == pool.geometry
    assert evaluator.has_cls is pool.has_cls is True
    assert evaluator.versions["model"] == "demo"
    for name in ("vllm", "vtr", "max_tokens", "checkpoint"):
        assert evaluator.versions[name] == pool.versions[name]
    tasks = tasks_of(pool, items)
    found = evaluator.run(tasks)
    check_alike(tasks, found, expected)
    assert evaluator.retries == 0
    assert 0 < found.busy <= found.room


def check_alike(tasks: list[Task], found: Batch, expected: Batch) -> None:
    """Same texts, tokens and scores; log-probabilities as near as rounding allows."""
    unreduced_steps = {
        task.item.id: answer.steps
        for task, answer in zip(tasks, expected.answers, strict=True)
        if not task.candidate.reduces and task.candidate.image_scale == 1.0
    }
    assert len(found.answers) == len(tasks)
    for task, ours, theirs in zip(tasks, found.answers, expected.answers, strict=True):
        assert (ours.text, ours.n_vision, ours.n_text) == (
            theirs.text,
            theirs.n_vision,
            theirs.n_text,
        )
        assert [step.token for step in ours.steps] == [step.token for step in theirs.steps]
        assert ours.found == theirs.found
        assert (ours.found is not None) == any(r.is_adaptive for r in task.candidate.rules)
        reference = unreduced_steps[task.item.id]
        one, other = (outcome(task.item, answer, reference) for answer in (ours, theirs))
        assert one.score == other.score
        assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE)
        assert one.divergence == pytest.approx(other.divergence, abs=TOLERANCE)


class TestStubs:
    """What is sent, what is read, what is refused."""

    def test_a_request_asks_for_what_the_search_needs(self, items: Dataset) -> None:
        seen: list[Any] = []

        def chat(body: Any) -> Reply:
            seen.append(body)
            return completion("red", body)

        whole, half = unreduced(GEOMETRY), Candidate.of(fastv(GEOMETRY, 0.75))
        item = items.items[0]
        with stub_server(chat) as stub:
            evaluator = HTTPEvaluator([stub.url], 7, in_flight=1)
            batch = evaluator.run([Task(whole, item), Task(half, item)])
        assert batch.answers[0] == Answer("red", (GeneratedToken("red", {"red": -0.5}),), 3, 2)
        for body in seen:
            assert body["model"] == "stub"
            assert question(body) == item.question
            assert body["messages"][0]["content"][0]["image_url"]["url"] == item.data_uris()[0]
            assert (body["temperature"], body["max_tokens"]) == (0, 7)
            assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
        assert seen[0]["vtr"] == {"budget": 1.0}
        assert seen[1]["vtr"] == {"keep": list(half.keep), "rules": ["last"]}

    def test_images_that_are_cut_by_themselves_may_round_by_themselves(
        self, items: Dataset
    ) -> None:
        """Of two images the sum of two counts may run, with a rule that sees no question."""
        (one, two) = items.items[:2]
        talk = replace(one, history=(Turn(two.image, "What?", "That.", two.image_hash),))

        def run(item: Item, rule: str, kept: float) -> Batch:
            candidate = Candidate((1.0, 1.0, 0.67, 0.67), (RankRule.parse(rule),))
            ran = {"vtr": {"keep": [1.0, 1.0, kept, kept], "rules": ["last"]}}
            with stub_server(lambda body: completion("red", ran)) as stub:
                return HTTPEvaluator([stub.url], 7).run([Task(candidate, item)])

        assert run(talk, "grid", 0.34).answers[0].n_vision == 3
        for item, rule, kept in [(one, "grid", 0.34), (talk, "last", 0.34), (talk, "grid", 0.0)]:
            with pytest.raises(EvaluationFailed, match="were asked"):
                run(item, rule, kept)

    @pytest.mark.parametrize("whole", [True, False])
    def test_a_server_that_ran_something_else_is_an_error(
        self, items: Dataset, whole: bool
    ) -> None:
        """Such as a policy of its own, for the unreduced model and for a candidate alike."""
        other = {"vtr": {"keep": [1.0, 1.0, 1.0, 0.0], "rules": ["last"]}}
        asked = unreduced(GEOMETRY) if whole else Candidate.of(fastv(GEOMETRY, 0.75))
        with stub_server(lambda body: completion("red", other)) as stub:
            evaluator = HTTPEvaluator([stub.url], 7)
            with pytest.raises(EvaluationFailed) as failed:
                evaluator.run([Task(asked, items.items[0])])
        expected = [3, 3, 3, 3] if whole else [3, 3, 2, 2]
        assert f"{stub.url}/v1/chat/completions ran item {items.items[0].id}" in str(failed.value)
        assert f"with [3, 3, 3, 0] vision tokens per layer, and {expected} were" in str(
            failed.value
        )

    def test_versions_name_no_server(self) -> None:
        with stub_server(lambda body: completion("")) as stub:
            evaluator = HTTPEvaluator([stub.url], 7)
            assert stub.url.rsplit(":", 1)[1] not in str(evaluator.versions)
            assert evaluator.versions.keys() == {"model", "max_tokens", "vtr", "vllm"}

    def test_a_refusal_names_item_and_reason(self, items: Dataset) -> None:
        with stub_server(lambda body: refusal(400, "too long", "prompt_too_long")) as stub:
            evaluator = HTTPEvaluator([stub.url], 7)
            with pytest.raises(EvaluationFailed, match="refused item .*too long"):
                evaluator.run([Task(unreduced(GEOMETRY), items.items[0])])

    @pytest.mark.parametrize("part", ["choices", "usage", "vtr"])
    def test_an_answer_without_a_part_is_refused(self, items: Dataset, part: str) -> None:
        body = {name: value for name, value in completion("red").body.items() if name != part}
        with stub_server(lambda _: Reply(body=body)) as stub:
            evaluator = HTTPEvaluator([stub.url], 7)
            with pytest.raises(EvaluationFailed, match="without text, log-probabilities or vtr"):
                evaluator.run([Task(unreduced(GEOMETRY), items.items[0])])

    def test_a_tower_without_cls_is_known_by_its_refusal(self) -> None:
        with stub_server(lambda body: refusal(400, "no CLS", "unsupported_request")) as stub:
            assert HTTPEvaluator([stub.url], 7).has_cls is False

    def test_a_tower_with_cls_is_known_by_its_answer(self) -> None:
        with stub_server(lambda body: completion("red", body)) as stub:
            assert HTTPEvaluator([stub.url], 7).has_cls is True

    def test_bands_are_those_that_the_server_names(self) -> None:
        with stub_server(lambda body: completion("red", body)) as stub:
            stub.band_starts = [0, 3]
            assert HTTPEvaluator([stub.url], 7).band_starts == (0, 3)

    def test_bands_that_no_server_names_are_the_default(self) -> None:
        with stub_server(lambda body: completion("red", body)) as stub:
            found = HTTPEvaluator([stub.url], 7).band_starts
        assert found == band_starts(GEOMETRY.layers, None)

    def test_servers_of_other_bands_are_no_fleet(self) -> None:
        with (
            stub_server(lambda body: completion("red", body)) as one,
            stub_server(lambda body: completion("red", body)) as two,
        ):
            one.band_starts, two.band_starts = [0, 2], [0, 1, 2, 3]
            with pytest.raises(ConfigurationError, match=r"KV bands from layers \(0, 2\)"):
                HTTPEvaluator([one.url, two.url], 7)

    def test_servers_of_other_weights_are_no_fleet(self) -> None:
        with (
            stub_server(lambda body: completion("red", body)) as one,
            stub_server(lambda body: completion("red", body)) as two,
        ):
            one.checkpoint = two.checkpoint = "ab" * 32
            assert HTTPEvaluator([one.url, two.url], 7).versions["checkpoint"] == "ab" * 32
            two.checkpoint = "cd" * 32
            with pytest.raises(ConfigurationError, match=r"checkpoint cdcdcdcdcdcd"):
                HTTPEvaluator([one.url, two.url], 7)

    def test_another_refusal_does_not_mean_no_cls(self) -> None:
        with stub_server(lambda body: refusal(400, "no chat template")) as stub:
            evaluator = HTTPEvaluator([stub.url], 7)
            with pytest.raises(EvaluationFailed, match="no chat template"):
                _ = evaluator.has_cls
