"""The classification loss of a batch, which remedies change, and what the control arm minimises."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.images.batches import Batch
from torchdoctor.network.outputs import as_logits, auxiliary_logits
from torchdoctor.treatment.precision import at_least_float32
from torchdoctor.treatment.sharing import share_of

AUXILIARY_WEIGHT = 0.3  # of each auxiliary head's loss, as GoogLeNet was trained

Terms = Callable[[nn.Module, Batch, int], Mapping[str, Float[Tensor, ""]]]
Loss = Callable[[Tensor, Tensor], Tensor]


def classification_terms(
    model: nn.Module, batch: Batch, loss: Loss = functional.cross_entropy
) -> tuple[Float[Tensor, "batch category"], dict[str, Float[Tensor, ""]]]:
    """Compute the logits of a batch and its loss, with that of auxiliary heads where there are any.

    Where several processes train, each runs the network on its share of the images; logits and loss are
    those of the whole batch.

    Args:
        model: The network.
        batch: The images with their labels, on the network's device.
        loss: A function of logits and labels that returns the mean loss.

    Returns:
        The logits, and the terms of the loss by name: `loss`, and `auxiliary` for auxiliary heads.

    Example:
        >>> from torchdoctor import Batch, classification_terms
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> batch = Batch(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]), torch.arange(4))
        >>> logits, terms = classification_terms(model, batch)
        >>> tuple(logits.shape), list(terms)
        ((4, 2), ['loss'])
    """
    share = share_of(batch)
    with share.forward(batch.images.device):
        output = model(share.of(batch).images)
    logits = share.whole(as_logits(output))
    heads = [share.whole(head) for head in auxiliary_logits(output)]
    terms = {"loss": loss(at_least_float32(logits), batch.labels)}
    if heads:
        losses = [loss(at_least_float32(head), batch.labels) for head in heads]
        terms["auxiliary"] = AUXILIARY_WEIGHT * torch.stack(losses).sum()
    return logits, terms


def plain_terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Float[Tensor, ""]]:
    """Return what the control arm minimises: the cross-entropy alone.

    Args:
        model: The network.
        batch: The images with their labels, on the network's device.
        step: The number of the step; not used.

    Returns:
        The terms of the loss by name (see `classification_terms`).
    """
    del step
    return classification_terms(model, batch)[1]
