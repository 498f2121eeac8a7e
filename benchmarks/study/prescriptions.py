"""The arms that study.py and power.py choose from: the readings of Eq. 5-6, one thing varied at a time.

They stand around a centre: gradient x activation, `share`, last convolution, tau 0.3, J = 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import nn

from benchmarks.experiment.cells import Cell, remedy
from benchmarks.paper.figure6 import layers_of
from torchdoctor import Constraint, Course, Diagnosis
from torchdoctor.images.batches import Batch, TrainingImages
from torchdoctor.images.masks import default_expansion
from torchdoctor.treatment.constraints import channel_wise, channel_wise_authors
from torchdoctor.treatment.cure import Remedy
from torchdoctor.treatment.masked_remedies import swapped_batch
from torchdoctor.treatment.remedies import REMEDIES
from torchdoctor.treatment.search import constrained

PHOTOGRAPHS = ("tiny_imagenet20", "mini_imagenet30")
PLACES = ("early", "middle", "third", "last")  # the last convolution of each quarter

Arms = Callable[["Cell"], Mapping[str, Remedy]]


def at(cell: Cell, place: str) -> str:
    """Return the convolution at a place, or all four joined as a constraint's text joins layers."""
    layers = dict(zip(PLACES, layers_of(cell), strict=True))
    return "+".join(layers.values()) if place == "several" else layers[place]


# What is varied, as (variant, text of the constraint, place, tau); a text's name says which family it is of.
CHANNEL = (
    ("centre", "channel scale=share", "last", 0.3),
    ("gradient", "channel evidence=gradient scale=share", "last", 0.3),
    ("positive", "channel evidence=positive_gradient scale=share", "last", 0.3),
    ("unscaled", "channel scale=none", "last", 0.3),
    ("unscaled.tau1", "channel scale=none", "last", 1.0),
    ("unscaled.tau3", "channel scale=none", "last", 3.0),
    ("label", "channel targets=label scale=share", "last", 0.3),
    ("paper", "channel_paper", "last", 0.3),
    ("authors", "channel_authors", "last", 0.3),
    ("tau0.1", "channel scale=share", "last", 0.1),
    ("tau1", "channel scale=share", "last", 1.0),
    ("tau3", "channel scale=share", "last", 3.0),
    ("third", "channel scale=share", "third", 0.3),
    ("middle", "channel scale=share", "middle", 0.3),
    ("early", "channel scale=share", "early", 0.3),
    ("several", "channel scale=share", "several", 0.3),
)
SPACE = (
    ("centre", "space scale=share", "last", 0.3),
    ("gradient", "space evidence=gradient scale=share", "last", 0.3),
    ("unscaled", "space scale=none", "last", 0.3),
    ("paper", "space_paper", "last", 0.3),
    ("tau1", "space scale=share", "last", 1.0),
    ("tau3", "space scale=share", "last", 3.0),
    ("third.tau1", "space scale=share", "third", 1.0),
    ("middle.tau1", "space scale=share", "middle", 1.0),
    ("middle.tau3", "space scale=share", "middle", 3.0),
    ("early.tau1", "space scale=share", "early", 1.0),
    ("several.tau1", "space scale=share", "several", 1.0),
)
OTHERS = ("swap", "smoothing", "averaging", "rrr")


def texts(cell: Cell, rows: Sequence[tuple[str, str, str, float]]) -> dict[str, Remedy]:
    """Return arms from rows as above, called arm.variant; space-wise ones only where there are masks."""
    found = {}
    for variant, text, place, tau in rows:
        arm = text.split("_")[0].split()[0]
        if arm == "space" and not cell.has_masks:
            continue
        name = f"{arm}.{variant}"
        found[name] = remedy(name, [f"{text} layers={at(cell, place)}"], cell, tau=tau)
    return found


def objects(cell: Cell) -> dict[str, Remedy]:
    """Return the channel-wise arms whose penalty has no name: one term alone, and the authors' second."""
    layers = (at(cell, "last"),)
    own = {
        "first": Constraint("channel", channel_wise, layers, scale="share", uses_runner_up=False),
        "own_runner_up": Constraint("channel", channel_wise_authors, layers, scale="share"),
    }
    shared = {"tau": 0.3, "draws": 1, "every": 1, "expand_pixels": default_expansion(cell.size.image_size)}
    recipe = cell.protocol.recipe(cell.architecture, treating=True)
    return {
        f"channel.{name}": constrained(f"channel.{name}", (one,), recipe, **shared)
        for name, one in own.items()
    }


def others(cell: Cell, names: Sequence[str] = OTHERS) -> dict[str, Remedy]:
    """Return what needs no diagnosis, for comparison."""
    wanted = names if cell.has_masks else [one for one in names if one not in ("swap", "rrr")]
    found = {}
    for name in wanted:
        found[f"{name}.plain"] = _called(f"{name}.plain", REMEDIES[name])
    return found


def _called(name: str, known: Remedy) -> Remedy:
    """Return a remedy under another name."""

    def own(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
        return known(model, images, diagnosis, seed)

    own.__name__ = name
    return own


def on_swapped(name: str, known: Remedy) -> Remedy:
    """Return a remedy that sees the annotated images before one another's backgrounds."""

    def own(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
        inner = known(model, images, diagnosis, seed)

        def terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, torch.Tensor]:
            return inner.terms(model, swapped_batch(batch, seed, step), step)

        return replace(inner, terms=terms)

    own.__name__ = name
    return own


def both(cell: Cell) -> dict[str, Remedy]:
    """Return both constraints together, and the space-wise one on swapped backgrounds."""
    if not cell.has_masks:
        return {}
    last = at(cell, "last")
    pair = remedy(
        "all.centre", [f"channel scale=share layers={last}", f"space scale=share layers={last}"], cell
    )
    space = remedy("space", [f"space scale=share layers={last}"], cell, tau=1.0)
    return {"all.centre": pair, "swap.space": on_swapped("swap.space", space)}


def chosen(*names: str) -> Arms:
    """Return a function that picks arms of the whole list."""

    def pick(cell: Cell) -> Mapping[str, Remedy]:
        known = everything(cell)
        return {name: known[name] for name in names if name in known}

    return pick


def everything(cell: Cell) -> Mapping[str, Remedy]:
    """Return all arms."""
    rest = {**texts(cell, SPACE), **both(cell), **others(cell)}
    if cell.dataset not in PHOTOGRAPHS:  # a planted background is the space-wise constraints' affair
        return {**texts(cell, CHANNEL[:1]), **rest}
    return {**texts(cell, CHANNEL), **objects(cell), **rest}
