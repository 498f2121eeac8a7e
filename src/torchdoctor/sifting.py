"""Choose the images that speak for a category, and those that a person should annotate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from torchdoctor.gradients import measuring
from torchdoctor.networks import as_logits
from torchdoctor.types import Batch, Images, InputError, Sifting

LowOrder = Literal["mistakes_first", "low_confidence"]


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


def sift(
    ids: Int[Tensor, " image"],
    labels: Int[Tensor, " image"],
    logits: Float[Tensor, "image category"],
    *,
    images_per_category: int = 100,
    confidence: float = 0.9,
    annotations_per_category: int = 20,
    low_order: LowOrder = "mistakes_first",
) -> Sifting:
    """Sift each category's most confident correct images (high) and those to be annotated (low).

    high: correct, confidence above `confidence`, at most `images_per_category` (the paper's T), most
    confident first. low: `Differs from the paper:` mistakes first, the most confident before the
    others, then right ones by rising confidence; the paper's words, lowest confidence first, are
    `low_order="low_confidence"`. Ties are broken by id.
    """
    certainty, predictions = logits.double().softmax(1).max(1)
    high, low = [], []
    for category in range(logits.shape[1]):
        rows = [
            (float(certainty[row]), int(ids[row]), bool(predictions[row] == category))
            for row in (labels == category).nonzero()[:, 0].tolist()
        ]
        right = sorted((-sure, image) for sure, image, correct in rows if correct and sure > confidence)
        high.append(tuple(image for _, image in right[:images_per_category]))
        if low_order == "low_confidence":
            order = sorted((sure, image) for sure, image, _ in rows)
            low.append(tuple(image for _, image in order[:annotations_per_category]))
        else:
            ranked = sorted((correct, sure if correct else -sure, image) for sure, image, correct in rows)
            low.append(tuple(image for _, _, image in ranked[:annotations_per_category]))
    return Sifting(tuple(high), tuple(low), confidence, images_per_category)


def only(images: Images, ids: Iterable[int]) -> Iterator[Batch]:
    """Yield the batches cut down to the images with these ids; sources that can select are asked to."""
    wanted = sorted(set(ids))
    select = getattr(images, "select", None)
    if select is not None:
        yield from select(wanted)
        return
    chosen = torch.tensor(wanted)
    for batch in images:
        keep = torch.isin(batch.ids.cpu(), chosen)
        if bool(keep.any()):
            yield take(batch, keep)


def take(batch: Batch, rows: Tensor) -> Batch:
    """Return the chosen rows of a batch."""
    return Batch(
        batch.images[rows],
        batch.labels[rows],
        batch.ids[rows],
        None if batch.masks is None else batch.masks[rows],
        None if batch.annotated is None else batch.annotated[rows],
    )
