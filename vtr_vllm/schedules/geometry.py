"""The shape of a language model's decoder: what a schedule is bound to."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from vtr_vllm.errors import ScheduleError, UnsupportedModel, show
from vtr_vllm.schedules.strict_json import check_keys

_MAX_SIZE = 2**31 - 1


@dataclass(frozen=True)
class ModelGeometry:
    """Sizes of one decoder, all positive integers; raises ScheduleError otherwise.

    A schedule fits a model exactly when all six sizes are equal. ``heads`` are query heads;
    ``kv_heads`` divides them (grouped-query attention); ``heads * head_dim`` may differ from
    ``hidden_size``.
    """

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ScheduleError(
                    f"geometry {field.name} is {show(value)}; it must be a whole number"
                    f" in 1..{_MAX_SIZE}: take it from the model's text config"
                )
            if not 1 <= value <= _MAX_SIZE:
                raise ScheduleError(
                    f"geometry {field.name} is {show(value)}; allowed is 1..{_MAX_SIZE}:"
                    " take it from the model's text config"
                )
        if self.heads % self.kv_heads:
            raise ScheduleError(
                f"geometry kv_heads is {self.kv_heads}; it must divide heads = {self.heads}:"
                " take both from the model's text config"
            )

    @property
    def fingerprint(self) -> str:
        """Short, stable and readable, such as ``12L-128h-320i-2q-2kv-64d``."""
        return (
            f"{self.layers}L-{self.hidden_size}h-{self.intermediate_size}i"
            f"-{self.heads}q-{self.kv_heads}kv-{self.head_dim}d"
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a Hugging Face text config as a dictionary (of a VLM: its ``text_config``).

        ``num_key_value_heads`` defaults to the query heads and ``head_dim`` to
        ``hidden_size / num_attention_heads``, as in Hugging Face's own configs. Of a mixture of
        experts ``intermediate_size`` is what a token passes through: its experts together. Raises
        UnsupportedModel when a size is missing or impossible.
        """
        needed = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads")
        missing = [key for key in needed if config.get(key) is None]
        if missing:
            raise UnsupportedModel(
                f"the model config has no {', '.join(missing)}; pass the text config of a"
                " decoder-only model (a VLM keeps it under text_config)"
            )
        heads = config["num_attention_heads"]
        kv_heads = config.get("num_key_value_heads")
        head_dim = config.get("head_dim")
        if head_dim is None:
            head_dim = _even_share(config["hidden_size"], heads)
        try:
            return cls(
                layers=config["num_hidden_layers"],
                hidden_size=config["hidden_size"],
                intermediate_size=_active_width(config),
                heads=heads,
                kv_heads=heads if kv_heads is None else kv_heads,
                head_dim=head_dim,
            )
        except ScheduleError as err:
            raise UnsupportedModel(f"the model config is not usable: {err}") from err

    def to_dict(self) -> dict[str, int]:
        """The six sizes by field name."""
        return asdict(self)

    @classmethod
    def from_dict(cls, mapping: object) -> Self:
        """The reverse of ``to_dict``; raises ScheduleError on any other key or value."""
        if not isinstance(mapping, Mapping):
            raise ScheduleError(f"geometry must be an object of six sizes, got {show(mapping)}")
        check_keys(mapping, [field.name for field in fields(cls)], "geometry")
        return cls(**mapping)


def _active_width(config: Mapping[str, Any]) -> Any:
    """MLP width of one token, routed experts counted together."""
    experts, width = config.get("num_experts_per_tok"), config.get("moe_intermediate_size")
    if isinstance(experts, int) and isinstance(width, int):
        return experts * width
    return config["intermediate_size"]


def _even_share(hidden_size: object, heads: object) -> int:
    """hidden_size / heads, where that is a whole number; raises UnsupportedModel."""
    if isinstance(hidden_size, int) and isinstance(heads, int) and heads > 0:
        share, rest = divmod(hidden_size, heads)
        if not rest:
            return share
    raise UnsupportedModel(
        f"the model config has no head_dim, and hidden_size {show(hidden_size)} is no multiple"
        f" of num_attention_heads {show(heads)}; add head_dim to the config"
    )
