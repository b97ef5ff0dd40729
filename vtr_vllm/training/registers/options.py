"""What a training of registers can be asked: the flags of ``vtr train registers``."""

from pydantic import Field

from vtr_vllm.errors import ConfigurationError
from vtr_vllm.training.options import TrainingOptions

__all__ = ["RegisterOptions"]


class RegisterOptions(TrainingOptions):
    """One training of registers and decoder; what is left out takes its default."""

    registers: int = Field(
        default=8, ge=1, le=1024, description="learned tokens behind each image's own"
    )
    layer: int = Field(
        default=3,
        ge=1,
        le=1024,
        description="decoder layer before which all of an image's own tokens are dropped",
    )
    elastic: bool = Field(
        default=False,
        description="let each step use the first so many registers alone, drawn anew: then fewer serve"
        " smaller budgets",
    )
    learning_rate: float = Field(
        default=5e-3, gt=0, le=1, description="of the registers, after warm-up"
    )
    decoder_rate: float = Field(
        default=5e-5, gt=0, le=1, description="of the decoder's weights, or of LoRA's"
    )
    lora: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="rank of LoRA on the decoder; left out, all of the decoder is trained",
    )

    def check_depth(self, depth: int) -> None:
        """Raise ConfigurationError unless a decoder of ``depth`` layers can drop there."""
        if self.layer >= depth:
            raise ConfigurationError(
                f"--layer {self.layer} of a decoder of {depth} layers; allowed are 1 to {depth - 1}:"
                " the layers before it write the image into the registers"
            )
