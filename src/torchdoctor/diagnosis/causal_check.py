"""Check whether a prediction depends on given kernels: silence them, and random other kernels to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.diagnosis.explanation_result import CausalCheck, StandingOut
from torchdoctor.diagnosis.silencing import random_sets, silenced_logits
from torchdoctor.randomness import key

RANDOM_SETS = 19  # a set of kernels that beats them all does so by chance in 1 case of 20


def causal_check(
    model: nn.Module,
    pixels: Float[Tensor, "1 channel height width"],
    evidence: Mapping[str, Float[np.ndarray, " kernel"]],
    kernels: Sequence[StandingOut],
    levels: Mapping[str, Float[np.ndarray, " kernel"]],
    *,
    names: Sequence[str],
    seed: int,
) -> CausalCheck:
    """Silence kernels and predict again; do the same with 19 random sets of as many other kernels.

    The map of a silenced kernel is set to a constant.
    The chance of a kernel to be drawn into a random set is proportional to its evidence.

    Args:
        model: The network; it is left as it was.
        pixels: The normalised image, on the network's device and in its type.
        evidence: The evidence for the prediction at each layer.
        kernels: The kernels to silence, at least 1.
        levels: The constant that each kernel of a layer is set to when it is silenced.
        names: The names of the categories.
        seed: The seed of the random sets.

    Returns:
        The prediction without the kernels, and by how much the lead of the first prediction fell (in logits)
        without them and without the random sets.
    """
    chosen: dict[str, Tensor] = {}
    for layer in dict.fromkeys(kernel.layer for kernel in kernels):
        weights = torch.from_numpy(evidence[layer].copy())
        numbers = torch.tensor([kernel.kernel for kernel in kernels if kernel.layer == layer])
        silenced = torch.zeros(len(weights), dtype=torch.bool).index_fill_(0, numbers, value=True)
        stream = key("silence", seed, layer) % (1 << 63)
        others = random_sets(weights.where(~silenced, 0.0), len(numbers), RANDOM_SETS, stream)
        chosen[layer] = torch.cat([torch.zeros_like(silenced)[None], silenced[None], others])
    constants = {layer: torch.from_numpy(levels[layer]) for layer in chosen}
    repeated = pixels.expand(2 + RANDOM_SETS, -1, -1, -1)
    logits = silenced_logits(model, repeated, chosen, constants).double().cpu()
    before, after = int(logits[0].argmax()), int(logits[1].argmax())
    leads = lead(logits, before)
    drops = leads[0] - leads
    return CausalCheck(
        prediction=names[after],
        confidence=float(logits[1].softmax(0)[after]),
        drop=float(drops[1]),
        random_drop=float(drops[2:].max()),
        agrees=after != before and bool(drops[1] > drops[2:].max()),
    )


def lead(logits: Float[Tensor, "batch category"], category: int) -> Float[Tensor, " batch"]:
    """Return how far the logit of a category is above the highest of the others.

    Args:
        logits: The outputs of the network.
        category: The number of the category.

    Returns:
        The differences; negative where another category has the highest logit.
    """
    others = logits.clone()
    others[:, category] = -math.inf
    return logits[:, category] - others.max(1).values
