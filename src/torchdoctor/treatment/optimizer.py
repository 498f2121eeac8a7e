"""The optimiser of a training and the schedule of its learning rate, both from the recipe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from torchdoctor.treatment.recipe import Recipe
from torchdoctor.types import InputError


def build_optimizer(parameters: Sequence[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimiser of a recipe, in its fused form.

    Args:
        parameters: What is to be trained.
        recipe: Which optimiser, its learning rate, momentum and weight decay.

    Returns:
        The optimiser. Matrices and kernels carry the weight decay; scalars and vectors (biases, the scales
        and shifts of norms) carry none.

    Raises:
        InputError: The recipe names an optimiser that is neither `sgd` nor `adamw`.
    """
    groups = _groups(parameters, recipe.weight_decay)
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    if recipe.optimizer == "sgd":
        optimizer = torch.optim.SGD(
            groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True, fused=True
        )
        for parameter in parameters:  # a first step that is skipped would leave these undefined
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    raise InputError(f"optimizer {recipe.optimizer!r} is unknown; expected sgd or adamw")


def _groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters in groups by weight decay, first those that are decayed.

    timm decides by a parameter's dimensions and by its name. It sees no names here: a parameter called
    `bias` that has more than one dimension is decayed like any other. The order, and two groups even where
    the decay is 0, keep the parameters' numbers as checkpoints of earlier versions have them.
    """
    from timm.optim import param_groups_weight_decay  # type: ignore[attr-defined]

    groups: list[dict[str, Any]] = param_groups_weight_decay(nn.ParameterList(parameters), weight_decay=1.0)
    groups.sort(key=lambda group: -group["weight_decay"])
    return [{**group, "weight_decay": weight_decay * group["weight_decay"]} for group in groups]


def learning_rate_factor(step: int | float, total: int, warm_up: float) -> float:
    """Return what the learning rate is multiplied by: it rises linearly to 1, then falls to 0 as a cosine.

    Args:
        step: How far the training is, in steps; fractions count where the time is the budget.
        total: How many steps the training has.
        warm_up: The share of the steps during which the factor rises; at least a single step.

    Returns:
        A number from 0 to 1.
    """
    warm = max(1.0, warm_up * total)
    if step < warm:
        return min(1.0, (step + 1) / warm)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(total - warm, 1.0)))
