"""The evidence averaged over all noise draws, differentiable by the weights, for the price of one draw.

Where a layer has a closed form (`closed_form`), the gradient under a draw is the slope with every gate open,
times whether the draw leaves the gate open. The mean of abs((m + sigma) dy/dm) over the draws is then
abs(slope) x mean of abs(m + sigma) x open, and its derivative by m is abs(slope) x mean of sign(m + sigma) x
open: two numbers per position, which need no graph. Only the slope is differentiated twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from torchdoctor.evidence.gates import Gated, gated
from torchdoctor.network.double_backward import fast_double_backward
from torchdoctor.network.gradients import pick, score_gradients
from torchdoctor.network.tails import Tail
from torchdoctor.types import PenaltyEvidence


@dataclass
class MeanEvidence:
    """One layer of a batch under all its draws; the network stays in evaluation mode while it is asked.

    Attributes:
        batch: The batch at this layer, without gradients.
        noise: All draws of noise, in units of the map.
        maps: The layer's map, differentiable by the weights.
        logits: The scores with every gate open.
        opening: What was added to the map to open every gate; the logits can be differentiated by it.
        sizes: What `size` gave so far, by kind of evidence.
    """

    batch: Gated
    noise: Float[Tensor, "draw batch kernel map_height map_width"]
    maps: Float[Tensor, "batch kernel map_height map_width"]
    logits: Float[Tensor, "1 batch category"]
    opening: Float[Tensor, "1 batch kernel map_height map_width"]
    sizes: dict[PenaltyEvidence, Tensor] = field(default_factory=dict)

    def slope(self, category: Int[Tensor, " batch"]) -> Float[Tensor, "batch kernel map_height map_width"]:
        """Return d y / d m of each image's category with every gate open.

        Args:
            category: The number of each image's category.

        Returns:
            The slopes, differentiable by the weights.
        """
        score = pick(self.logits, category).sum()
        return score_gradients([score], {"": self.opening}, create_graph=True)[0][""][0]

    def size(self, kind: PenaltyEvidence) -> Float[Tensor, "batch kernel map_height map_width"]:
        """Return what the slope is multiplied by, averaged over the draws.

        Args:
            kind: The kind of evidence (see `evidence_of`).

        Returns:
            The share of draws that leave the gate open, or (`gradient_x_activation`) the mean over all draws
            of abs(m + sigma) where it is open and 0 elsewhere, differentiable by the map.
        """
        with torch.no_grad():
            is_open = self.batch.passes(self.noise)
            if kind != "gradient_x_activation":
                return is_open.to(self.maps.dtype).mean(0)
            noisy = (self.batch.maps + self.noise).mul_(is_open)
            by_map = noisy.sign().mean(0)
            mean = noisy.abs_().mean(0)
        return torch.addcmul(mean, by_map, self.maps - self.maps.detach())  # 0, with by_map as its slope

    def of(
        self, category: Int[Tensor, " batch"], kind: PenaltyEvidence
    ) -> Float[Tensor, "1 batch kernel map_height map_width"]:
        """Return the evidence for a category, averaged over the draws (Eq. 4).

        Args:
            category: The number of each image's category.
            kind: The kind of evidence (see `evidence_of`).

        Returns:
            The mean evidence, as a single draw; differentiable by the weights.
        """
        slope = self.slope(category)
        if kind not in self.sizes:
            self.sizes[kind] = self.size(kind)
        slope = slope.clamp(min=0) if kind == "positive_gradient" else slope.abs()
        return (slope * self.sizes[kind])[None]


def mean_evidence(tail: Tail, noise: Float[Tensor, "draw row kernel map_height map_width"]) -> MeanEvidence:
    """Run a layer's tail twice: as it is, and with every gate open.

    Args:
        tail: The tail of a layer with a shortcut and a closed form; its network in evaluation mode.
        noise: All draws of noise, in units of the map.

    Returns:
        The layer under all these draws.

    Raises:
        NoClosedFormError: The layer has no closed form.
        RuntimeError: The layer has no shortcut.
    """
    with tail.alone() as (maps, blank):
        batch = gated(tail.model, blank, tail.layer)
    with fast_double_backward(tail.model):
        opening = (batch.opened(None) - batch.maps)[None].detach()
        opened = tail.noisy(opening)
    return MeanEvidence(batch, noise, maps, opened.logits, opened.noise)
