"""Checkpoints with random weights in the hub's layout: what every family's writer shares.

A writer builds the real Transformers class from a small config, redraws its weights here, and saves
it with the real processor. Nothing is trained: a random model is enough to compare two
implementations of the same forward pass, if greedy tokens vary and attention is far from flat.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast

from tests.tiny import byte_tokenizer

GAINS = {
    # the scores of attention get a standard deviation of about two
    "q_proj": 1.4,
    "k_proj": 1.4,
    "qkv": 1.4,
    "wqkv": 1.4,
    "q_norm": 1.4,
    "k_norm": 1.4,
    "v_proj": 1.5,
    "o_proj": 1.5,
    "wo": 1.5,
    "lm_head": 2.0,
    "output": 2.0,
}
"""By the last part of a module's name: the scale of its outputs over that of its inputs."""
OTHERS = 1.2
NORM, BIAS, POSITION = 0.1, 0.1, 0.5
SCALES = ("lambda_", "ls1", "ls2", "gamma", "logit_scale")
"""Parameters that multiply, as the weight of a norm does."""


@torch.no_grad()
def randomise(model: nn.Module, seed: int = 0) -> None:
    """Draw every weight anew; the same model and seed give the same weights."""
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.named_modules():
        for part, weight in module.named_parameters(recurse=False):
            mean, std = _spread(name, module, part, weight)
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(mean + std * noise)


def _spread(name: str, module: nn.Module, part: str, weight: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of one weight."""
    last = name.rsplit(".", 1)[-1]
    if "bias" in part:
        return 0.0, BIAS
    if weight.ndim < 2 and ("Norm" in type(module).__name__ or part.startswith(SCALES)):
        return GAINS.get(last, 1.0), NORM
    where = f"{last}.{part}"
    if "position" in where or "pos_embed" in where:
        return 0.0, POSITION
    if isinstance(module, nn.Embedding) or weight[..., 0].numel() == 1 or weight.ndim < 2:
        return 0.0, 1.0  # embeddings, and single tokens: class token, newline
    # Linear weights and convolutions are [out, in, ...]; the experts' are [experts, out, in].
    fan_in = weight.shape[-1] if part.endswith("_proj") else weight[0].numel()
    return 0.0, GAINS.get(last, OTHERS) / float(fan_in) ** 0.5


def tokenizer(specials: Sequence[str], vocab: int, **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer of ``vocab`` ids: ``specials`` first, then one token per byte, then words that
    no text has, so that every id a random model emits can be decoded.

    ``options``: which special is which (``bos_token="<s>"``) and further fields of its config.
    """
    return PreTrainedTokenizerFast(
        tokenizer_object=byte_tokenizer(vocab, specials),
        clean_up_tokenization_spaces=False,
        **options,
    )


def save(
    folder: Path, model: Any, *files: Any, names: Mapping[str, str] | None = None, seed: int = 0
) -> None:
    """Write the model with random weights, fp32, and ``files``: its processor, or the parts of it.

    ``model`` is a Transformers model, whose ``save_pretrained`` gives the hub's config and, nearly,
    its key names; ``names`` (prefix -> prefix on the hub) puts right where it does not.
    """
    randomise(model, seed)
    model.float().save_pretrained(folder)
    for file in files:
        file.save_pretrained(folder)
    if names:
        rename(folder / "model.safetensors", names)


def rename(weights: Path, names: Mapping[str, str]) -> None:
    """Change the prefixes of the keys in a file of weights."""
    renamed = {}
    for key, value in load_file(weights).items():
        old = next((prefix for prefix in names if key.startswith(prefix)), "")
        renamed[names.get(old, "") + key.removeprefix(old)] = value
    save_file(renamed, weights, metadata={"format": "pt"})
