"""What is asked of an evaluator."""

from tests.vtr_vllm.search.simulated import items
from vtr_vllm.search.answers import messages


def test_a_question_is_one_message_with_the_image_first(tmp_path):
    (item,) = items(tmp_path, 1).items
    part = {"type": "image_url", "image_url": {"url": item.data_uri()}}
    (message,) = messages(item, part)
    assert message["role"] == "user"
    assert message["content"] == [part, {"type": "text", "text": item.question}]
