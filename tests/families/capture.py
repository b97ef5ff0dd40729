"""What vLLM's own model hands to its decoder for one prompt: the input of the reference."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.sequence import IntermediateTensors


@dataclass(frozen=True)
class Prompt:
    """``P`` prompt tokens, of which ``n`` are vision tokens."""

    ids: list[int]
    """[P], placeholders expanded."""
    embeddings: Tensor
    """[P, hidden]: text and vision merged."""
    text_embeddings: Tensor
    """[P, hidden]: of ``ids`` alone, as if there were no images."""
    positions: Tensor
    """[P], or [3, P] for M-RoPE."""
    vision: Tensor
    """[n] positions of the vision tokens, ascending: where vLLM's merge puts embeddings."""
    items: list[int]
    """Vision tokens of each image or video, in prompt order."""
    names: list[str]
    """Of each item: what vLLM knows it by."""
    deepstack: list[Tensor]
    """[P, hidden] each: what is added behind the first layers."""


def capture(llm: LLM, prompt: dict[str, Any]) -> Prompt:
    """Run a prompt alone, at full budget and without a cached prefix, and note what was passed."""
    llm.reset_prefix_cache()
    (model,) = llm.apply_model(lambda model: model)
    decoder = decoder_of(model)
    params = SamplingParams(temperature=0.0, max_tokens=1)
    with _watched(model, "embed_input_ids") as merges, _watched(decoder, "forward") as forwards:
        (output,) = llm.generate([prompt], [params], use_tqdm=False)
    ids = list(output.prompt_token_ids)
    uuids = prompt.get("multi_modal_uuids", {})  # the cases have videos before images
    merge, forward = merges[0], forwards[0]
    embeddings, positions = forward["inputs_embeds"], forward["positions"]
    deepstack = forward.get("deepstack_input_embeds")
    mask, items = merge["is_multimodal"], merge["multimodal_embeddings"]
    return Prompt(
        ids=ids,
        embeddings=embeddings[: len(ids)],
        text_embeddings=decoder.embed_input_ids(torch.tensor(ids)),
        positions=positions[..., : len(ids)],
        vision=torch.arange(0) if mask is None else mask.nonzero().squeeze(1),
        items=[len(item) for item in items or ()],
        names=[name for kind in ("video", "image") for name in uuids.get(kind, ())],
        deepstack=[value[: len(ids)] for value in deepstack.tensors.values()] if deepstack else [],
    )


def decoder_of(model: Any) -> Any:
    """vLLM's decoder in a multimodal model; some have no class with a head around it."""
    language_model = model.get_language_model()
    return getattr(language_model, "model", language_model)


@contextmanager
def _watched(owner: Any, method: str) -> Iterator[list[dict[str, Any]]]:
    """The arguments of every call, by name, copied before they are used.

    vLLM calls ``forward`` past the hooks of a torch module where nothing is compiled.
    """
    real = getattr(owner, method)
    signature = inspect.signature(real)
    calls: list[dict[str, Any]] = []

    def watching(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        calls.append({name: _copied(value) for name, value in bound.arguments.items()})
        return real(*args, **kwargs)

    setattr(owner, method, watching)
    try:
        yield calls
    finally:
        delattr(owner, method)


def _copied(value: Any) -> Any:
    """Tensors are views of buffers that the next step fills again."""
    if isinstance(value, IntermediateTensors):
        return IntermediateTensors({name: part.clone() for name, part in value.items()})
    return value.clone() if isinstance(value, Tensor) else value
