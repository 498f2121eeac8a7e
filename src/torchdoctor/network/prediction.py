"""Predict logits, and tell where and in which precision a network computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.images.batches import Batch, sent, shared
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.processes import ALONE, Processes
from torchdoctor.types import InputError


def device_of(model: nn.Module) -> torch.device:
    """Return where a network computes.

    Args:
        model: The network.

    Returns:
        The device of its first parameter; the CPU if it has none.
    """
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def dtype_of(model: nn.Module) -> torch.dtype:
    """Return the floating type in which a network computes.

    Args:
        model: The network.

    Returns:
        The type of its first parameter; float32 if it has none.
    """
    return next((parameter.dtype for parameter in model.parameters()), torch.float32)


def _drop(_more: object) -> None:
    """Keep nothing of what was computed beside the logits."""


def predict_logits(
    model: nn.Module,
    images: Iterable[Batch],
    run: Callable[[Batch], tuple[Float[Tensor, "batch category"], Any]] | None = None,
    keep: Callable[[Any], None] = _drop,
    processes: Processes = ALONE,
) -> tuple[Int[Tensor, " image"], Int[Tensor, " image"], Float[Tensor, "image category"]]:
    """Predict all images in evaluation mode.

    Args:
        model: The network; it is left as it was.
        images: Batches of normalised images; no id may come twice.
        run: What gives the logits of a batch, and what else is wanted of it; by default the network itself.
        keep: Receives what else is wanted, batch by batch in the order of `images`.
        processes: The processes that work together: each predicts a share of the
            batches, and every process gets the predictions of all.

    Returns:
        The images' ids, their labels and their logits (float32), all on the CPU, in the order of `images`.

    Raises:
        InputError: There is no image, an id comes twice, or a label has no logit.
    """
    ids, labels, logits = [], [], []
    device, dtype = device_of(model), dtype_of(model)
    with frozen_eval(model) as frozen:

        def predicted(batch: Batch) -> tuple[Tensor, Tensor, Tensor, Any]:
            with torch.inference_mode():
                scores, more = run(batch) if run else (frozen.logits(sent(batch.images, device, dtype)), None)
                return batch.ids.cpu(), batch.labels.cpu(), scores.float().cpu(), more

        for numbers, given, scores, more in processes.in_order(map(predicted, shared(images, processes))):
            ids.append(numbers)
            labels.append(given)
            logits.append(scores)
            keep(more)
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
