"""What is asked of an evaluator."""

from tests.vtr_vllm.search.simulated import items
from vtr_vllm.search.answers import messages
from vtr_vllm.search.calibration import Dataset
from vtr_vllm.search.converters import from_demo


def test_a_question_is_one_message_with_the_image_first(tmp_path):
    (item,) = items(tmp_path, 1).items
    (uri,) = item.data_uris()
    part = {"type": "image_url", "image_url": {"url": uri}}
    (message,) = messages(item, [part])
    assert message["role"] == "user"
    assert message["content"] == [part, {"type": "text", "text": item.question}]


def test_a_conversation_is_told_turn_by_turn(tmp_path):
    from_demo("test-talk", 20, tmp_path / "talks.jsonl")
    talks = Dataset.load(tmp_path / "talks.jsonl").items
    two = next(item for item in talks if len(item.image_hashes) == 2 and item.image is not None)
    chat = messages(two, ["first", "second"])
    assert [message["role"] for message in chat] == ["user", "assistant"] * len(two.history) + [
        "user"
    ]
    assert chat[0]["content"] == ["first", {"type": "text", "text": two.history[0].question}]
    assert chat[1]["content"] == two.history[0].answer
    assert chat[-1]["content"] == ["second", {"type": "text", "text": two.question}]
    later = next(item for item in talks if item.history and item.image is None)
    assert messages(later, later.data_uris())[-1]["content"] == [
        {"type": "text", "text": later.question}
    ]
