"""The result of a treatment: the trained arms and their constraints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Arm:
    """One further training from the same weights: the control, or the network under one remedy.

    `skipped` lists the ids of the batches whose loss or gradient was not finite: no step was taken.
    """

    name: str
    seed: int
    state: Mapping[str, Tensor]
    history: tuple[Mapping[str, float], ...]
    steps: int
    seconds: float
    skipped: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Treatment:
    """The frozen result of `treat`: the arms, and what each constraint weighed and reached."""

    arms: tuple[Arm, ...]
    prescription: tuple[Mapping[str, object], ...]

    def names(self) -> tuple[str, ...]:
        """Return the names of the arms in the order they were run."""
        return tuple(dict.fromkeys(arm.name for arm in self.arms))

    def seeds(self) -> tuple[int, ...]:
        """Return the seeds in the order they were run."""
        return tuple(dict.fromkeys(arm.seed for arm in self.arms))

    def arm(self, name: str, seed: int) -> Arm:
        """Return one arm; KeyError names the ones there are."""
        for arm in self.arms:
            if arm.name == name and arm.seed == seed:
                return arm
        raise KeyError(f"no arm {name!r} with seed {seed}; there are {[(a.name, a.seed) for a in self.arms]}")
