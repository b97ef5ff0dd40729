"""What is refused before it reaches the engine, and what is collected on the way."""

import asyncio
from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams
from vllm.lora.request import LoRARequest
from vllm.multimodal.inputs import MultiModalFeatureSpec, PlaceholderRange
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.input_processor import InputProcessor

from vtr_vllm.engine.frontend.admission import (
    Admitted,
    admit,
    collect,
    count_returning,
    decisions_only,
    has_admitted,
    install,
)
from vtr_vllm.engine.frontend.image_tokens import ImageTokens
from vtr_vllm.engine.frontend.returning_images import ReturningImages
from vtr_vllm.engine_settings import SCHEDULER_CLS, WORKER_CLS
from vtr_vllm.errors import PromptTooLong, RequestError, UnsupportedRequest
from vtr_vllm.schedules import RankRule, make_plan

KEEP = [1.0, 1.0, 0.5, 0.25]
ASKED = {"vtr_keep": KEEP, "vtr_rules": ["last", "previous"]}
PLAN = make_plan(KEEP, [RankRule.parse("last"), RankRule.parse("previous")], 4)


TEXT_CONFIG = SimpleNamespace(
    num_hidden_layers=4, hidden_size=8, intermediate_size=16, num_attention_heads=2
)


def config(tower="clip_vision_model", enable_mm_embeds=False, **scheduler):
    limits = {
        "scheduler_cls": SCHEDULER_CLS,
        "max_num_batched_tokens": 64,
        "max_num_scheduled_tokens": None,
        "max_num_seqs": 8,
        "long_prefill_token_threshold": 0,
    }
    vision = SimpleNamespace(model_type=tower, image_size=14, patch_size=7) if tower else None
    return SimpleNamespace(
        additional_config={},
        scheduler_config=SimpleNamespace(**(limits | scheduler)),
        model_config=SimpleNamespace(
            architecture="LlavaForConditionalGeneration",
            hf_text_config=TEXT_CONFIG,
            hf_config=SimpleNamespace(vision_config=vision),
            multimodal_config=SimpleNamespace(enable_mm_embeds=enable_mm_embeds),
        ),
    )


def request(extra_args=ASKED, images=((2, 4),), prompt_len=10, name="r", params=(), **changes):
    features = [
        MultiModalFeatureSpec(None, "image", str(offset), PlaceholderRange(offset, length))
        for offset, length in images
    ]
    given = {
        "request_id": name,
        "prompt_token_ids": list(range(prompt_len)),
        "mm_features": features or None,
        "sampling_params": SamplingParams(extra_args=extra_args, **dict(params)),
        "pooling_params": None,
        "arrival_time": 0.0,
        "lora_request": None,
        "cache_salt": None,
        "data_parallel_rank": None,
    }
    return EngineCoreRequest(**(given | changes))


def test_a_reduced_request_is_admitted_with_its_plan():
    images = (ImageTokens(0, 4, (2, 2)),)
    assert admit(request(), config()) == Admitted("r", PLAN, n_vision=4, n_text=6, images=images)


@pytest.mark.parametrize(
    "unreduced",
    [
        request(None),
        request({"somebody_else": 1}),
        request({"vtr_keep": [1.0] * 4, "vtr_rules": []}),
        request({"vtr_trace": "t"}),
    ],
)
def test_requests_that_keep_all_are_admitted_without_a_plan(unreduced):
    images = (ImageTokens(0, 4, (2, 2)),)
    assert admit(unreduced, config()) == Admitted("r", None, n_vision=4, n_text=6, images=images)


def test_vision_tokens_are_known_by_their_positions():
    admitted = admit(request(), config())
    assert len(admitted.vision) == admitted.n_vision == 4
    for position in range(12):
        assert admitted.vision_before(position) == sum(admitted.vision < position)
    assert admit(request(images=()), config()).vision_before(10) == 0


def test_text_and_pooling_requests():
    assert admit(request(images=()), config()) == Admitted("r", None, 0, 10)
    pooling = request(sampling_params=None)
    assert admit(pooling, config()) == Admitted("r", None, 4, 6, (ImageTokens(0, 4, (2, 2)),))
    embedded = request(None, images=(), prompt_token_ids=None, prompt_embeds=torch.zeros(3, 8))
    assert admit(embedded, config()) == Admitted("r", None, 0, 0)


EXCLUDED = [
    ("prompt_logprobs", {"params": {"prompt_logprobs": 0}}),
    ("prompt_logprob_token_ids", {"params": {"prompt_logprob_token_ids": [[1]] * 10}}),
    ("prompt embeddings", {"prompt_embeds": torch.zeros(10, 8)}),
]


