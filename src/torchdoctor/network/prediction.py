"""Predict logits, and tell where and in which precision a network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.images.batches import Batch
from torchdoctor.network.hooks import measuring
from torchdoctor.network.outputs import as_logits
from torchdoctor.types import InputError


def device_of(model: nn.Module) -> torch.device:
    """Return where the network's parameters lie (the CPU when it has none)."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the floating type of the network's parameters (float32 when it has none)."""
    return next((parameter.dtype for parameter in model.parameters()), torch.float32)


def predict_logits(
    model: nn.Module,
    images: Iterable[Batch],
    run: Callable[[Batch], Float[Tensor, "batch category"]] | None = None,
) -> tuple[Int[Tensor, " image"], Int[Tensor, " image"], Float[Tensor, "image category"]]:
    """Return (ids, labels, logits) of all images, on the CPU; the network is left as it was.

    `run` gives the logits of a batch where more than the network's output is wanted on the way. Raises
    InputError when there is no image, or a label has no logit.
    """
    ids, labels, logits = [], [], []
    device, dtype = device_of(model), dtype_of(model)
    with measuring(model):
        for batch in images:
            with torch.inference_mode():
                found = run(batch) if run else as_logits(model(batch.images.to(device, dtype)))
            logits.append(found.float().cpu())
            ids.append(batch.ids.cpu())
            labels.append(batch.labels.cpu())
    if not ids:
        raise InputError("there are no images: the source yielded no batch; check the data and its split")
    all_ids, all_labels, all_logits = torch.cat(ids), torch.cat(labels), torch.cat(logits)
    if len(all_ids.unique()) < len(all_ids):
        twice = int(torch.mode(all_ids).values)
        raise InputError(
            f"image id {twice} comes twice: number the images of a split once each in `Batch.ids`"
        )
    if int(all_labels.max()) >= all_logits.shape[1]:
        raise InputError(
            f"the data has a label {int(all_labels.max())} but the model only {all_logits.shape[1]} logits: "
            "give weights whose head has one output per category of the data"
        )
    return all_ids, all_labels, all_logits
