"""The survey says something of every architecture, and nothing that vLLM's source does not bear."""

from __future__ import annotations

from vllm.model_executor.models import registry

from tests.families import reasons, survey
from vtr_vllm.engine.common.supported_models import SUPPORTED_ARCHITECTURES, SUPPORTED_DECODERS


def test_every_multimodal_architecture_of_vllm_has_a_row() -> None:
    found = {row.architecture for row in survey.survey()}
    assert set(registry._MULTIMODAL_MODELS) <= found
    assert len(found) == len(survey.survey())


def test_what_works_is_what_the_engine_serves() -> None:
    works = {row.architecture for row in survey.survey() if row.status == "works"}
    assert works == set(SUPPORTED_ARCHITECTURES)
    decoders = {name for row in survey.survey() if row.status == "works" for name in row.decoders}
    assert decoders <= set(SUPPORTED_DECODERS)


def test_every_refusal_has_a_reason() -> None:
    for row in survey.survey():
        assert bool(row.reason) == (row.status == "refused"), row


def test_a_decoder_that_is_served_runs_its_layers_plainly() -> None:
    """The survey's reading of a loop agrees with the engine's list."""
    deepstack = {"Qwen3LLMModel", "Qwen3MoeLLMModel"}
    for name in set(SUPPORTED_DECODERS) - deepstack:
        assert survey.runs_layers_plainly(name), name
    for name in ("ChatGLMModel", "DeepseekV2Model", "MiniCPMModel", "OPTModel", *deepstack):
        assert not survey.runs_layers_plainly(name), name


def test_what_is_said_by_hand_is_still_needed() -> None:
    """No entry for an architecture that is gone or served, no decoder that vLLM does not have."""
    refused = {row.architecture for row in survey.survey() if row.status == "refused"}
    assert {*reasons.DECODERS, *reasons.REASONS} <= refused
    for names in reasons.DECODERS.values():
        assert all(survey.is_class(name) for name in names), names
