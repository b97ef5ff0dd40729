"""The schedule that this request needs: a family of schedules, and a chooser among them.

Instance-wise reduction (ATP-LLaVA, arXiv 2412.00447) with counts that are known before the forward
pass: the choice is made at admission, from the prompt alone. Loads neither torch nor vLLM.
"""

from vtr_vllm.adaptive.family import ScheduleFamily
from vtr_vllm.adaptive.features import Prompt, features
from vtr_vllm.adaptive.predictor import Predictor
from vtr_vllm.adaptive.price import Price, Prices, pick

__all__ = [
    "Predictor",
    "Price",
    "Prices",
    "Prompt",
    "ScheduleFamily",
    "features",
    "pick",
]