@pytest.mark.parametrize(("feature", "changes"), EXCLUDED, ids=[name for name, _ in EXCLUDED])
def test_excluded_features_are_refused_on_reduced_requests_only(feature, changes):
    with pytest.raises(UnsupportedRequest, match=f"^{feature} does not work on a reduced request"):
        admit(request(**changes), config())
    assert admit(request(None, **changes), config()).plan is None
    full = {"vtr_keep": [1.0] * 4, "vtr_rules": []}
    assert admit(request(full, **changes), config()).plan is None


@pytest.mark.parametrize("images", [((2, 4),), ()], ids=["with-an-image", "of-an-earlier-part"])
def test_streaming_input_has_full_budget(images):
    with pytest.raises(
        UnsupportedRequest, match="streaming input does not work with a budget below"
    ):
        admit(request(images=images, resumable=True), config())
    assert admit(request(None, images=images, resumable=True), config()).plan is None


def test_several_answers_leave_no_trace():
    """vLLM makes a request of each, all with the same name for it."""
    traced = ASKED | {"vtr_trace": "mine"}
    with pytest.raises(UnsupportedRequest, match="vtr_trace does not work with n = 2"):
        admit(request(traced, params={"n": 2}), config())
    assert admit(request(traced, params={"n": 1}), config()).plan == PLAN
    assert admit(request(params={"n": 2}), config()).plan == PLAN
    full = {"vtr_keep": [1.0] * 4, "vtr_rules": [], "vtr_trace": "mine"}
    assert admit(request(full, params={"n": 2}), config()).plan is None


def test_a_reduced_request_may_have_an_adapter():
    adapted = request(lora_request=LoRARequest("some-lora", 1, "some-folder"))
    assert admit(adapted, config()).plan == PLAN


def test_an_engine_that_was_not_started_for_reduction():
    stock = config(scheduler_cls=None)
    with pytest.raises(UnsupportedRequest) as caught:
        admit(request(), stock)
    assert f"--scheduler-cls {SCHEDULER_CLS}" in str(caught.value)
    assert f"--worker-cls {WORKER_CLS}" in str(caught.value)
    # A misspelt key must not run at full cost in silence there either.
    with pytest.raises(UnsupportedRequest):
        admit(request({"vtr_kep": KEEP}), stock)
    assert admit(request(None), stock).plan is None


def test_an_architecture_that_we_do_not_reduce():
    other = config()
    other.model_config.architecture = "PixtralForConditionalGeneration"
    with pytest.raises(UnsupportedRequest) as caught:
        admit(request(), other)
    assert "PixtralForConditionalGeneration" in str(caught.value)
    assert "LlavaForConditionalGeneration" in str(caught.value)
    assert admit(request(None), other).plan is None


def test_what_is_malformed():
    with pytest.raises(RequestError, match="vtr_kep"):
        admit(request(ASKED | {"vtr_kep": 1}), config())
    with pytest.raises(RequestError, match="4 layers"):
        admit(request(ASKED | {"vtr_keep": [0.5]}), config())
    with pytest.raises(UnsupportedRequest, match="ends with a vision token"):
        admit(request(images=((6, 4),)), config())
    with pytest.raises(RequestError, match="has weights for 3 attention heads; the model has 2"):
        admit(request({"vtr_keep": KEEP, "vtr_rules": ["last:901", "previous"]}), config())


CLS = {"vtr_keep": KEEP, "vtr_rules": ["cls", "previous"]}


def test_the_cls_rule_needs_a_tower_with_a_cls_token():
    assert admit(request(CLS), config()).plan.rules[0] == RankRule.parse("cls")
    for tower in ("siglip_vision_model", None):
        with pytest.raises(UnsupportedRequest, match=f"with {tower}"):
            admit(request(CLS), config(tower=tower))
    assert admit(request(), config(tower="siglip_vision_model")).plan == PLAN


def test_the_cls_rule_needs_images_that_the_tower_sees():
    with pytest.raises(UnsupportedRequest, match="--enable-mm-embeds"):
        admit(request(CLS), config(enable_mm_embeds=True))
    assert admit(request(), config(enable_mm_embeds=True)).plan == PLAN


@pytest.mark.parametrize(
    ("limits", "limit", "name"),
    [
        ({}, 57, "max_num_batched_tokens - max_num_seqs + 1"),
        ({"max_num_seqs": 1}, 64, "max_num_batched_tokens - max_num_seqs + 1"),
        ({"long_prefill_token_threshold": 20}, 20, "long_prefill_token_threshold"),
        ({"long_prefill_token_threshold": 60}, 57, "max_num_batched_tokens - max_num_seqs + 1"),
    ],
)
def test_a_range_that_fits_no_step(limits, limit, name):
    """Only the range counts: 5 words before the image may run in a step of their own."""
    fits = request(images=((5, 4),), prompt_len=5 + limit)
    assert admit(fits, config(**limits)).plan == PLAN
    with pytest.raises(PromptTooLong) as caught:
        admit(request(images=((5, 4),), prompt_len=6 + limit), config(**limits))
    assert f"has {limit + 1} tokens from its first vision token" in str(caught.value)
    assert f"at most {limit} ({name})" in str(caught.value)
    assert admit(request(None, images=((5, 4),), prompt_len=900), config(**limits)).plan is None


