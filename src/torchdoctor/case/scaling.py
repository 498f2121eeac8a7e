"""Say how long a diagnosis and a treatment take on several devices, from times measured on one.

How processes share the work. Diagnosis: every k-th batch is of one process, and what they computed is
gathered at the end, so that all have it. Treatment: each process computes the gradient of its part of the
same batch, and the gradients are summed in a ring. Images are prepared by processes that all devices share,
while the devices compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

GIGABIT = 1e9 / 8  # bytes per second of a link with 1 Gbit/s


@dataclass(frozen=True)
class Rates:
    """What was measured on one device, and what feeds the devices and connects them.

    Attributes:
        forward: Seconds of the prediction of one image.
        survey: The same, with the sums that the mean and variance of the layers' maps need.
        evidence: Seconds of the evidence of an image at all layers.
        summary: Seconds that one process alone takes for each sifted image, to summarise the rows.
        sifting: Seconds that one process alone takes for each image, to choose those to diagnose.
        step_fixed: Seconds of a training step that do not depend on the number of its images.
        step_image: Seconds that each image adds to a training step.
        loading: Images per second that all processes that load prepare together.
        bandwidth: Bytes per second that a device sends while it receives as many.
    """

    forward: float
    survey: float
    evidence: float
    summary: float
    sifting: float
    step_fixed: float
    step_image: float
    loading: float
    bandwidth: float

    def on_faster_devices(self, times: float) -> Rates:
        """Return the rates of devices that compute faster; loading, network and the single process stay.

        Args:
            times: How many times as fast they compute.

        Returns:
            The rates.
        """
        names = ("forward", "survey", "evidence", "step_fixed", "step_image")
        return replace(self, **{name: getattr(self, name) / times for name in names})


@dataclass(frozen=True)
class Work:
    """What is to be done.

    Attributes:
        images: The number of training images.
        sifted: The number of images whose evidence is measured.
        looked_at: The number of images whose labels are looked at, which are predicted once more.
        batch: The number of images in a batch; in training, of all devices together.
        gathered: Bytes that the processes of a diagnosis gather.
        gradients: Bytes of the gradients of all parameters.
        steps: The number of training steps of all arms, seeds and epochs.
        price: What a step costs on average, in steps without constraints.
    """

    images: int
    sifted: int
    looked_at: int
    batch: int
    gathered: int
    gradients: int
    steps: int
    price: float = 1.0


@dataclass(frozen=True)
class StageTime:
    """How long a stage takes, and how long each of its parts would take alone.

    Attributes:
        seconds: How long the stage takes.
        computing: Seconds that the busiest device computes.
        loading: Seconds in which all its images are prepared, beside the computing.
        network: Seconds in which devices exchange, after the computing.
        alone: Seconds in which one process works and the others wait.
    """

    seconds: float
    computing: float
    loading: float
    network: float
    alone: float = 0.0

    @property
    def bound(self) -> str:
        """The longest part: computing, loading, network or one process."""
        parts = {
            "computing": self.computing, "loading": self.loading, "network": self.network,
            "one process": self.alone,
        }  # fmt: skip
        return max(parts, key=lambda name: parts[name])


def busiest_share(images: int, batch: int, devices: int) -> int:
    """Return how many images the busiest process has where every k-th batch is of one process.

    Args:
        images: The number of images.
        batch: The number of images in a batch.
        devices: The number k of processes.

    Returns:
        The number; all images for one process.
    """
    return min(images, math.ceil(math.ceil(images / batch) / devices) * batch)


def gathered_by_each(size: int, devices: int) -> float:
    """Return how much each process receives where all gather what they computed, so that all have all of it.

    Args:
        size: The bytes of all processes together.
        devices: The number k of processes.

    Returns:
        Bytes: (k - 1) / k of all; none for one process.
    """
    return size * (devices - 1) / devices


def summed_by_each(size: int, devices: int) -> float:
    """Return how much each process sends where all sum their gradients in a ring.

    Args:
        size: The bytes of the gradients.
        devices: The number k of processes.

    Returns:
        Bytes: 2 (k - 1) / k times those of the gradients; none for one process.
    """
    return 2 * size * (devices - 1) / devices


def diagnosis_time(rates: Rates, work: Work, devices: int) -> StageTime:
    """Return how long a diagnosis takes.

    All images are predicted, the evidence of the sifted ones is measured, and labels are looked at.

    Args:
        rates: What was measured.
        work: What is to be done.
        devices: The number of devices, each with a process.

    Returns:
        The time and its parts.
    """
    seconds = computing = loading = 0.0
    # Each pass waits for its own images: what one has to spare does not help the others.
    for images, per_image in (
        (work.images, rates.survey),
        (work.sifted, rates.evidence),
        (work.looked_at, rates.forward),
    ):
        computed = busiest_share(images, work.batch, devices) * per_image
        loaded = images / rates.loading
        seconds, computing, loading = seconds + max(computed, loaded), computing + computed, loading + loaded
    network = gathered_by_each(work.gathered, devices) / rates.bandwidth
    alone = work.images * rates.sifting + work.sifted * rates.summary
    return StageTime(seconds + network + alone, computing, loading, network, alone)


def treatment_time(rates: Rates, work: Work, devices: int) -> StageTime:
    """Return how long the training of all arms takes.

    Args:
        rates: What was measured.
        work: What is to be done.
        devices: The number of devices, each with a process.

    Returns:
        The time and its parts.
    """
    part = math.ceil(work.batch / devices)
    computing = work.steps * work.price * (rates.step_fixed + part * rates.step_image)
    network = work.steps * summed_by_each(work.gradients, devices) / rates.bandwidth
    loading = work.steps * work.batch / rates.loading
    return StageTime(max(computing + network, loading), computing, loading, network)


def bound_from(time: Callable[[int], StageTime], bound: str, most: int) -> int | None:
    """Find the number of devices from which something takes the largest part of the time.

    Args:
        time: Returns the time on a number of devices; what bounds it once bounds it on more devices too.
        bound: What it is, as `StageTime.bound` names it.
        most: The largest number of devices.

    Returns:
        The smallest such number; None where there is none.
    """
    if time(most).bound != bound:
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if time(middle).bound == bound else (middle, high)
    return high
