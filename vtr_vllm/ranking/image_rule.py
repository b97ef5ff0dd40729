"""Rules that look at images alone: the part that they share."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from vtr_vllm.ranking.images import ImageInputs
from vtr_vllm.ranking.request_rule import RequestRule
from vtr_vllm.ranking.rule import Need

if TYPE_CHECKING:
    import torch

    from vtr_vllm.ranking.inputs import RankInputs


class ImageRule(RequestRule):
    """A rule whose order of an image's tokens depends on that image alone, at any layer.

    A schedule of such rules is local: ``vtr_vllm.schedules.Schedule.is_local``.
    """

    sees_question = False

    @abstractmethod
    def score_images(self, images: ImageInputs) -> torch.Tensor:
        """Scores [U, n] float32; the same for an image whatever stands beside it.

        Must not wait for the device. Equal scores go to the earlier token.
        """

    def score(self, inputs: RankInputs) -> torch.Tensor:
        """Image by image, where the scores of all images are then compared; or, where earlier cuts
        may have taken any of what the rule looks at, all of them as one image."""
        import torch

        if Need.STATES in self.needs:
            joint = inputs.as_one_image()
            scores = self.score_images(joint)[0]
            spread = scores.new_zeros(joint.size).index_copy_(0, joint.tokens[0], scores)
            return inputs.of_tokens(spread)
        return inputs.of_tokens(
            torch.cat([self.score_images(images)[0] for images in inputs.images()])
        )
