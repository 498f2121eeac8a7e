"""Exchange the backgrounds of images, to find out whether objects or backgrounds decide predictions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from torchdoctor.images.backgrounds import background_alone, before_other_backgrounds
from torchdoctor.images.batches import Batch, Images, only
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.outputs import as_logits
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.processes import ALONE, Processes
from torchdoctor.randomness import key

DONORS = 16  # images, spread over the categories, whose backgrounds are put behind each object
RIGHT = 100  # correctly classified images, drawn at random, that are put before these backgrounds too


@dataclass(frozen=True)
class Donors:
    """Images whose backgrounds are put behind the objects of other images.

    Attributes:
        images: The images.
        masks: Their masks: 1 on the object, 0 on the background.
        labels: Their categories.
        called: The category that the network predicts for each background without its object.
    """

    images: Float[Tensor, "donor channel height width"]
    masks: Float[Tensor, "donor 1 height width"]
    labels: Int[Tensor, " donor"]
    called: Int[Tensor, " donor"]


def usable_masks(batch: Batch) -> Bool[Tensor, " batch"]:
    """Return which images have a mask with both object and background.

    Args:
        batch: The images.

    Returns:
        True where the object covers more than 0.5 % and less than 98 % of the image.
    """
    if batch.masks is None:
        return torch.zeros(len(batch.ids), dtype=torch.bool)
    share = batch.masks.float().mean((1, 2, 3)).cpu()
    known = (share > 0.005) & (share < 0.98)
    return known if batch.annotated is None else known & batch.annotated.cpu()


def donors_of(model: nn.Module, images: Images, labels: Tensor, ids: Tensor, seed: int) -> Donors | None:
    """Choose the images whose backgrounds are used: images with masks, spread over the categories.

    Args:
        model: The network.
        images: The images to choose from.
        labels: Their labels.
        ids: Their ids, in the order of the labels.
        seed: The seed of the choice.

    Returns:
        At most `DONORS` images; None where no image has a usable mask.
    """
    turn: dict[int, int] = {}
    ranked: list[tuple[int, int, int]] = []
    for row in torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed)).tolist():
        label = int(labels[row])
        ranked.append((turn.get(label, 0), len(ranked), int(ids[row])))
        turn[label] = turn.get(label, 0) + 1
    wanted = [image for _, _, image in sorted(ranked)[: 4 * DONORS]]
    place = {image: rank for rank, image in enumerate(wanted)}
    usable: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
    for batch in only(images, wanted):
        for row in usable_masks(batch).nonzero()[:, 0].tolist():
            assert batch.masks is not None
            usable[place[int(batch.ids[row])]] = (
                batch.images[row],
                batch.masks[row],
                batch.labels[row].cpu(),
            )
    if not usable:
        return None
    pixels, masks, own = (
        torch.stack(parts) for parts in zip(*(usable[rank] for rank in sorted(usable)[:DONORS]), strict=True)
    )
    return Donors(pixels, masks, own, _logits(model, background_alone(pixels, masks)).argmax(1))


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logits of images, in float64."""
    with frozen_eval(model), torch.no_grad():
        return as_logits(model(images.to(device_of(model), dtype_of(model)))).double().cpu()


@dataclass(frozen=True)
class Trial:
    """What the network predicts for one object before other backgrounds.

    Attributes:
        numbers: Numbers of the image by name (see `cause_rules.NUMBERS`).
        called: The category that is predicted before each of the other backgrounds.
    """

    numbers: dict[str, float]
    called: Int[Tensor, " donor"]


