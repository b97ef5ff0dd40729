import pytest

from tests.vtr_vllm.schedules.strategies import LLAVA_7B
from vtr_vllm.errors import ScheduleError, UnsupportedModel
from vtr_vllm.schedules import ModelGeometry

DEMO = ModelGeometry(12, 128, 320, 2, 2, 64)
CONFIG = {
    "num_hidden_layers": 24,
    "hidden_size": 896,
    "intermediate_size": 4864,
    "num_attention_heads": 14,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
}


def test_fingerprint_is_short_and_stable():
    assert DEMO.fingerprint == "12L-128h-320i-2q-2kv-64d"


def test_dictionary_round_trip():
    assert ModelGeometry.from_dict(DEMO.to_dict()) == DEMO


def test_config_of_a_grouped_query_model():
    assert ModelGeometry.from_config(CONFIG) == ModelGeometry(24, 896, 4864, 14, 2, 64)


@pytest.mark.parametrize("absent", [{}, {"num_key_value_heads": None, "head_dim": None}])
def test_config_defaults_are_hugging_faces(absent):
    config = {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
    }
    assert ModelGeometry.from_config(config | absent) == LLAVA_7B


def test_config_may_name_a_head_dim_of_its_own():
    assert ModelGeometry.from_config(CONFIG | {"head_dim": 128}).head_dim == 128


def test_of_a_mixture_of_experts_the_experts_of_one_token_count():
    moe = CONFIG | {"num_experts_per_tok": 8, "moe_intermediate_size": 768, "num_experts": 128}
    assert ModelGeometry.from_config(moe).intermediate_size == 6144


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"hidden_size": 895}, "head_dim"),
        ({"num_attention_heads": 0}, "num_attention_heads 0"),
        ({"num_key_value_heads": 3}, "kv_heads is 3"),
        ({"num_hidden_layers": "24"}, "layers is '24'"),
    ],
)
def test_unusable_config_is_an_unsupported_model(change, reason):
    with pytest.raises(UnsupportedModel, match=reason):
        ModelGeometry.from_config(CONFIG | change)


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "8", None, 2**31])
def test_sizes_are_positive_whole_numbers(value):
    with pytest.raises(ScheduleError, match="geometry layers is"):
        ModelGeometry(value, 128, 320, 2, 2, 64)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([], "must be an object"),
        (DEMO.to_dict() | {"extra": 1}, "unknown .'extra'."),
        ({"layers": 12}, "missing head_dim"),
    ],
)
def test_dictionary_is_strict(values, reason):
    with pytest.raises(ScheduleError, match=reason):
        ModelGeometry.from_dict(values)
