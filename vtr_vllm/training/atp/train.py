"""Training of ATP modules: soft masks, and a target for the mean keep rate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vtr_vllm.atp.artefact import LORA, Artefact, describe
from vtr_vllm.atp.facts import Facts
from vtr_vllm.atp.module import AtpModules, Masking, Shape, grid_scores
from vtr_vllm.tensor_file import save_tensors
from vtr_vllm.training import lora
from vtr_vllm.training.atp.loss import Weights, training_loss
from vtr_vllm.training.atp.masked_attention import MaskedPass
from vtr_vllm.training.atp.options import AtpOptions, cut_layers
from vtr_vllm.training.atp.score import outcomes, summary
from vtr_vllm.training.atp.writing import served, write
from vtr_vllm.training.llava import Example
from vtr_vllm.training.loop import Training

__all__ = ["AtpTraining"]


class AtpTraining(Training[AtpOptions, Artefact]):
    """Modules that decide how many tokens stay; the model is frozen, or learns through LoRA."""

    told = ("total", "answer", "depth", "distance", "keep")

    def check(self) -> None:
        cut_layers(self.options, self.depth)

    def make(self) -> list[dict[str, Any]]:
        options, llava = self.options, self.llava
        width = llava.state_width if options.features == "question" else 0
        layers = cut_layers(options, self.depth)
        self.modules = AtpModules(layers, Shape(state=width)).to(llava.device)
        self._grid = grid_scores(*llava.grid).to(llava.device)
        groups = [{"params": list(self.modules.parameters()), "base": options.learning_rate}]
        if options.lora is not None:
            lora.add(llava.decoder, options.lora)
            groups.append({"params": lora.parameters(llava.decoder), "base": options.lora_rate})
        return groups

    @property
    def what(self) -> str:
        layers = ", ".join(map(str, self.modules.layers))
        return f"modules before layers {layers} of {self.depth}, target {self.options.target:g}"

    def weights(self) -> dict[str, Tensor]:
        return {**self.modules.state_dict(), **lora.tensors(self.llava.decoder)}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        own = self.modules.state_dict().keys()
        self.modules.load_state_dict({name: weights[name] for name in own})
        adapters = {name: tensor for name, tensor in weights.items() if name not in own}
        self.llava.decoder.load_state_dict(adapters, strict=False)

    def losses_of(self, examples: Sequence[Example]) -> Mapping[str, Tensor]:
        options = self.options
        side = self.llava.batch(examples)
        masking = Masking(options.mask, self._temperature(), options.n_min)
        masked = MaskedPass(self.modules, self._grid, side.rows, masking)
        logits = self.llava.logits(side, masked)
        shares = [kept.share for kept in masked.kept[1:]]
        weights = Weights(options.lambda_atp, options.lambda_target, options.target)
        losses = training_loss(
            logits, side.answers, shares, self.modules.layers, self.depth, weights
        )
        return {name: getattr(losses, name) for name in self.told}

    def _temperature(self) -> float:
        """Geometric from first to last step."""
        low, high = self.options.temperature, self.options.final_temperature
        done: float = self.step / max(1, self.options.steps - 1)
        return low * math.pow(high / low, done)

    def finish(self) -> Artefact:
        options = self.options
        found = list(outcomes(self.llava, self.modules, self.heldout, options.n_min, options.batch))
        facts = describe(
            self.llava.checkpoint,
            self.llava.geometry,
            self.llava.grid,
            self.modules,
            n_min=options.n_min,
            target=options.target,
            lora=options.lora,
            data=self.data.facts(),
            options=options.model_dump(),
            losses=self.losses,
            scores=summary(found),
        )
        if options.lora is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_tensors(self.folder / LORA, lora.tensors(self.llava.decoder))
        artefact = Artefact(self.modules, Facts(facts, self.folder))
        write(artefact, served(artefact, [each.counts for each in found]))
        return artefact