def try_backgrounds(
    model: nn.Module, batch: Batch, called: Int[Tensor, " batch"], donors: Donors | None
) -> list[Trial | None]:
    """Predict each object before other backgrounds, and its background without the object.

    Args:
        model: The network.
        batch: The images.
        called: The category that the network predicts for each of them.
        donors: The images with the other backgrounds.

    Returns:
        A trial for each image; None where there are no donors, or its mask is not usable.
    """
    trials: list[Trial | None] = [None] * len(batch.ids)
    if donors is None:
        return trials
    for row, image, mask, others in _before_donors(batch, donors):
        logits = _logits(model, torch.cat([others, background_alone(image, mask)]))
        mean, elsewhere = logits[:-1].log_softmax(1).mean(0), logits[:-1].argmax(1)
        numbers = {
            "label_before_others": float(mean.argmax() == batch.labels[row]),
            "prediction_before_others": float((elsewhere == called[row]).double().mean()),
            "background_alone_predicts_it": float(logits[-1].argmax() == called[row]),
        }
        trials[row] = Trial(numbers, elsewhere)
    return trials


def over_all(trials: Sequence[Trial | None], donors: Donors | None, categories: int) -> dict[str, float]:
    """Summarise the trials of all errors.

    Args:
        trials: The trials of the errors.
        donors: The images with the other backgrounds.
        categories: The number of categories.

    Returns:
        `errors_gone_before_others`: the share (0..1) of the errors whose label is predicted on average over
        other backgrounds. `backgrounds_decide`: how often the prediction for an object before another
        background is the prediction for that background alone, corrected for chance (Cohen's kappa): 1 means
        always, 0 as often as by chance. Empty where nothing was tried.
    """
    done = [trial for trial in trials if trial is not None]
    if not done or donors is None:
        return {}
    called = torch.stack([trial.called for trial in done])
    return {
        "errors_gone_before_others": float(np.mean([one.numbers["label_before_others"] for one in done])),
        "backgrounds_decide": _beyond_chance(called, donors.called, categories),
    }


def over_right(
    model: nn.Module, images: Images, right: Int[Tensor, " image"], donors: Donors | None, categories: int,
    seed: int, processes: Processes = ALONE,
) -> dict[str, float]:  # fmt: skip
    """Put correctly classified objects before other backgrounds.

    Args:
        model: The network.
        images: The images to choose from.
        right: The ids of those that the network classifies correctly.
        donors: The images with the other backgrounds.
        categories: The number of categories.
        seed: The seed of the choice of at most `RIGHT` images.
        processes: The processes that work together: each predicts a share of the batches.

    Returns:
        `background_gives_category`: how often an object before another image's background is given that
        image's category, corrected for chance (Cohen's kappa): 1 means always, 0 as often as by chance. Empty
        where no image has a usable mask.
    """
    if donors is None:
        return {}
    generator = torch.Generator().manual_seed(key("right", seed))
    chosen = right[torch.randperm(len(right), generator=generator)[:RIGHT]].tolist()
    shares = (
        [_logits(model, others).argmax(1) for *_, others in _before_donors(batch, donors)]
        for batch in only(images, chosen, processes)
    )
    called = [each for share in processes.in_order(shares) for each in share]
    if not called:
        return {}
    gives = _beyond_chance(torch.stack(called), donors.labels, categories)
    return {"background_gives_category": gives}


def _before_donors(batch: Batch, donors: Donors) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Yield the row, image and mask of each usable image, and its object before every other background."""
    for row in usable_masks(batch).nonzero()[:, 0].tolist():
        assert batch.masks is not None
        image, mask = batch.images[row : row + 1], batch.masks[row : row + 1]
        yield row, image, mask, before_other_backgrounds(image, mask, donors.images, donors.masks)[0]


def _beyond_chance(
    called: Int[Tensor, "image donor"], expected: Int[Tensor, " donor"], categories: int
) -> float:
    """Return how often predictions are those expected of the donors, as Cohen's kappa."""
    agree = float((called == expected).double().mean())
    shares = [np.bincount(each.flatten(), minlength=categories) / each.numel() for each in (called, expected)]
    chance = float(shares[0] @ shares[1])
    return (agree - chance) / max(1 - chance, 1e-9)
