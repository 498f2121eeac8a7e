"""Measure here what an image costs: a few batches of random images, a network of random weights."""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import nn

from torchdoctor.case.device import device_named
from torchdoctor.case.preparation import Case, case_of
from torchdoctor.case.settings import Settings
from torchdoctor.case.surroundings import IN_MEMORY
from torchdoctor.case.timing import (
    StepTime,
    constraint_price,
    constraints_of,
    course_on,
    diagnosis_passes,
    tail_shares,
    time_one_step,
    timed,
)
from torchdoctor.data.decoding import decode_image
from torchdoctor.data.load import Splits
from torchdoctor.data.pixels import Preprocessing, fit
from torchdoctor.data.tensor_loader import tensor_loader
from torchdoctor.diagnosis.sifting import sift
from torchdoctor.diagnosis.statistics import summarise
from torchdoctor.evidence.measurement import measure
from torchdoctor.evidence.rows import ImageRows
from torchdoctor.evidence.survey import Survey
from torchdoctor.images.batches import Batch, take
from torchdoctor.models.loading import load_model
from torchdoctor.network.copying import copy_of
from torchdoctor.network.flops import compute_before
from torchdoctor.network.memory import bytes_for_backward
from torchdoctor.network.prediction import device_of, predict_logits
from torchdoctor.randomness import key
from torchdoctor.treatment.recipe import PLAIN, move, set_mode
from torchdoctor.types import InputError
from torchdoctor.verbs.diagnose import passes_of

SECONDS = 5.0  # about what each measurement may take
LEAST_LAYERS = 3  # layers at which the evidence is measured at least, where it is measured at some
PHOTOGRAPH, QUALITY = (
    (500, 375),
    90,
)  # width and height in pixels of the JPEG file that is decoded, its quality
DECODED = 20  # times that it is decoded
SUMMARISED, SIFTED = 4, 4096  # categories that are summarised, and images that are chosen from, to time it


@dataclass(frozen=True)
class Calibration:
    """What was measured and counted.

    Attributes:
        forward: Seconds of an image's prediction.
        survey: The same with the moments of the layers' maps.
        evidence: Seconds of the evidence of an image at all layers.
        passes: The same in forward passes, counted.
        evidence_at: The layers at which the evidence was measured; that of the others is counted.
        evidence_images: The number of images on which it was measured.
        step: The time of a training step without constraints.
        price: What a step under the constraints costs, in steps without.
        summary: Seconds for each sifted image, to summarise the rows.
        sifting: Seconds for each image, to choose those to diagnose.
        kernels: The number of kernels of each layer.
        flops: Floating-point operations of a forward pass of one image.
        weights: Bytes of the parameters.
        others: Bytes of the buffers.
        kept: Bytes that a step keeps of each image for its gradient, without constraints.
        kept_treated: The same under the constraints; None where it cannot be counted.
    """

    forward: float
    survey: float
    evidence: float
    passes: float
    evidence_at: tuple[str, ...]
    evidence_images: int
    step: StepTime
    price: float
    summary: float
    sifting: float
    kernels: tuple[int, ...]
    flops: int
    weights: int
    others: int
    kept: int
    kept_treated: int | None


def random_case(settings: Settings, categories: int) -> Case:
    """Prepare a treatment of a network with random weights on one batch of random images.

    Args:
        settings: The settings; model, image size and channels among them.
        categories: The number of categories.

    Returns:
        The case; nothing is read and nothing is written.

    Raises:
        InputError: The model is not named or unknown, or does not run on such images.
    """
    if settings.model is None:
        raise InputError("--model is missing: give a name of `torchdoctor models`, such as resnet50")
    size = 224 if settings.image_size == "auto" else settings.image_size
    channels = 3 if settings.channels == "auto" else settings.channels
    names = tuple(map(str, range(categories)))
    torch.manual_seed(key("weights", settings.seed) % (1 << 63))
    model = load_model(settings.model, names, channels=channels, image_size=size)
    count = settings.batch_size
    labels = torch.arange(count) % categories
    batch = Batch(torch.randn(count, channels, size, size), labels, torch.arange(count))
    shown = Preprocessing(size, (0.0,) * channels, (1.0,) * channels)
    images = tensor_loader([batch], "train", names, shown=shown)
    data = Splits(names, images, images, {"test": images}, "test", shown, False)
    asked = settings.but(data=f"{IN_MEMORY}:random", out="unused", primary="test")
    model = model.to(device_named(settings.device)).eval()
    return case_of(asked, "diagnose", model, data, name=settings.model, try_out=lambda *_: ())


def _surveyed(survey: Survey, model: nn.Module, batch: Batch) -> None:
    """Predict a batch and add its moments to a survey."""
    predict_logits(model, [batch], survey.look, survey.add)


