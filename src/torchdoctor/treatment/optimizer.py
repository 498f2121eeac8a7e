"""The optimiser of a training and the schedule of its learning rate, both from the recipe."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from torchdoctor.treatment.recipe import Recipe
from torchdoctor.types import InputError


def trained_parameters(model: nn.Module, names: Sequence[str] | None) -> list[nn.Parameter]:
    """Return the parameters that a training changes, and freeze the others.

    Args:
        model: The network.
        names: Names of parameters, or of modules with all that is in them; None: all that are trainable.

    Returns:
        The parameters, in the network's order.

    Raises:
        InputError: A name is not in the network, or no parameter is trainable.
    """
    known = [*dict(model.named_parameters()), *dict(model.named_modules())]
    for name in names or ():
        if name not in known:
            raise InputError(f"a remedy trains {name!r} alone, and the network has nothing of that name")
    for place, parameter in model.named_parameters() if names is not None else ():
        if not any(place == name or place.startswith(f"{name}.") for name in names or ()):
            parameter.requires_grad_(False)
    parameters = [value for value in model.parameters() if value.requires_grad]
    if not parameters:
        raise InputError("no parameter of the model is trainable (all are frozen): nothing could change")
    return parameters


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
    """Return the parameters in two groups, first those that are decayed.

    This is timm's rule (`param_groups_weight_decay`) for parameters without names. timm's function is not
    called, because importing timm takes more than a second of processor time at every start. There are two
    groups even where the decay is 0: checkpoints number the parameters in this order.
    """
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return what an optimiser remembers of its steps, such as momentum.

    Args:
        optimizer: The optimiser.

    Returns:
        The tensors, named by the number of the parameter and by what is remembered: `3.momentum_buffer`.
    """
    return {
        f"{index}.{name}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Let an optimiser remember what it remembered before.

    Args:
        optimizer: The optimiser; its learning rate and the like stay.
        tensors: What `optimizer_tensors` returned.
    """
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, entry = name.partition(".")
        moments.setdefault(int(index), {})[entry] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})


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
