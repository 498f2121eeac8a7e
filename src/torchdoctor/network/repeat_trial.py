"""Try out whether a network gives the same logits again, and those of an image whatever stands beside it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from torchdoctor.network.copying import copy_of
from torchdoctor.network.derivative_trial import Messages
from torchdoctor.network.outputs import as_logits, one_row_each

ROUNDING = 1e-4  # relative to the largest logit: what the same computation in float32 may differ by
BESIDE = 0.02  # largest difference by other images: relative to the largest logit, or to what images change
EXACT = 1e-6  # of the same in float64


def try_again(model: nn.Module, example: Tensor, _layers: Sequence[str] | None) -> Messages:
    """Run twice, and each image alone: nothing random, and no image acts on another.

    Args:
        model: A copy of the network, in evaluation mode.
        example: Two or more normalised images [batch, channel, height, width].

    Yields:
        What would not work: how bad it is, and a sentence.
    """
    both, alone = _together_and_alone(model, example)
    with torch.no_grad():
        again = as_logits(model(example))
    scale = float(both.abs().max()) + 1e-6
    if not bool(torch.isclose(both, again, rtol=ROUNDING, atol=ROUNDING * scale).all()):
        yield (
            "error",
            (
                "the same images give different logits in evaluation mode (functional dropout without "
                "training=self.training?): evidence would be noise"
            ),
        )
    elif _act_on_each_other(model, example, both, alone, scale):
        yield (
            "error",
            (
                "an image's logits depend on the others of its batch in evaluation mode (batch-norm without "
                "running statistics?): evidence could not be attributed to one image"
            ),
        )


def _together_and_alone(model: nn.Module, example: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of images in one batch, and those of each image alone."""
    with torch.no_grad():
        both = as_logits(model(example))
        rows = [as_logits(model(image[None])) for image in example]
    for row in rows:
        one_row_each(row, 1)
    return both, torch.cat(rows)


def _act_on_each_other(model: nn.Module, example: Tensor, both: Tensor, alone: Tensor, scale: float) -> bool:
    """Whether images act on each other's logits by more than rounding."""
    if not bool(torch.isclose(both, alone, rtol=BESIDE, atol=BESIDE * scale).all()):
        return True
    spread = float((both.max(0).values - both.min(0).values).max())  # by how much images change logits
    off = float((both - alone).abs().max())
    if off <= ROUNDING * scale + BESIDE * spread:
        return False
    try:  # rounding, as of TF32, or a small effect: in float64 only the effect is left
        exact = copy_of(model).cpu().double()
        both, alone = _together_and_alone(exact, example.cpu().double())
    except Exception:  # a network that is written for one type or device
        return False
    return float((both - alone).abs().max()) > EXACT * float(both.abs().max())