def calibrate(case: Case) -> Calibration:
    """Measure what an image costs, in well under a minute.

    Args:
        case: A case on one batch of images.

    Returns:
        What was measured and counted.

    Raises:
        InputError: A layer cannot be used, or no parameter is trainable.
    """
    model, layers = case.model, case.layers
    batch = next(iter(case.data.train))
    forward = _per_image(batch, lambda part: predict_logits(model, [part]))
    survey = Survey(model, layers, None, "")
    surveyed = _per_image(batch, lambda part: _surveyed(Survey(model, layers, None, ""), model, part))
    _surveyed(survey, model, take(batch, torch.arange(min(8, len(batch.ids)))))
    deviations = survey.deviations(range(min(8, len(batch.ids))), range(min(8, len(batch.ids))))
    passes, at, evidence, images = _evidence(case, batch, forward, deviations)
    done, shapes = compute_before(model, move(take(batch, torch.arange(1)), device_of(model),
                                              torch.float32).images, layers)  # fmt: skip
    kernels = tuple(shapes[layer][0] for layer in layers)
    constraints = constraints_of(case)
    return Calibration(
        forward, surveyed, evidence, passes, at, images,
        step=time_one_step(case, batch, forward),
        price=constraint_price(case, constraints, tail_shares(case, layers)),
        summary=_summary(kernels, case.plan.images_per_category),
        sifting=_sifting(len(case.classes)),
        kernels=kernels,
        flops=done[""],
        weights=sum(value.nbytes for value in model.parameters()),
        others=sum(value.nbytes for value in model.buffers()),
        kept=_kept(case, batch, treated=False) or 0,
        kept_treated=_kept(case, batch, treated=True),
    )  # fmt: skip


def loading_rate() -> float:
    """Measure how many JPEG files of a photograph's size all cores of this machine prepare in a second.

    Returns:
        Images per second: one core is measured, and the others are taken to be as fast.
    """
    content = _photograph()
    seconds = timed(lambda: [fit(decode_image(content, "random"), None, 224) for _ in range(DECODED)])
    return (os.cpu_count() or 1) * DECODED / seconds


def _photograph() -> bytes:
    """Return a JPEG file of random colours, smooth with some grain, as photographs are."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize(PHOTOGRAPH, Image.Resampling.BICUBIC), dtype=float)
    grain = random.normal(0, 8, smooth.shape)
    stream = io.BytesIO()
    Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=QUALITY)
    return stream.getvalue()


def _per_image(batch: Batch, work: Callable[[Batch], object]) -> float:
    """Return the seconds of an image, from as many as can be afforded, after a trial with two."""
    few = take(batch, torch.arange(min(2, len(batch.ids))))
    work(few)
    trial = timed(lambda: work(few)) / len(few.ids)
    count = min(len(batch.ids), max(2, int(SECONDS / max(trial, 1e-9))))
    part = take(batch, torch.arange(count))
    return timed(lambda: work(part)) / count


def _evidence(
    case: Case, batch: Batch, forward: float, deviations: dict[str, float]
) -> tuple[float, tuple[str, ...], float, int]:
    """Measure the evidence at as many layers as can be afforded; return also its counted cost."""
    passes, draws = _passes(case, case.layers), case.plan.diagnosis_draws
    chosen, cost = case.layers, passes
    while draws != 0 and cost * forward > SECONDS and len(chosen) > LEAST_LAYERS:
        number = max(LEAST_LAYERS, len(chosen) // 2)
        places = np.linspace(0, len(case.layers) - 1, number).round().astype(int).tolist()
        chosen = tuple(case.layers[place] for place in places)
        cost = _passes(case, chosen)
    count = max(1, min(len(batch.ids) - 1, int(SECONDS / (cost * forward))))
    parts = [take(batch, torch.arange(1)), take(batch, torch.arange(1, 1 + count))]
    times: list[float] = []
    deltas = {layer: 0.1 * deviations[layer] if draws else 0.0 for layer in chosen}
    # The first batch chooses how each layer is computed; the second is timed.
    measure(
        case.model, parts, list(range(1 + count)), deltas, draws=draws, evidence=case.plan.evidence,
        progress=lambda *_done: times.append(time.perf_counter()),
    )  # fmt: skip
    return passes, chosen, (times[1] - times[0]) / count * passes / cost, count


def _passes(case: Case, layers: Sequence[str]) -> float:
    """Return what the evidence of an image costs at some layers, in forward passes."""
    some = replace(case, plan=case.plan.but(layers=tuple(layers)))
    return diagnosis_passes(some) or passes_of(some)


def _summary(kernels: Sequence[int], images: int) -> float:
    """Measure what summarising costs for each image, over all layers."""
    middle = sorted(kernels)[len(kernels) // 2]
    count = images * SUMMARISED
    table = np.random.default_rng(0).random((count, middle))
    ids = np.arange(count)
    rows = ImageRows(ids, ids % SUMMARISED, table, table, table, np.full(count, np.nan))
    counts = np.full(SUMMARISED, images)

    def work() -> object:
        return summarise(
            "", rows, counts, theta=0.2, delta=0.0, deviation=1.0, drift=np.full(middle, np.nan), path=""
        )

    work()
    return timed(work) / count / middle * sum(kernels)


def _sifting(categories: int) -> float:
    """Measure what choosing costs for each image."""
    ids = torch.arange(SIFTED)
    logits = torch.randn(SIFTED, categories)
    return timed(lambda: sift(ids, ids % categories, logits)) / SIFTED


def _kept(case: Case, batch: Batch, *, treated: bool) -> int | None:
    """Count what a step keeps of each image; None where PyTorch does not let it be counted."""
    model = copy_of(case.model)
    part = take(batch, torch.arange(min(2, len(batch.ids))))
    part = move(part, device_of(model), next(model.parameters()).dtype)
    own = replace(case, plan=case.plan.but(layers=case.layers[-1:]))  # that of the constraints
    course = course_on(own, part, model) if treated else PLAIN
    set_mode(model, case.plan.norm)
    try:
        return bytes_for_backward(model, lambda: course.terms(model, part, 0)) // len(part.ids)
    except RuntimeError:
        return None
