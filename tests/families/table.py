"""Every family that is supported. A new one is one entry here and one name in engine/common/supported_models.py."""

from __future__ import annotations

from tests.families import further, glm, internvl, llava, qwen
from tests.families.family import Family

FAMILIES: tuple[Family, ...] = (
    *llava.FAMILIES,
    *internvl.FAMILIES,
    *qwen.FAMILIES,
    *glm.FAMILIES,
    *further.FAMILIES,
)
