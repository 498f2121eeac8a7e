"""Average the weights of the seeds of an arm, and let the validation images say whether that helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchdoctor.images.batches import Images, TrainingImages
from torchdoctor.network.copying import copy_of
from torchdoctor.network.state import load_state
from torchdoctor.treatment.cure import keeps_statistics
from torchdoctor.treatment.norm_statistics import measure_statistics
from torchdoctor.treatment.result import Treatment
from torchdoctor.treatment.training import accuracy


@dataclass(frozen=True)
class Soup:
    """The averaged weights of the seeds of an arm (Wortsman et al. 2022).

    Attributes:
        arm: The name of the arm.
        state: The averaged weights, as `state_dict` returns them.
        accuracy: The accuracy of the averaged network on the validation images, in percent.
        of_seeds: That of the network of each seed.
    """

    arm: str
    state: Mapping[str, Tensor]
    accuracy: float
    of_seeds: tuple[float, ...]

    @property
    def helps(self) -> bool:
        """Whether the average is at least as good on the validation images as the best of its seeds."""
        return self.accuracy >= max(self.of_seeds)


def soup(
    model: nn.Module,
    treatment: Treatment,
    arm: str,
    images: TrainingImages,
    validation: Images,
    *,
    seed: int = 0,
) -> Soup:
    """Average the weights of the seeds of an arm; the control's are averaged in the same way.

    The running statistics of batch-norm are measured anew on the training images. With a single seed the
    average is that network, statistics included.

    Args:
        model: A network of the arm's architecture; it is left as it was.
        treatment: A finished treatment.
        arm: The name of the arm.
        images: The training images.
        validation: The validation images.
        seed: Decides the order of the images on which batch-norm's statistics are measured.

    Returns:
        The averaged weights, with what the validation images say of them.

    Raises:
        KeyError: There is no such arm.
    """
    own = copy_of(model).eval()
    of_seeds = []
    for number in treatment.seeds():
        load_state(own, treatment.arm(arm, number).state)
        of_seeds.append(accuracy(own, validation))
    averaged = averaged_seeds(model, treatment, arm, images, seed=seed)
    load_state(own, averaged)
    return Soup(arm, averaged, accuracy(own, validation), tuple(of_seeds))


def averaged_seeds(
    model: nn.Module, treatment: Treatment, arm: str, images: TrainingImages, *, seed: int = 0
) -> dict[str, Tensor]:
    """Average the weights of the seeds of an arm, without judging them.

    Args:
        model: A network of the arm's architecture; it is left as it was.
        treatment: A finished treatment.
        arm: The name of the arm.
        images: The training images, on which batch-norm's statistics are measured anew.
        seed: Decides the order of these images.

    Returns:
        The averaged weights on the CPU, as `state_dict` returns them; with a single seed those of that seed.

    Raises:
        KeyError: There is no such arm.
    """
    states = [treatment.arm(arm, number).state for number in treatment.seeds()]
    own = copy_of(model).eval()
    load_state(own, mean_of(states) if len(states) > 1 else states[0])
    if len(states) > 1 and any(map(keeps_statistics, own.modules())):
        measure_statistics(own, images, seed)
    return {name: value.detach().cpu().clone() for name, value in own.state_dict().items()}


def mean_of(states: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Average weights.

    Args:
        states: Weights by name, with the same names and shapes in each.

    Returns:
        The mean of each tensor; of whole numbers, such as batch-norm's counters, the first.
    """
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
