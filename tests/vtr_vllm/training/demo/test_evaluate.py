"""The packaged checkpoint in plain transformers: it loads, fits its description, answers."""

from functools import cache
from itertools import pairwise
from typing import Any

import torch

from vtr_vllm.demo import CHECKPOINT, conversation, prompt, sample
from vtr_vllm.training.demo.evaluate import (
    alike,
    answers,
    asked_turns,
    by_length,
    exact_match,
    keep_none,
    keep_salient,
    load,
    prepare,
    score,
    talk_match,
)

SAMPLES = [sample("test", i) for i in range(50)]


@cache
def loaded() -> tuple[Any, Any]:
    """Return model and processor, loaded once."""
    return load(CHECKPOINT)


def test_geometry() -> None:
    config = loaded()[0].config
    assert config.text_config.num_hidden_layers == 12
    assert (config.vision_config.image_size, config.vision_config.patch_size) == (168, 14)
    assert config.image_seq_length == 144
    assert config.vision_feature_select_strategy == "default"


def test_the_weights_are_bfloat16_and_small() -> None:
    weights = CHECKPOINT / "model.safetensors"
    assert weights.stat().st_size < 25_000_000
    model, _ = load(CHECKPOINT, torch.bfloat16)
    assert weights.stat().st_size < 2.1 * sum(p.numel() for p in model.parameters())


def test_the_processor_expands_the_placeholder_to_every_vision_token() -> None:
    model, processor = loaded()
    inputs = processor(images=[SAMPLES[0].image], text=[prompt("Is there a 9?")])
    ids = torch.as_tensor(inputs["input_ids"])
    assert int((ids == model.config.image_token_id).sum()) == 144


def test_it_answers_unseen_samples() -> None:
    assert exact_match(*loaded(), SAMPLES)["all"] >= 0.9


def test_every_turn_is_asked_with_what_was_said_before() -> None:
    asked = list(asked_turns("test-talk", 6))
    turns = [turn for i in range(6) for turn in conversation("test-talk", i).turns]
    assert [one.answer for one in asked] == [turn.question.answer for turn in turns]
    for before, one in pairwise(asked):
        if one.turn != "turn 1":
            assert one.text.startswith(f"{before.text} {before.answer}</s>USER: ")
        assert one.text.count("<image>") == len(one.images)
    scores = talk_match(*loaded(), "test-talk", 6)
    assert scores["turn 1"] >= 0.8
    assert scores.keys() == {"all", *(one.turn for one in asked)}


def test_prompts_of_a_batch_have_equally_many_tokens() -> None:
    tokenizer = loaded()[1].tokenizer
    # Enough for a second turn and a third to look alike to who counts words.
    asked = list(asked_turns("calibration-talk", 46))
    batches = list(alike(asked, loaded()[1]))
    assert sum(map(len, batches)) == len(asked)
    for batch in batches:
        assert len({len(tokenizer(one.text)["input_ids"]) for one in batch}) == 1
        assert len({len(one.images) for one in batch}) == 1


def test_it_says_one_word_and_stops() -> None:
    model, processor = loaded()
    item = SAMPLES[0]
    inputs = processor(images=[item.image], text=[prompt(item.question)], return_tensors="pt")
    out = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :].tolist()
    assert processor.decode(out) == f"{item.answer} </s>"


def test_the_chat_template_gives_the_prompt() -> None:
    _, processor = loaded()
    content = [{"type": "image"}, {"type": "text", "text": "Is there a 9?"}]
    messages = [{"role": "user", "content": content}]
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert text == "<s>" + prompt("Is there a 9?")


def test_the_saved_tokenizer_is_the_package_s() -> None:
    from vtr_vllm.demo.tokenizer import BOS, IDS, encode

    tokenizer = loaded()[1].tokenizer
    for item in SAMPLES:
        assert tokenizer(prompt(item.question))["input_ids"] == [
            IDS[BOS],
            *encode(prompt(item.question)),
        ]


def test_the_open_decoder_pass_agrees_with_transformers() -> None:
    model, processor = loaded()
    batch = next(by_length(SAMPLES))[:4]
    inputs = processor(
        images=[s.image for s in batch],
        text=[prompt(s.question) for s in batch],
        return_tensors="pt",
    )
    with torch.no_grad():
        expected = model(**inputs).logits[:, -1].argmax(-1).tolist()
    (group,) = prepare(model, batch)
    words = answers(model, group)
    assert [processor.tokenizer.convert_ids_to_tokens(i) for i in expected] == words


def test_questions_cannot_be_answered_without_the_right_patches() -> None:
    model, _ = loaded()
    groups = prepare(model, SAMPLES[:30])
    full = score(model, groups)["all"]
    assert score(model, groups, keep=keep_none)["all"] < full - 0.5
    assert score(model, groups, keep=keep_salient(0.15))["all"] < full - 0.1
    assert score(model, groups, drop_after=0)["all"] < full - 0.5
    assert score(model, groups, drop_after=11)["all"] == full
