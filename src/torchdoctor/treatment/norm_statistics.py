"""Measure the running statistics of batch-norm anew, alone or before the damaged layers are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.statistics import layers_out_of_step
from torchdoctor.images.batches import Images, TrainingImages
from torchdoctor.network.norms import norms_behind
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.treatment.recipe import Course
from torchdoctor.treatment.weighting import example_of
from torchdoctor.types import InputError


def measure_statistics(model: nn.Module, images: TrainingImages, seed: int) -> None:
    """Measure the running statistics of every batch-norm anew, as means over the batches of an epoch.

    The epoch is shuffled and augmented as in training, since batches of one category would hide how the
    categories differ. Drop-out is off, as when the network is used.

    Args:
        model: The network; it is changed in place, and ends in the mode that it was in.
        images: The training images.
        seed: Decides the order of the images and their augmentation.
    """
    device, dtype = device_of(model), dtype_of(model)
    with _without_dropout(model), torch.no_grad():
        update_bn((batch.images.to(device, dtype) for batch in images.epoch(0, seed)), model)


def renewed_statistics(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Train as the control does, then measure the running statistics of batch-norm anew.

    Args:
        model: The network; it needs batch-norm with running statistics.
        images: Not used.
        diagnosis: Not used.
        seed: Decides the order of the images and their augmentation.

    Returns:
        The course.
    """
    del model, images, diagnosis

    def afterwards(model: nn.Module, images: TrainingImages, validation: Images | None) -> None:
        del validation
        measure_statistics(model, images, seed)

    return Course(afterwards=afterwards)


def damaged_layers(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
    """Measure batch-norm's statistics anew, then train only the layers whose kernels have changed.

    A layer has changed where kernels of it are out of step with the batch-norm behind it; that batch-norm is
    trained with it. All other weights stay (surgical fine-tuning; Lee et al. 2023).

    Args:
        model: The network; its batch-norm statistics are measured anew before the training.
        images: The training images.
        diagnosis: It says which kernels are out of step.
        seed: Decides the order and the augmentation of the images that the statistics are measured on.

    Returns:
        The course. `facts` holds the names of the layers.

    Raises:
        InputError: No kernel of the diagnosed layers is out of step.
    """
    damaged = list(layers_out_of_step(diagnosis.layers))
    if not damaged:
        raise InputError(
            "arm 'damaged-layers' needs kernels that are out of step with the batch-norm behind them, and "
            "the diagnosed layers have none: diagnose more layers, or leave the arm out"
        )
    behind = norms_behind(model, example_of(model, images), damaged)
    names = {id(module): name for name, module in model.named_modules()}
    trained = (*damaged, *(names[id(norm)] for norm in behind.values()))
    measure_statistics(model, images, seed)
    found: Mapping[str, object] = {"damaged_layers": damaged, "trained": list(trained)}
    return Course(trains=trained, facts=(found,))


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Switch drop-out off, also where the network is put into training mode."""
    shares = {
        module: module.p for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)
    }
    try:
        for module in shares:
            module.p = 0.0
        yield
    finally:
        for module, share in shares.items():
            module.p = share