def test_of_a_local_schedule_each_image_must_fit_a_step():
    """Not the range: images run one by one."""
    local = {"vtr_keep": [1.0, 1.0, 0.5, 0.5], "vtr_rules": ["saliency"]}
    fits = request(local, images=((5, 57), (70, 57)), prompt_len=900)
    assert admit(fits, config()).plan.counts == (114, 114, 58, 58)
    with pytest.raises(PromptTooLong, match="an image .* of the prompt takes 58 tokens"):
        admit(request(local, images=((5, 4), (70, 58)), prompt_len=900), config())


def test_the_engine_is_told_the_form_of_each_image():
    asked = request(images=((2, 4), (6, 3)), prompt_len=12)
    admit(asked, config())
    assert asked.sampling_params.extra_args["vtr_units"] == [1, 2, 2, 0, 0, 0]


@pytest.fixture
def processor(monkeypatch):
    """vLLM's input processor, wrapped; what it makes of a prompt is the prompt itself."""

    def process_inputs(self, request_id, prompt, params=None):
        return prompt

    monkeypatch.setattr(InputProcessor, "process_inputs", process_inputs)
    install()
    made = InputProcessor.__new__(InputProcessor)
    made.vllm_config = config()
    made.renderer = SimpleNamespace(mm_processor_cache=None)  # as for a model without images
    return made


def test_installing_twice_wraps_once(processor):
    wrapped = InputProcessor.process_inputs
    install()
    assert InputProcessor.process_inputs is wrapped
    assert wrapped.__wrapped__.__name__ == "process_inputs"
    assert not hasattr(wrapped.__wrapped__, "vtr_admission")


def test_the_wrapped_processor_passes_on_and_refuses(processor):
    plain = request(None)
    assert processor.process_inputs("r", prompt=plain) is plain
    with pytest.raises(PromptTooLong):
        processor.process_inputs("r", request(prompt_len=900))


def test_collected_inside_the_context_only(processor):
    processor.process_inputs("0", request(name="0"))
    with collect() as outer:
        processor.process_inputs("1", request(name="1"))
        with collect() as inner:
            processor.process_inputs("2", request(None, name="2"))
        processor.process_inputs("3", request(name="3"))
        with pytest.raises(UnsupportedRequest):
            processor.process_inputs("4", request(name="4", resumable=True))
    processor.process_inputs("5", request(name="5"))
    assert [one.request_id for one in outer] == ["1", "3"]
    assert [(one.request_id, one.plan) for one in inner] == [("2", None)]


def test_the_schedule_is_decided_by_the_length_of_the_prompt(processor):
    """What the caller put into extra_args stays; the plan is of what was decided."""
    seen = []

    def decide(prompt):
        seen.append((prompt.n_vision, prompt.n_text))
        assert len(prompt.prompt.text) == prompt.n_text
        assert sum(prompt.prompt.image_sizes) == prompt.n_vision
        return ASKED if prompt.n_vision else {}

    picture, words = request({"somebody_else": 1}, name="0"), request(None, images=(), name="1")
    with collect(decide) as admitted:
        processor.process_inputs("0", picture)
        processor.process_inputs("1", words)
    assert seen == [(4, 6), (0, 10)]
    assert [one.plan for one in admitted] == [PLAN, None]
    told = {"vtr_units": [1, 2, 2]}
    assert picture.sampling_params.extra_args == {"somebody_else": 1} | ASKED | told
    assert words.sampling_params.extra_args == {}


def test_the_beams_of_a_prompt_are_one_prompt(processor):
    """vLLM's beam search makes a request of each beam at each token."""
    noted = []
    with collect(noted=noted.append, has_beams=True) as admitted:
        for prompt in ("chatcmpl-1", "cmpl-2-0", "cmpl-2-1", "mine-beam-7"):
            for step in ("00ff00ff00ff00ff", "ffffffffffffffff"):
                for beam in range(3):
                    name = f"{prompt}-{step}-beam-{beam}"
                    processor.process_inputs(name, request(None, name=name))
    assert len(admitted) == 4
    assert noted == admitted
    with collect(has_beams=True) as others:
        for name in ("a-beam-0", "a-beam-1", "a-00ff-beam-x", "a", "a"):
            processor.process_inputs(name, request(None, name=name))
    assert len(others) == 5, "no beams"


