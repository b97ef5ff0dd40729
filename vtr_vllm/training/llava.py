"""A LLaVA checkpoint in Transformers, and its items as rows of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from vtr_vllm.checkpoint_digest import checkpoint_digest
from vtr_vllm.demo import CHECKPOINT
from vtr_vllm.errors import CalibrationError, ConfigurationError, UnsupportedModel
from vtr_vllm.schedules import ModelGeometry
from vtr_vllm.search.calibration import Dataset, Item
from vtr_vllm.training.attention import Pass, Rows, install

__all__ = ["Batch", "Example", "Llava", "folder_of"]

_DECODER = "llama"  # what LLaVA-1.5 has, and the demo; others may slide windows or rotate otherwise
_LISTED = 5


@dataclass(frozen=True)
class Example:
    """An item as tokens: the prompt with a row for each vision token, and what it should be answered."""

    item: Item
    prompt: list[int]
    answer: list[int]
    """With the token that ends it; empty for an item without answers."""


@dataclass(frozen=True)
class Batch:
    """Examples side by side, padded behind their ends. ``R`` rows, ``T`` answer tokens of all."""

    ids: Tensor
    """``[B, R]``"""
    pixels: Tensor
    rows: Rows
    predicting: tuple[Tensor, Tensor]
    """Instance and row of what predicts each answer token, ``[T]`` each."""
    answers: Tensor
    """``[T]``"""


class Llava:
    """A LLaVA-1.5 whose decoder attends through ours, with its processor; weights frozen."""

    def __init__(
        self, model: Any, processor: Any, folder: Path | str, checkpoint: str | None
    ) -> None:
        """``load`` makes them; ``folder``: where Transformers finds the checkpoint, of which
        ``checkpoint`` is the digest."""
        self.model, self.processor, self._folder = model, processor, folder
        self.checkpoint = checkpoint
        self._mixed = False
        config = model.config
        self.decoder = model.model.language_model
        self.image_token = int(config.image_token_id)
        side = config.vision_config.image_size // config.vision_config.patch_size
        self.grid = (side, side)
        self.geometry = ModelGeometry.from_config(config.text_config.to_dict())
        ends = model.generation_config.eos_token_id
        end = processor.tokenizer.eos_token_id
        self.ends = frozenset([end, *(ends if isinstance(ends, list) else [ends])]) - {None}
        self._end = end
        self.registers: Tensor | None = None
        """``[M, hidden]`` behind each image's own tokens, and counted with them."""
        self.device = next(model.parameters()).device

    @classmethod
    def load(cls, name: str) -> Self:
        """Load a folder, ``demo``, or a name out of the hub's cache; raises ConfigurationError.

        float32 on a CPU, bfloat16 on a GPU, where there is one.
        """
        from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

        folder = folder_of(name)
        try:
            config = AutoConfig.from_pretrained(folder)
            if config.model_type != "llava" or config.text_config.model_type != _DECODER:
                raise UnsupportedModel(
                    f"{name} is a {config.model_type}; what reduces its tokens is trained on LLaVA-1.5, a `llava` whose"
                    f" text model is a `{_DECODER}`: name one of these"
                )
            model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=_computed_in())
            processor = AutoProcessor.from_pretrained(folder)
        except (OSError, ValueError) as err:
            raise ConfigurationError(
                f"model {name} cannot be loaded by Transformers ({err}); name a whole checkpoint"
            ) from err
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
        install(model.eval().requires_grad_(False).model.language_model)
        return cls(model, processor, folder, checkpoint_digest(str(folder)))

    def learn(self) -> None:
        """Let all of the decoder learn, in float32: a step is less than half a bfloat16's last bit."""
        if self.model.dtype != torch.float32:
            exact = self.source(torch.float32).model.language_model.state_dict()
            self.decoder.float().load_state_dict(exact)
            self._mixed = True
        self.decoder.requires_grad_(True)

    def source(self, dtype: torch.dtype | None = None) -> Any:
        """The checkpoint's model once more, as it is stored: in its own type where none is given."""
        from transformers import LlavaForConditionalGeneration

        return LlavaForConditionalGeneration.from_pretrained(self._folder, dtype=dtype or "auto")

    @property
    def tokens(self) -> int:
        """Vision tokens of an image, registers with them."""
        registers = 0 if self.registers is None else len(self.registers)
        return self.grid[0] * self.grid[1] + registers

    @property
    def state_width(self) -> int:
        """Width of a row's values in one layer, all heads together."""
        return self.geometry.kv_heads * self.geometry.head_dim

    def examples(self, data: Dataset) -> list[Example]:
        """Every item as tokens; raises one CalibrationError that lists what cannot be used."""
        found, problems = [], []
        for item in data.items:
            try:
                found.append(self.example(item))
            except CalibrationError as err:
                problems.append(f"{data.path}:{item.line}: {err}")
        if problems:
            more = len(problems) - _LISTED
            listed = problems[:_LISTED] + ([f"and {more} more"] if more > 0 else [])
            raise CalibrationError(
                "\n".join([f"{data.path} cannot be used for training:", *listed])
            )
        return found

    def example(self, item: Item) -> Example:
        """One item as tokens; raises CalibrationError."""
        if len(item.image_hashes) != 1:
            raise CalibrationError(
                f"{len(item.image_hashes)} images; training takes one: leave the item out"
            )
        chat = _chat(item)
        asked = self._tokens(chat, add_generation_prompt=True)
        if asked.count(self.image_token) != self.tokens:
            raise CalibrationError(
                f"the prompt has {asked.count(self.image_token)} vision tokens, the model"
                f" {self.tokens} an image; keep `<image>` out of the text"
            )
        if asked[-1] == self.image_token:
            raise CalibrationError("no text stands behind the image; ask a question behind it")
        if not item.answers:
            return Example(item, asked, [])
        said = [*chat, {"role": "assistant", "content": _text(item.answers[0])}]
        whole = self._tokens(said)
        if whole[: len(asked)] != asked or len(whole) == len(asked):
            raise CalibrationError(
                "with its answer the chat is another prompt; training needs a chat template that only adds"
            )
        answer = whole[len(asked) :]
        if answer[-1] not in self.ends and self._end is not None:
            answer.append(self._end)
        return Example(item, asked, answer)

    def _tokens(self, chat: list[dict[str, Any]], **options: Any) -> list[int]:
        """Token ids of a chat as it is served, each image a row per vision token."""
        text = self.processor.apply_chat_template(chat, tokenize=False, **options)
        if not options:
            text = text.rstrip()  # behind an answer comes the token that ends it, or nothing
        # a chat template writes its own start token
        ids: list[int] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        counts = [self.tokens if token == self.image_token else 1 for token in ids]
        return [token for token, count in zip(ids, counts, strict=True) for _ in range(count)]

    def batch(self, examples: Sequence[Example], answers: bool = True) -> Batch:
        """Examples side by side; without ``answers`` the prompts alone. Raises CalibrationError."""
        told = [example.answer if answers else [] for example in examples]
        lines = [[*e.prompt, *answer] for e, answer in zip(examples, told, strict=True)]
        size = max(map(len, lines))
        ids = torch.full((len(lines), size), examples[0].prompt[-1])  # of padding no id counts
        asking = torch.zeros(len(lines), size, dtype=torch.bool)
        vision: list[list[int]] = []
        instances: list[int] = []
        places: list[int] = []
        for number, (example, line) in enumerate(zip(examples, lines, strict=True)):
            ids[number, : len(line)] = torch.tensor(line)
            found = [row for row, token in enumerate(example.prompt) if token == self.image_token]
            vision.append(found)
            asking[number, found[-1] + 1 : len(example.prompt)] = True
            told_by = range(len(example.prompt) - 1, len(line) - 1)
            instances += [number] * len(told_by)
            places += told_by
        last = torch.tensor([len(example.prompt) - 1 for example in examples])
        images = [image for example in examples for image in example.item.load_images()]
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        rows = Rows(*(part.to(self.device) for part in (torch.tensor(vision), asking, last)))
        instance = torch.tensor(instances, dtype=torch.long).to(self.device)
        place = torch.tensor(places, dtype=torch.long).to(self.device)
        flat = torch.tensor([token for answer in told for token in answer], dtype=torch.long)
        pixels = pixels.to(self.device, self.model.dtype)
        return Batch(ids.to(self.device), pixels, rows, (instance, place), flat.to(self.device))

    def logits(self, batch: Batch, own: Pass | None) -> Tensor:
        """``[T, vocabulary]`` at the rows that predict the answers; without a pass nothing is dropped."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed):
            return self._logits(batch, own)

    def _logits(self, batch: Batch, own: Pass | None) -> Tensor:
        if self.registers is None:
            given = {"input_ids": batch.ids, "pixel_values": batch.pixels}
            states = self.model.model(**given, use_cache=False, vtr=own).last_hidden_state
        else:
            rows = self._with_registers(batch, self.registers)
            states = self.decoder(inputs_embeds=rows, use_cache=False, vtr=own).last_hidden_state
        found: Tensor = self.model.lm_head(states[batch.predicting])
        return found

    def _with_registers(self, batch: Batch, registers: Tensor) -> Tensor:
        """``[B, R, hidden]``: words, and each image followed by the registers."""
        words = self.decoder.get_input_embeddings()(batch.ids)
        images = torch.stack(self.model.model.get_image_features(batch.pixels).pooler_output)
        own = registers.to(images.dtype).expand(len(images), -1, -1)
        image = torch.cat([images, own], dim=1)
        places = batch.rows.vision[..., None].expand_as(image)
        found: Tensor = words.scatter(1, places, image.to(words.dtype))
        return found

    def answered_right(self, batch: Batch, logits: Tensor) -> Tensor:
        """bool ``[B]``: whether greedy decoding gives each answer in full."""
        wrong = (logits.argmax(-1) != batch.answers).float()
        missed = torch.zeros(len(batch.ids), device=wrong.device)
        return missed.index_add(0, batch.predicting[0], wrong) == 0


def _computed_in() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def folder_of(name: str) -> Path | str:
    """Where a model's files are: of ``demo`` in this package."""
    return CHECKPOINT if name == "demo" else name


def _chat(item: Item) -> list[dict[str, Any]]:
    """The conversation that asks ``item``, in the form of Transformers' chat templates."""
    chat = []
    for turn in item.history:
        chat.append(_asked(turn.question, turn.image is not None))
        chat.append({"role": "assistant", "content": _text(turn.answer)})
    return [*chat, _asked(item.question, item.image is not None)]


def _asked(question: str, brings: bool) -> dict[str, Any]:
    image = [{"type": "image"}] if brings else []
    return {"role": "user", "content": [*image, *_text(question)]}


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}]
