"""The first tokens of a request's prompts and choices, through vLLM's own output processor."""

import time

import pytest
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.metrics.stats import IterationStats, PrefillStats

from vtr_vllm.engine.common.adaptive_counts import tell_front_end
from vtr_vllm.engine.frontend import first_tokens
from vtr_vllm.engine.frontend.first_tokens import collect_first_tokens

first_tokens.install()


def request(name: str, arrived: float, n: int = 1) -> EngineCoreRequest:
    params = SamplingParams(
        n=n, max_tokens=4, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
    )
    return EngineCoreRequest(
        request_id=name,
        external_req_id=name,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=params,
        pooling_params=None,
        arrival_time=arrived,
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )


def processor() -> OutputProcessor:
    return OutputProcessor(None, log_stats=True)


def step(engine: OutputProcessor, name: str, at: float, end: bool = False) -> None:
    """One token of one request, as an iteration at ``at`` on the clock of the day sees it."""
    stats = IterationStats()
    stats.iteration_timestamp = at
    reason = FinishReason.LENGTH if end else None
    engine.process_outputs([EngineCoreOutput(name, [7], finish_reason=reason)], 1.0, stats)


def ago(found: float | None) -> float:
    assert found is not None
    return time.monotonic() - found


def test_nothing_is_known_before_a_first_token() -> None:
    engine = processor()
    with collect_first_tokens() as found:
        engine.add_request(request("a", time.time()), None)
    assert found.earliest() is None
    step(engine, "a", time.time())
    assert ago(found.earliest()) == pytest.approx(0, abs=60)


def test_it_is_the_first_token_and_not_the_end() -> None:
    engine, now = processor(), time.time()
    with collect_first_tokens() as found:
        engine.add_request(request("a", now - 1000), None)
    step(engine, "a", now - 600)
    step(engine, "a", now - 300, end=True)
    assert "a" not in engine.request_states, "vLLM has forgotten it"
    assert ago(found.earliest()) == pytest.approx(600, abs=60)


def test_of_several_choices_the_earliest_counts() -> None:
    """The output that vLLM hands out at the end has the statistics of the last to end."""
    engine, now = processor(), time.time()
    whole = request("a", now - 1000, n=2)
    parent = ParentRequest(whole)
    with collect_first_tokens() as found:
        for index in range(2):
            child = request("a", now - 1000)
            child.request_id, child.sampling_params = parent.get_child_info(index)
            engine.add_request(child, None, parent, index)
    step(engine, "1_a", now - 800)
    step(engine, "0_a", now - 400)
    step(engine, "1_a", now - 300, end=True)
    step(engine, "0_a", now - 200, end=True)
    assert ago(found.earliest()) == pytest.approx(800, abs=60)


def test_requests_do_not_see_each_other() -> None:
    engine, now = processor(), time.time()
    with collect_first_tokens() as one:
        engine.add_request(request("a", now), None)
    with collect_first_tokens() as other:
        engine.add_request(request("b", now), None)
    engine.add_request(request("c", now), None)
    step(engine, "c", now)
    step(engine, "a", now)
    assert one.earliest() is not None
    assert other.earliest() is None


def test_what_one_look_costs_does_not_grow_with_the_choices() -> None:
    """A stream asks at the end of every choice, and a client may want thousands of them."""

    class Choice:
        external_req_id, looks = "a", 0
        num_cached_tokens = 3

        def __init__(self, number: int) -> None:
            self.number = number

        @property
        def is_prefilling(self) -> bool:
            Choice.looks += 1
            return self.number > ended

    choices = 2000
    with collect_first_tokens() as found:
        for number in range(choices):
            found.add(Choice(number))
    for ended in range(choices):  # noqa: B007  the choices look at it
        assert found.cached("a") == 3
    assert choices <= Choice.looks <= 100 * choices


def cached(engine: OutputProcessor, name: str, tokens: int) -> None:
    """The first token of a request of which so many were cached, as the engine core tells it."""
    found = PrefillStats()
    found.num_cached_tokens = tokens
    engine.process_outputs([EngineCoreOutput(name, [7], prefill_stats=found)], 1.0, None)


def test_what_was_cached_is_known_with_the_first_token() -> None:
    engine = OutputProcessor(None, log_stats=False)
    with collect_first_tokens() as found:
        engine.add_request(request("a", time.time()), None)
        engine.add_request(request("b", time.time()), None)
    assert (found.cached("a"), found.cached("b")) == (0, 0)
    cached(engine, "a", 2)
    assert (found.cached("a"), found.cached("b"), found.cached("c")) == (2, 0, 0)
    engine.process_outputs([EngineCoreOutput("a", [7], finish_reason=FinishReason.LENGTH)], 1.0)
    assert found.cached("a") == 2, "vLLM has forgotten it"


def test_of_several_choices_the_first_says_what_was_cached() -> None:
    engine = OutputProcessor(None, log_stats=False)
    whole = request("a", time.time(), n=2)
    parent = ParentRequest(whole)
    with collect_first_tokens() as found:
        for index in range(2):
            child = request("a", time.time())
            child.request_id, child.sampling_params = parent.get_child_info(index)
            engine.add_request(child, None, parent, index)
    cached(engine, "1_a", 3)
    assert found.cached("a") == 3, "the other has not begun"
    cached(engine, "0_a", 1)
    assert found.cached("a") == 1


def test_an_engine_that_does_not_count_tells_nothing() -> None:
    engine = OutputProcessor(None, log_stats=False)
    with collect_first_tokens() as found:
        engine.add_request(request("a", time.time()), None)
    engine.process_outputs([EngineCoreOutput("a", [7])], 1.0, None)
    assert found.earliest() is None


def test_installing_again_changes_nothing() -> None:
    wrapped = OutputProcessor.add_request
    first_tokens.install()
    assert OutputProcessor.add_request is wrapped


def test_what_adaptive_cuts_kept_is_known_with_the_first_token() -> None:
    engine = processor()
    with collect_first_tokens() as found:
        engine.add_request(request("a", time.time()), None)
        engine.add_request(request("b", time.time()), None)
    assert found.counts("a") is None
    output = EngineCoreOutput("a", [7])
    tell_front_end(output, (9, 9, 3))
    engine.process_outputs([output, EngineCoreOutput("b", [7])], 1.0, IterationStats())
    step(engine, "a", time.time(), end=True)
    assert found.counts("a") == (9, 9, 3)
    assert found.counts("b") is None
    assert found.counts("c") is None
    assert output.kv_transfer_params is None, "no client sees it"
