"""Train a network: one loop for training from scratch, for the control arm and for the treated one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from torchdoctor.networks import as_logits, auxiliary_logits
from torchdoctor.noise import key
from torchdoctor.sifting import device_of, dtype_of, predict_logits
from torchdoctor.types import Batch, Images, InputError, ModelDoctorError, NormPolicy, Progress, silent


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: the optimiser, its schedule (warm-up, then cosine to 0), and batch-norm.

    `norm="train"` normalises by the batch and updates the running statistics; `frozen` keeps them as they
    are, which was less stable at the learning rates tried.
    """

    epochs: int = 5
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warm_up: float = 0.1
    norm: NormPolicy = "train"


AUXILIARY_WEIGHT = 0.3  # of each auxiliary head's loss, as GoogLeNet was trained
Term = Callable[[Batch, Tensor, int], dict[str, Float[Tensor, ""]]]


def set_mode(model: nn.Module, norm: NormPolicy) -> None:
    """Put the network into training mode, with batch-norm's statistics frozen where the policy says so."""
    model.train()
    if norm == "frozen":
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def fit(
    model: nn.Module,
    images: Callable[[int], Iterable[Batch]],
    recipe: Recipe,
    *,
    steps_per_epoch: int,
    seed: int,
    penalty: Term | None = None,
    validation: Images | None = None,
    after_epoch: Callable[[int, Mapping[str, float]], None] | None = None,
    progress: Progress = silent,
    stage: str = "train",
) -> tuple[tuple[Mapping[str, float], ...], int]:
    """Train in place on cross-entropy plus the penalty's terms; return (history per epoch, steps).

    Random layers are seeded by (seed, step): two runs that differ only in the penalty see the same
    drop-outs. A step whose total is not finite ends the run, naming the images.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("no parameter of the model is trainable (all are frozen): nothing could change")
    optimizer = _optimizer(parameters, recipe)
    total, step = max(recipe.epochs * steps_per_epoch, 1), 0
    history: list[Mapping[str, float]] = []
    for epoch in range(recipe.epochs):
        set_mode(model, recipe.norm)
        sums: dict[str, float] = {}
        for batch in images(epoch):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * _schedule(step, total, recipe.warm_up)
            parts = _step(model, batch, optimizer, penalty, key("layers", seed, step), step)
            for name, value in parts.items():
                sums[name] = sums.get(name, 0.0) + value * len(batch.labels)
            sums["images"] = sums.get("images", 0.0) + len(batch.labels)
            step += 1
            progress(stage, step, total)
        seen = sums.pop("images", 0.0)
        entry = {"epoch": float(epoch), **{name: value / max(seen, 1.0) for name, value in sums.items()}}
        if validation is not None:
            entry["validation_accuracy"] = accuracy(model, validation)
        history.append(entry)
        if after_epoch is not None:
            after_epoch(epoch, entry)
    return tuple(history), step


def _optimizer(parameters: list[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Build the optimiser; vectors (norms, biases) carry no weight decay."""
    groups = [
        {"params": [one for one in parameters if one.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
    ]
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=recipe.learning_rate)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, nesterov=True)
    raise InputError(f"optimizer {recipe.optimizer!r} is unknown; expected sgd or adamw")


def _schedule(step: int, total: int, warm_up: float) -> float:
    """Return the factor on the learning rate: linear warm-up, then a cosine to 0."""
    warm = max(1.0, warm_up * total)
    if step < warm:
        return min(1.0, (step + 1) / warm)
    return 0.5 * (1.0 + math.cos(math.pi * (step - warm) / max(total - warm, 1.0)))


def _step(
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    penalty: Term | None,
    layer_seed: int,
    step: int,
) -> dict[str, float]:
    """Take one step on Eq. 7; return the loss and each weighted term."""
    batch = move(batch, device_of(model), dtype_of(model))
    torch.manual_seed(layer_seed)
    output = model(batch.images)
    logits, heads = as_logits(output), auxiliary_logits(output)
    parts = {"loss": functional.cross_entropy(logits, batch.labels)}
    if heads:
        losses = [functional.cross_entropy(one, batch.labels) for one in heads]
        parts["auxiliary"] = AUXILIARY_WEIGHT * torch.stack(losses).sum()
    if penalty is not None:
        parts.update(penalty(batch, logits.detach(), step))
    total = torch.stack(list(parts.values())).sum()
    if not bool(torch.isfinite(total)):
        values = {name: float(value) for name, value in parts.items()}
        raise ModelDoctorError(
            f"step {step}: the loss is not finite ({values}) on images {batch.ids.tolist()}: lower the "
            "learning rate or the weight of the constraints"
        )
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    optimizer.step()
    return {name: float(value.detach()) for name, value in parts.items()}


def move(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """Return the batch on a device, its images in the network's type."""
    return Batch(
        batch.images.to(device, dtype),
        batch.labels.to(device),
        batch.ids.to(device),
        None if batch.masks is None else batch.masks.to(device),
        None if batch.annotated is None else batch.annotated.to(device),
    )


def accuracy(model: nn.Module, images: Images) -> float:
    """Return the accuracy in percent."""
    _, labels, logits = predict_logits(model, images)
    return 100.0 * float((logits.argmax(1) == labels).double().mean())
