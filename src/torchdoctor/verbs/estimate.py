"""Plan a diagnosis and a treatment of many images on several devices, without the images."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Callable, Mapping

import torch

from torchdoctor.case.preparation import Case
from torchdoctor.case.scaling import (
    GIGABIT,
    Rates,
    StageTime,
    Work,
    bound_from,
    diagnosis_time,
    gathered_by_each,
    summed_by_each,
    treatment_time,
)
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.footprint import INDEX, DiagnosisBytes, diagnosis_bytes
from torchdoctor.display.counts import count_of
from torchdoctor.network.prediction import device_of
from torchdoctor.report.pictures import LARGEST_PAGE
from torchdoctor.treatment.learning_rate import TIMES, affordable_steps
from torchdoctor.types import InputError
from torchdoctor.verbs.calibration import (
    DECODED,
    PHOTOGRAPH,
    QUALITY,
    SECONDS,
    Calibration,
    calibrate,
    loading_rate,
    random_case,
)
from torchdoctor.verbs.forecast import RUN_WITHIN
from torchdoctor.verbs.suspects import MOST_GIGABYTES, gigabytes_of

BANDWIDTH = 10.0  # Gbit/s of the network between devices, where none is given: a common Ethernet
STATES = {"sgd": 1, "adamw": 2}  # numbers that the optimiser keeps for each parameter
BACKWARD = 2  # a step's backward pass costs twice the forward pass


def estimate(
    settings: Settings,
    *,
    images: int,
    categories: int,
    devices: int = 1,
    bandwidth: float = BANDWIDTH,
    loading: float | None = None,
    speed: float = 1.0,
) -> dict[str, object]:
    """Say what a diagnosis and a treatment of the default length take: memory, disk, traffic and time.

    A network with random weights is measured on this machine for about half a minute; nothing is read or
    written.

    Args:
        settings: The model, its layers and draws, image size, batch size, epochs, seeds and device.
        images: The number of training images.
        categories: The number of categories.
        devices: The number k of devices, each with a process of its own.
        bandwidth: Gbit/s that each device sends while it receives as many.
        loading: Images per second that all loading processes together prepare; None: measured.
        speed: How many times as fast as this machine's a device computes.

    Returns:
        What `estimate --json` prints: `flops`, `bytes`, `step_memory`, `traffic`, `seconds` by job and number
        of devices, `limits`, `measured` and `assumptions`.

    Raises:
        InputError: A number is out of range, the model is unknown or does not run on such images.
    """
    _check(images, categories, devices, bandwidth, loading, speed)
    case = random_case(settings, categories)
    measured = calibrate(case)
    rates = _rates(measured, loading_rate() if loading is None else loading, bandwidth)
    rates = rates.on_faster_devices(speed)
    work, kept = _work(case, measured, images)
    return {
        **_described(case, measured, images, devices),
        "flops": _flops(measured, work),
        "bytes": _bytes(kept, images),
        "step_memory": _step_memory(case, measured, devices),
        "traffic": _traffic(work, devices),
        **_times(rates, work, devices),
        "measured": _measured(measured, rates),
        "assumptions": _assumptions(case, measured, rates, work, loading is None, speed),
    }


def _described(case: Case, measured: Calibration, images: int, devices: int) -> dict[str, object]:
    """Return what is planned."""
    plan = case.plan
    return {
        "model": plan.model,
        "images": images,
        "categories": len(case.classes),
        "image_size": plan.image_size,
        "layers": len(case.layers),
        "kernels": sum(measured.kernels),
        "draws": plan.diagnosis_draws,
        "batch_size": plan.batch_size,
        "devices": devices,
    }


def _times(rates: Rates, work: Work, devices: int) -> dict[str, object]:
    """Return the times of both jobs on several numbers of devices, and what bounds them."""
    jobs: dict[str, Callable[[int], StageTime]] = {
        "diagnosis": lambda number: diagnosis_time(rates, work, number),
        "treatment": lambda number: treatment_time(rates, work, number),
    }
    most = {"diagnosis": math.ceil(work.images / work.batch), "treatment": work.batch}
    return {
        "seconds": {name: [_line(time, k) for k in _numbers(devices)] for name, time in jobs.items()},
        "limits": {name: _limits(time, most[name]) for name, time in jobs.items()},
    }


def _check(
    images: int, categories: int, devices: int, bandwidth: float, loading: float | None, speed: float
) -> None:
    """Refuse numbers that mean nothing."""
    for flag, value, least in (("--images", images, 1), ("--categories", categories, 2),
                               ("--devices", devices, 1)):  # fmt: skip
        if value < least:
            raise InputError(f"{flag} {value}: expected a whole number of at least {least}")
    for flag, number in (("--bandwidth", bandwidth), ("--loading", loading), ("--speed", speed)):
        if number is not None and not 0 < number < math.inf:
            raise InputError(f"{flag} {number:g}: expected a number above 0")


def _numbers(devices: int) -> list[int]:
    """Return 1, 2, 4, ... and the number of devices itself."""
    return sorted({1 << power for power in range(devices.bit_length())} | {devices})


def _rates(measured: Calibration, loading: float, bandwidth: float) -> Rates:
    """Return what was measured as rates."""
    step = measured.step
    return Rates(
        forward=measured.forward, survey=measured.survey, evidence=measured.evidence,
        summary=measured.summary, sifting=measured.sifting,
        step_fixed=max(0.0, step.seconds - step.by_image * step.batch), step_image=step.by_image,
        loading=loading, bandwidth=bandwidth * GIGABIT,
    )  # fmt: skip


def _work(case: Case, measured: Calibration, images: int) -> tuple[Work, DiagnosisBytes]:
    """Return what is to be done, and what a diagnosis keeps."""
    plan, categories = case.plan, len(case.classes)
    sifted = min(images, plan.images_per_category * categories)
    kept = diagnosis_bytes(images, sifted, measured.kernels, categories)
    per_epoch = math.ceil(images / plan.batch_size)
    arm = per_epoch * plan.recipe.epochs * plan.seeds
    rates = len(TIMES) * affordable_steps(plan.recipe, per_epoch, plan.seeds)
    looked_at = images if gigabytes_of(images, categories) <= MOST_GIGABYTES else 0
    steps = rates + 2 * arm
    price = (rates + arm + measured.price * arm) / steps
    work = Work(images, sifted, looked_at, plan.batch_size, kept.gathered, measured.weights, steps, price)
    return work, kept


def _flops(measured: Calibration, work: Work) -> dict[str, int | float]:
    """Count the arithmetic of both jobs."""
    forward = measured.flops
    return {
        "forward_of_an_image": forward,
        "diagnosis": forward * (work.images + work.looked_at + measured.passes * work.sifted),
        "treatment": forward * (1 + BACKWARD) * work.steps * work.batch * work.price,
    }


def _bytes(kept: DiagnosisBytes, images: int) -> dict[str, int]:
    """Return what is kept."""
    return {
        "survey": kept.survey,
        "sifting": kept.sifting,
        "rows": kept.rows,
        "statistics": kept.statistics,
        "most_in_memory": kept.most_in_memory,
        "on_disk": kept.on_disk,
        "index": INDEX * images,
        "report_at_most": LARGEST_PAGE,
    }


def _step_memory(case: Case, measured: Calibration, devices: int) -> dict[str, int | None]:
    """Return the peak memory of a training step on each device."""
    plan = case.plan
    part = math.ceil(plan.batch_size / devices)
    fixed = (2 + STATES[plan.optimizer]) * measured.weights + measured.others
    pixels = 4 * plan.channels * plan.image_size**2
    treated = measured.kept_treated
    return {
        "images": part,
        "weights_gradients_and_optimizer": fixed,
        "kept_of_an_image": measured.kept + pixels,
        "control": fixed + part * (measured.kept + pixels),
        "treated": None if treated is None else fixed + part * (treated + pixels),
    }


def _traffic(work: Work, devices: int) -> dict[str, float]:
    """Return what each device sends, in bytes."""
    step = summed_by_each(work.gradients, devices)
    return {
        "gradients_of_a_step": step,
        "gradients_of_the_treatment": step * work.steps,
        "rows_and_survey_of_the_diagnosis": gathered_by_each(work.gathered, devices),
    }


def _line(time: Callable[[int], StageTime], devices: int) -> dict[str, object]:
    """Return the time on a number of devices, and its parts."""
    stage = time(devices)
    return {
        "devices": devices,
        "seconds": stage.seconds,
        "times_as_fast": time(1).seconds / stage.seconds,
        "computing": stage.computing,
        "loading": stage.loading,
        "network": stage.network,
        "one_process": stage.alone,
        "bound": stage.bound,
    }


def _limits(time: Callable[[int], StageTime], most: int) -> dict[str, object]:
    """Return from how many devices on something else than computing takes longest; the shortest time too."""
    from_devices = {
        bound.replace(" ", "_"): bound_from(time, bound, most)
        for bound in ("loading", "network", "one process")
    }
    return {**from_devices, "most_devices": most, "shortest_seconds": time(most).seconds}


def _measured(measured: Calibration, rates: Rates) -> Mapping[str, object]:
    """Return what the times rest on."""
    return {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {_device_name()}",
        "threads": torch.get_num_threads(),
        "forward_seconds": measured.forward,
        "survey_seconds": measured.survey,
        "evidence_seconds": measured.evidence,
        "evidence_in_forward_passes": measured.passes,
        "evidence_measured_at": measured.evidence_at,
        "evidence_images": measured.evidence_images,
        "step_seconds": measured.step.seconds,
        "step_images": measured.step.images,
        "step_seconds_by_image": measured.step.by_image,
        "price_of_constraints": measured.price,
        "sifting_seconds": measured.sifting,
        "summary_seconds": measured.summary,
        "loading_images_per_second": rates.loading,
    }


def _device_name() -> str:
    """Return what computes."""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def _assumptions(
    case: Case, measured: Calibration, rates: Rates, work: Work, own_loading: bool, speed: float
) -> list[str]:
    """Say in plain words what the numbers rest on."""
    at, layers = measured.evidence_at, case.layers
    where = f"all {len(layers)} layers" if len(at) == len(layers) else f"{len(at)} of {len(layers)} layers"
    counted = "" if len(at) == len(layers) else "; that of the other layers follows from counted operations"
    width, height = PHOTOGRAPH
    loaded = (
        f"one core decodes a JPEG of {width} x {height} pixels (random colours, quality {QUALITY}) "
        f"{DECODED} times, and the {os.cpu_count()} cores of this machine load for all devices"
        if own_loading
        else "given with --loading, for all devices together"
    )
    faster = f", taken to be {speed:g} times as fast" if speed != 1 else ""
    looked = (
        "" if work.looked_at else "; labels are not looked at, which would take more memory than a run uses"
    )
    return [
        f"device: {device_of(case.model)}{faster}; measured with random weights and random images, about "
        f"{SECONDS:g} s for each number: real times lie within a factor of {RUN_WITHIN:g}",
        f"evidence: measured on {count_of(measured.evidence_images, 'image')} at {where}{counted}",
        f"diagnosis: every image is predicted, {work.sifted:,} are sifted (as many as can be); every k-th "
        "batch is of one process; survey and rows are gathered, so that each process holds all of them, and "
        f"one process chooses and summarises{looked}",
        f"treatment: control and treated, {count_of(case.plan.recipe.epochs, 'epoch')}, "
        f"{count_of(case.plan.seeds, 'seed')}, and the "
        "short trainings that choose the learning rate; validation is left out; a step under the "
        f"constraints costs {measured.price:.2f} plain steps",
        f"training step: each device computes its part of a batch of {work.batch}; then the gradients are "
        "summed in a ring, which is not hidden behind the computing",
        f"loading: {rates.loading:,.0f} images/s, beside the computing: {loaded}; every pass loads anew",
        f"network: {rates.bandwidth / GIGABIT:g} Gbit/s to and from each device at once, no delay",
    ]
