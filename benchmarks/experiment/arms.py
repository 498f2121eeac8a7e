"""The arms that most programs compare: Eq. 5 and Eq. 6 at one layer, in two readings.

`literal` is the equations by the letter (plain gradient, unscaled, J = 10), `ours` gradient x activation
with `share` (J = 1); the weights of both are automatic, tau 0.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.experiment.cells import Cell, remedy
from benchmarks.experiment.networks import network
from torchdoctor import candidate_layers
from torchdoctor.network.candidates import Candidate
from torchdoctor.treatment.cure import Remedy

TAU = 0.3


@dataclass(frozen=True)
class Reading:
    """How the equations are read: how the constraints' texts go on, and the noise draws of a step."""

    name: str
    suffix: str
    draws: int


LITERAL, OURS = Reading("literal", "_paper", 10), Reading("ours", " scale=share", 1)
READINGS = (LITERAL, OURS)
COMBINED = {"channel": ("channel",), "space": ("space",), "all": ("channel", "space")}


def arms_at(
    cell: Cell,
    layer: str,
    *,
    before: str = "",
    wanted: Sequence[str] = tuple(COMBINED),
    readings: Sequence[Reading] = READINGS,
    expand_pixels: int | None = None,
) -> dict[str, Remedy]:
    """Return the arms at a layer, called arm.variant; the variant is `before` and the reading's name.

    Without masks there is the channel-wise one alone.
    """
    found = {}
    for reading in readings:
        for arm in wanted if cell.has_masks else [one for one in wanted if one == "channel"]:
            constraints = [f"{one}{reading.suffix} layers={layer}" for one in COMBINED[arm]]
            name = f"{arm}.{before}{reading.name}"
            found[name] = remedy(
                name, constraints, cell, tau=TAU, draws=reading.draws, expand_pixels=expand_pixels
            )
    return found


def variants_of(arms: dict[str, Remedy]) -> dict[str, str]:
    """Return the variant of every arm, what stands behind the first dot of its name."""
    return {name: name.partition(".")[2] for name in arms}


def convolutions(cell: Cell) -> tuple[Candidate, ...]:
    """Return the convolutions of a cell's network in the order of the forward pass, without training it."""
    size = cell.size.image_size
    model = network(cell.architecture, 2, size)
    return candidate_layers(model, torch.zeros(1, 3, size, size))


def need_masks(cell: Cell) -> None:
    """Raise ValueError where no training image has a mask."""
    if not cell.has_masks:
        raise ValueError(f"{cell.dataset} has no object masks, which the space-wise constraint needs")
