"""Training of registers: answers alone, with the drop in force from the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vtr_vllm.schedules import Schedule
from vtr_vllm.training import lora
from vtr_vllm.training.attention import Rows
from vtr_vllm.training.llava import Example
from vtr_vllm.training.loop import Training
from vtr_vllm.training.registers.checkpoint import halvings, schedules, write
from vtr_vllm.training.registers.dropping import DroppingPass
from vtr_vllm.training.registers.options import RegisterOptions

__all__ = ["RegisterTraining", "Trained"]


@dataclass(frozen=True)
class Trained:
    """What a training left in its folder."""

    schedules: list[Schedule]
    scores: dict[str, Any]
    """Share of held-out items answered right: by schedule, and without a drop."""


class RegisterTraining(Training[RegisterOptions, Trained]):
    """Registers and a decoder that reads them; tower and projector are frozen."""

    told = ("answer",)

    def check(self) -> None:
        self.options.check_depth(self.depth)

    def make(self) -> list[dict[str, Any]]:
        options, llava = self.options, self.llava
        words = llava.decoder.get_input_embeddings().weight
        # As large as words are; learned ones win where they are few (Victor, section 5).
        scale = float(words.detach().float().std())
        first = torch.randn(options.registers, words.shape[1]) * scale
        self.registers = nn.Parameter(first.to(llava.device))
        llava.registers = self.registers
        if options.lora is not None:
            lora.add(llava.decoder, options.lora)
        else:
            llava.learn()
        decoder = [weight for weight in llava.decoder.parameters() if weight.requires_grad]
        return [
            {"params": [self.registers], "base": options.learning_rate},
            {"params": decoder, "base": options.decoder_rate},
        ]

    @property
    def what(self) -> str:
        asked = self.options
        elastic = ", or the first of them" if asked.elastic else ""
        return (
            f"{asked.registers} registers{elastic}, an image's own tokens dropped before layer"
            f" {asked.layer} of {self.depth}"
        )

    def weights(self) -> dict[str, Tensor]:
        learning = {
            name: weight.detach()
            for name, weight in self.llava.decoder.named_parameters()
            if weight.requires_grad
        }
        return {"registers": self.registers.detach(), **learning}

    def load(self, weights: Mapping[str, Tensor]) -> None:
        rest = dict(weights)
        with torch.no_grad():
            self.registers.copy_(rest.pop("registers"))
        self.llava.decoder.load_state_dict(rest, strict=False)

    def losses_of(self, examples: Sequence[Example]) -> Mapping[str, Tensor]:
        side = self.llava.batch(examples)
        logits = self.llava.logits(side, self._pass(side.rows, self._drawn()))
        return {"answer": functional.cross_entropy(logits.float(), side.answers)}

    def _drawn(self) -> int:
        """How many registers this step uses: as Matryoshka queries, any number alike (2405.19315)."""
        most = self.options.registers
        if not self.options.elastic:
            return most
        generator = torch.Generator().manual_seed(self.options.seed * 1_000_003 + self.step)
        return int(torch.randint(1, most + 1, (), generator=generator))

    def _pass(self, rows: Rows, kept: int) -> DroppingPass:
        return DroppingPass(rows, self.options.registers, kept, self.options.layer)

    def finish(self) -> Trained:
        options, llava = self.options, self.llava
        own = llava.grid[0] * llava.grid[1]
        sizes = own, options.registers, options.layer
        counts = halvings(options.registers) if options.elastic else [options.registers]
        found = schedules(llava.geometry, *sizes, counts)
        scores: dict[str, Any] = {"n": len(self.heldout)}
        for schedule in found:
            count = int(str(schedule.parameters["registers"]))
            scores[schedule.name] = self._right(count)
        scores["full"] = self._right(None)
        write(self._learned(), llava.processor, self.registers, self.folder, found)
        return Trained(found, scores)

    def _learned(self) -> Any:
        """The model as it lies in the checkpoint, with what the decoder learned; rounded there alone."""
        model = self.llava.source()
        decoder = model.model.language_model
        if self.options.lora is not None:
            lora.merge(self.llava.decoder, decoder)
            return model
        learned = self.weights()
        del learned["registers"]
        decoder.load_state_dict(learned, strict=False)
        return model

    @torch.no_grad()
    def _right(self, kept: int | None) -> float | None:
        """Share of held-out items answered right with ``kept`` registers; None: nothing is dropped."""
        right: list[float] = []
        for start in range(0, len(self.heldout), self.options.batch):
            side = self.llava.batch(self.heldout[start : start + self.options.batch])
            own = None if kept is None else self._pass(side.rows, kept)
            right += self.llava.answered_right(side, self.llava.logits(side, own)).tolist()
        return fmean(right) if right else None