def test_a_client_that_names_its_request_like_a_beam_hides_no_prompt(processor):
    with collect() as admitted:
        for prompt in range(3):
            processor.process_inputs("any", request(None, name=f"cmpl-a-0-beam-0-{prompt}-beam-1"))
    assert len(admitted) == 3


def test_each_prompt_is_noted_once_it_is_admitted(processor):
    noted = []
    with collect(lambda *_: ASKED, noted.append) as admitted:
        processor.process_inputs("0", request(None, name="0"))
        assert noted == admitted
        with pytest.raises(UnsupportedRequest):
            processor.process_inputs("1", request(None, name="1", resumable=True))
    assert [one.request_id for one in noted] == ["0"]


def test_images_that_an_earlier_prompt_had_are_counted(processor):
    """Of what was admitted: a prompt that is refused leaves no image behind."""
    count_returning(processor, ReturningImages(1000))

    def refuse(admitted):
        raise RequestError("not now")

    with collect(noted=refuse), pytest.raises(RequestError, match="not now"):
        processor.process_inputs("0", request(name="0"))
    with collect() as admitted:
        processor.process_inputs("1", request(name="1"))
        processor.process_inputs("2", request(name="2"))
        processor.process_inputs("3", request(None, images=(), name="3"))
    assert [one.returning for one in admitted] == [0, 4, 0]


def test_what_the_decision_refuses_is_not_admitted(processor):
    def decide(prompt):
        raise RequestError(f"{prompt.n_vision} and {prompt.n_text}")

    with collect(decide) as admitted, pytest.raises(RequestError, match="4 and 6"):
        processor.process_inputs("0", request(None, name="0"))
    assert admitted == []
    assert not has_admitted()


def test_a_pooling_prompt_has_nothing_to_decide(processor):
    with collect(lambda *_: ASKED) as admitted:
        processor.process_inputs("0", request(name="0", sampling_params=None))
        assert has_admitted()
    assert admitted[0].plan is None


def test_tasks_collect_for_whoever_started_them(processor):
    async def submit(name):
        await asyncio.sleep(0)
        processor.process_inputs(name, request(name=name))

    async def handler(prefix):
        with collect() as admitted:
            tasks = [asyncio.create_task(submit(f"{prefix}{i}")) for i in range(3)]
            await asyncio.gather(*tasks)
        return sorted(one.request_id for one in admitted)

    async def server():
        return await asyncio.gather(handler("a"), handler("b"), submit("nobody's"))

    assert asyncio.run(server()) == [["a0", "a1", "a2"], ["b0", "b1", "b2"], None]


def test_a_server_runs_no_vision_token_for_which_nothing_is_decided(processor):
    """The routes of vLLM's that go round ours: text passes, there is nothing to decide of it."""
    decisions_only(processor)
    words = request(None, images=())
    assert processor.process_inputs("0", words) is words
    for undecided in (request(None), request(None, sampling_params=None), request(ASKED)):
        with pytest.raises(RequestError, match="no vision-token budget|belong to the server"):
            processor.process_inputs("1", undecided)
    with collect(), pytest.raises(UnsupportedRequest, match="4 vision tokens, and this route"):
        processor.process_inputs("2", request(None))
    with collect(lambda *_: ASKED) as admitted:
        processor.process_inputs("3", request(None))
    assert [one.plan for one in admitted] == [PLAN]


@pytest.mark.parametrize(
    "sent", [ASKED, {"vtr_rules": []}, {"vtr_floor": 0.0, "other": 1}, {"vtr_": 1}]
)
@pytest.mark.parametrize("images", [(), ((2, 4),)])
def test_a_server_takes_keys_of_the_wire_from_no_client(processor, sent, images):
    decisions_only(processor)
    for decide in (None, lambda *_: {}, lambda *_: ASKED):
        with collect(decide) as admitted, pytest.raises(RequestError, match="belong to the server"):
            processor.process_inputs("0", request(sent, images=images))
        assert admitted == []


def test_max_num_scheduled_tokens_limits_a_step_too():
    with pytest.raises(PromptTooLong, match="max_num_scheduled_tokens"):
        admit(request(images=((5, 4),), prompt_len=40), config(max_num_scheduled_tokens=20))


def test_max_num_scheduled_tokens_does_not_make_a_step_larger():
    """vLLM takes such a number, and keeps to max_num_batched_tokens all the same."""
    with pytest.raises(PromptTooLong, match="max_num_batched_tokens"):
        admit(request(images=((5, 40),), prompt_len=80), config(max_num_scheduled_tokens=500))
