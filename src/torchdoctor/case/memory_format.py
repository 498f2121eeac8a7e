"""Measure on the network of a run whether a GPU computes faster with channels last, and use that if it does.

Nothing is tried on the CPU, where results are equal to the last bit. The choice is written into the run, so
that a resumed run computes as it began.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from torchdoctor.case.preparation import Case
from torchdoctor.evidence.per_image import clean_evidence
from torchdoctor.files.reading import read_json
from torchdoctor.files.writing import write_json
from torchdoctor.images.batches import Batch
from torchdoctor.network.copying import copy_of
from torchdoctor.network.frozen import frozen_eval
from torchdoctor.network.outputs import as_logits
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.treatment.recipe import move

CLEARLY_FASTER = 0.9  # channels last is used where it takes at most this share of the usual time
ALIKE = 1e-5  # ... and where evidence and logits differ by at most this share of their largest value
REPEATED = 3  # passes of which the fastest counts, after one to warm up
FILE = "memory_format.json"

Clock = Callable[[Callable[[], object], torch.device], float]


@dataclass(frozen=True)
class FormatTrial:
    """What a trial of the memory format "channels last" has measured.

    Attributes:
        usual: Seconds of a forward and a backward pass as the network was.
        channels_last: Seconds with channels last.
        difference: The largest difference of evidence and logits, as a share of their largest value.
    """

    usual: float
    channels_last: float
    difference: float

    @property
    def chosen(self) -> bool:
        """Whether channels last is used: it is clearly faster, and gives the same evidence."""
        return self.channels_last <= CLEARLY_FASTER * self.usual and self.difference <= ALIKE

    @property
    def sentence(self) -> str:
        """The outcome of the trial."""
        times = f"{1000 * self.channels_last:.1f} ms, and {1000 * self.usual:.1f} ms as usual"
        if self.chosen:
            return f"memory format: channels last (a forward and a backward pass take {times})"
        if self.difference > ALIKE:
            return (
                f"memory format: as usual (with channels last the evidence differs by {self.difference:.1g})"
            )
        return f"memory format: as usual (with channels last a forward and a backward pass take {times})"


def seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Time an action.

    Args:
        action: What is timed.
        device: The device that it computes on, whose work is waited for.

    Returns:
        Seconds.
    """
    started = time.perf_counter()
    action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def try_channels_last(
    model: nn.Module, batch: Batch, layers: Sequence[str], clock: Clock = seconds_of
) -> FormatTrial | None:
    """Compute a batch as usual and with channels last.

    Args:
        model: The network; it is left as it was.
        batch: A batch of training images.
        layers: The layers whose evidence is compared.
        clock: Runs an action on a device and returns its seconds, as `seconds_of` does.

    Returns:
        What was measured; None where the network has no maps or does not run with channels last.
    """
    if not any(value.ndim == 4 for value in model.parameters()):
        return None
    device = device_of(model)
    batch = move(batch, device, dtype_of(model))
    try:
        other = copy_of(model)
        use_channels_last(other)
        passes = [lambda each=each: _pass(each, batch.images) for each in (model, other)]
        times = [[clock(each, device) for each in passes] for _ in range(1 + REPEATED)][1:]
        difference = _difference(*(_results(each, batch, layers) for each in (model, other)))
    except Exception:  # a network of the user's own can fail in any way; memory may not suffice for two
        return None
    usual, last = (min(each) for each in zip(*times, strict=True))
    return FormatTrial(usual, last, difference)


def use_channels_last(model: nn.Module) -> None:
    """Lay out the kernels of a network with channels last, so that its maps are so too.

    Args:
        model: The network; its numbers stay.
    """
    model.to(memory_format=torch.channels_last)


def settle_format(case: Case, folder: Path, clock: Clock = seconds_of) -> str | None:
    """Choose the memory format of a run: as it was chosen before, else by a trial; and use it.

    Args:
        case: The prepared case; its network is laid out anew where that is faster.
        folder: The run's folder; the main process writes the choice there.
        clock: Runs an action on a device and returns its seconds, as `seconds_of` does.

    Returns:
        A sentence; None where nothing was tried.
    """

    def choose() -> FormatTrial | None:
        file = folder / FILE
        if file.exists():
            return FormatTrial(**{name: float(str(value)) for name, value in read_json(file).items()})
        trial = try_channels_last(case.model, case.data.train.first_batch(case.plan.seed), case.layers, clock)
        if trial is not None:
            write_json(file, asdict(trial))
        return trial

    trial = case.processes.by_main(choose)
    if trial is None:
        return None
    if trial.chosen:
        use_channels_last(case.model)
    return trial.sentence


def _pass(model: nn.Module, images: Tensor) -> None:
    """Run a network forwards and backwards."""
    with torch.enable_grad():
        score = as_logits(model(images)).logsumexp(1).sum()
        trained = [value for value in model.parameters() if value.requires_grad]
        if trained:
            torch.autograd.grad(score, trained, allow_unused=True)


def _results(model: nn.Module, batch: Batch, layers: Sequence[str]) -> list[Tensor]:
    """Return the logits of a batch, and its evidence at each layer."""
    with frozen_eval(model) as frozen:
        evidence, _, logits = clean_evidence(frozen, batch.images, batch.labels, layers, "gradient")
    return [logits, *evidence.values()]


def _difference(usual: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Return the largest difference, as a share of the largest value of each tensor; infinite for NaN."""
    shares = [
        float((one - two).abs().max() / one.abs().max().clamp(min=torch.finfo(one.dtype).tiny))
        for one, two in zip(usual, other, strict=True)
    ]
    return max(share if share == share else float("inf") for share in shares)
