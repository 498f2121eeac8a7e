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
from torch import Tensor, nn

from torchdoctor.evidence.closed_form import Gated, gated
from torchdoctor.network.double_backward import derived_twice
from torchdoctor.network.gradients import pick, score_gradients
from torchdoctor.network.tails import Shortcut, Trunk, run_tail, tail_alone
from torchdoctor.types import PenaltyEvidence


@dataclass
class MeanEvidence:
    """One layer of a batch under all its draws; the network stays in evaluation mode while it is asked."""

    found: Gated
    noise: Float[Tensor, "draw batch kernel map_height map_width"]
    maps: Float[Tensor, "batch kernel map_height map_width"]
    logits: Float[Tensor, "1 batch category"]
    opening: Float[Tensor, "1 batch kernel map_height map_width"]
    sizes: dict[PenaltyEvidence, Tensor] = field(default_factory=dict)

    def slope(self, category: Int[Tensor, " batch"]) -> Float[Tensor, "batch kernel map_height map_width"]:
        """Return d y / d m of each image's category with every gate open, differentiable by the weights."""
        score = pick(self.logits, category).sum()
        return score_gradients([score], {"": self.opening}, create_graph=True)[0][""][0]

    def size(self, kind: PenaltyEvidence) -> Float[Tensor, "batch kernel map_height map_width"]:
        """Return what the slope is multiplied by, averaged over the draws, differentiable by the map."""
        with torch.no_grad():
            is_open = self.found.passes(self.noise)
            if kind != "gradient_x_activation":
                return is_open.to(self.maps.dtype).mean(0)
            noisy = (self.found.maps + self.noise).mul_(is_open)
            by_map = noisy.sign().mean(0)
            mean = noisy.abs_().mean(0)
        return torch.addcmul(mean, by_map, self.maps - self.maps.detach())  # 0, with by_map as its slope

    def of(
        self, category: Int[Tensor, " batch"], kind: PenaltyEvidence
    ) -> Float[Tensor, "1 batch kernel map_height map_width"]:
        """Return the evidence for a category, averaged over the draws."""
        slope = self.slope(category)
        if kind not in self.sizes:
            self.sizes[kind] = self.size(kind)
        slope = slope.clamp(min=0) if kind == "positive_gradient" else slope.abs()
        return (slope * self.sizes[kind])[None]


def mean_evidence(
    model: nn.Module,
    images: Float[Tensor, "batch channel height width"],
    shortcut: Shortcut,
    trunk: Trunk,
    noise: Float[Tensor, "draw row kernel map_height map_width"],
    rows: Int[Tensor, " row"] | None = None,
) -> MeanEvidence:
    """Run a layer's tail twice on what `trunk` remembers: as it is, and with every gate open."""
    with tail_alone(model, images, shortcut, trunk, rows) as (maps, blank):
        found = gated(model, blank, shortcut.layer)
    with derived_twice(model):
        opening = (found.opened(None) - found.maps)[None].detach()
        tail = run_tail(model, images, shortcut, trunk, opening, rows)
    return MeanEvidence(found, noise, maps, tail.logits, tail.noise)
