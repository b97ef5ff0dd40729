"""What every training can be asked."""

from pydantic import BaseModel, ConfigDict, Field

from vtr_vllm.search_options import Text

__all__ = ["TrainingOptions"]


class TrainingOptions(BaseModel):
    """One training; what is left out takes its default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    model: Text = Field(description="model path or name, or `demo`")
    data: Text = Field(description="file of calibration data with answers, JSON Lines")
    steps: int = Field(default=2000, ge=1, le=10_000_000, description="optimizer steps")
    batch: int = Field(default=16, ge=1, le=4096, description="questions a step")
    seed: int = Field(default=0, ge=0, lt=1 << 31, description="of first weights and of the order")
    heldout: float = Field(
        default=0.1, ge=0, lt=1, description="share of the items that is scored, not trained on"
    )
