"""Estimate how long a run takes: one training step is timed, and the rest is computed from it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from torchdoctor.case.preparation import Case
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.evidence.gates import NoClosedFormError, gated
from torchdoctor.evidence.per_image import passes_per_image
from torchdoctor.images.batches import Batch, take
from torchdoctor.network.copying import copy_of
from torchdoctor.network.flops import compute_before
from torchdoctor.network.hooks import hooked
from torchdoctor.network.prediction import device_of
from torchdoctor.treatment.annotated_share import share_drawn
from torchdoctor.treatment.constraints import Constraint, constraints_named
from torchdoctor.treatment.loop import Loop
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.recipe import PLAIN, Course
from torchdoctor.treatment.training import fit
from torchdoctor.treatment.weighting import Prescription
from torchdoctor.types import InputError

REPEATED = 3  # steps that a search really runs to measure the price of one
STEP_PROCESSOR_SECONDS = 1.0  # about what the one step of a dry run may cost: it sees that many images
# Reading the weights and writing their gradients costs a step the same for any number of images. With the
# update of the weights it is about seven times that update (6.6 to 9 on VGG-16, AlexNet and ResNet-34).
FIXED_PER_UPDATE, LARGEST_FIXED_SHARE = 7.0, 0.8
FORWARDS_PER_STEP = 3.0  # a training step costs about three forward passes: one forward, two backward

# What a penalty adds to a step, in steps without penalty, fitted to benchmarks/results/speed_treatment.jsonl:
# once for all; then per share of the forward pass behind the layer, for one noise draw and for each more.
PENALTY, PENALTY_TAIL, PENALTY_TAIL_PER_DRAW = 0.05, 3.2, 1.8


def constraints_of(case: Case) -> Sequence[str]:
    """Return the constraints of a treatment as texts.

    Args:
        case: The prepared case.

    Returns:
        The constraints of the plan, each with its layers.
    """
    return case.plan.constraints


def timed(action: Callable[[], object]) -> float:
    """Run an action and return how long it took.

    Args:
        action: What to run, without arguments.

    Returns:
        Seconds by the clock on the wall, the work of the GPU included.
    """
    started = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with a single thread inside the block.

    Small pieces of work finish about as soon, and the other cores do not spend processor time on waiting.

    Yields:
        Nothing.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class StepTime:
    """How long a training step without constraints takes, from one step that was timed once.

    Attributes:
        seconds: Of a step with a full batch.
        images: How many images the timed step had.
        batch: How many images a full batch has.
        warmed_up: Whether a step ran before it.
        finite: Whether its loss and gradients were finite.
        by_image: What each image adds to it, in seconds.
    """

    seconds: float
    images: int
    batch: int
    warmed_up: bool
    finite: bool
    by_image: float = 0.0

    @property
    def forward(self) -> float:
        """Seconds of one forward pass for one image."""
        return self.seconds / self.batch / FORWARDS_PER_STEP

    @property
    def description(self) -> str:
        """What was timed, in one sentence."""
        part = f"{self.images} of the {self.batch}" if self.images < self.batch else f"all {self.batch}"
        before = "after one step to warm up" if self.warmed_up else "without warming up"
        return (
            f"one training step with {part} images of a batch, without constraints, was timed once, {before}"
        )


def time_one_step(case: Case, batch: Batch, forward_processor_seconds: float) -> StepTime:
    """Time one training step without constraints on the network, with a learning rate of 0.

    The step sees as many images as fit into `STEP_PROCESSOR_SECONDS`, at least one. What it spends on the
    weights does not depend on their number, and is taken from how long their update takes; the rest grows
    with it. Where most of the step is work on the weights, that is uncertain, and the forward pass says how
    much the images themselves take.

    Args:
        case: The prepared case; its network stays as it is.
        batch: A full batch of training images.
        forward_processor_seconds: What a forward pass costs for one image, in seconds of processor time.

    Returns:
        The time of a step with the full batch.

    Raises:
        InputError: If no parameter of the network is trainable.
    """
    size = len(batch.labels)
    affordable = STEP_PROCESSOR_SECONDS / (FORWARDS_PER_STEP * max(forward_processor_seconds, 1e-6))
    count = min(size, max(1, int(affordable)))
    part = take(batch, torch.arange(count))
    # With a learning rate of 0 the weights stay as they are, and no copy of a large network has to be made.
    recipe = replace(case.plan.recipe, epochs=1, learning_rate=0.0)
    loop, buffers = Loop(case.model, recipe, PLAIN, 0, 1), [each.clone() for each in case.model.buffers()]
    update: list[float] = []
    loop.optimizer.register_step_pre_hook(lambda *_call: update.append(time.perf_counter()))
    loop.optimizer.register_step_post_hook(lambda *_call: update.append(time.perf_counter()))
    warm_up = device_of(case.model).type != "cpu"  # a GPU loads its programs at the first step
    if warm_up:
        timed(lambda: loop.step_on(part))
        update.clear()
    clock: list[float] = []
    watch = [(loop.model, lambda *_call: clock.append(time.perf_counter()))]
    with hooked(watch, "forward_pre"), hooked(watch):
        total = timed(lambda: loop.step_on(part))
    loop.optimizer.zero_grad(set_to_none=True)
    case.model.eval()
    for buffer, old in zip(case.model.buffers(), buffers, strict=True):
        buffer.copy_(old)
    updating = update[1] - update[0] if len(update) == 2 else 0.0
    fixed = min(FIXED_PER_UPDATE * updating, LARGEST_FIXED_SHARE * total)
    by_image = min((total - fixed) / count, FORWARDS_PER_STEP * (clock[1] - clock[0]) / count)
    seconds = total + by_image * (size - count)
    return StepTime(seconds, count, size, warm_up, bool(loop.pending[-1][0]), by_image)


def tail_shares(case: Case, layers: Sequence[str]) -> dict[str, float]:
    """Return which share of a forward pass lies behind each layer.

    Nothing is computed: operations are counted on a copy without values, where the network allows it.

    Args:
        case: The prepared case.
        layers: Names of layers with a four-dimensional map.

    Returns:
        For each layer a number from 0 (the last operation) to 1 (the first).

    Raises:
        InputError: If the network has no such layer, or it has no four-dimensional map.
    """
    example = _example(case, 1)
    try:
        done = compute_before(_without_values(case.model), example.to("meta"), layers)[0]
    except InputError:
        raise
    except Exception:  # a network of the user's own may need values, for example to branch on them
        done = compute_before(case.model, example, layers)[0]
    return {layer: 1.0 - done[layer] / max(done[""], 1) for layer in layers}


def diagnosis_passes(case: Case) -> float | None:
    """Return what the evidence of one image costs, without computing any.

    A closed form is taken to hold where the operations behind a layer allow one; the diagnosis itself tries
    it on images before it uses it.

    Args:
        case: The prepared case.

    Returns:
        The cost in forward passes of one image; None where the network cannot be followed without values.
    """
    draws = case.plan.diagnosis_draws
    example = _example(case, 2).to("meta")
    try:
        hollow = _without_values(case.model)
        done = compute_before(hollow, example[:1], case.layers)[0]
        shares = {layer: 1.0 - done[layer] / max(done[""], 1) for layer in case.layers}
        return passes_per_image(shares, draws, lambda layer: _seems_closed(hollow, example, layer))
    except Exception:  # as above; the caller then asks the network itself
        return None


def _seems_closed(
    hollow: nn.Module, example: Float[Tensor, "batch channel height width"], layer: str
) -> bool:
    """Whether the operations behind a layer allow a closed form."""
    try:
        gated(hollow, example, layer)
    except NoClosedFormError:
        return False
    return True


def _without_values(model: nn.Module) -> nn.Module:
    """Return a frozen copy whose parameters and buffers have shapes but no values: on torch's meta device."""
    hollow: dict[int, object] = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in model.parameters()
    }
    hollow |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    return copy_of(model, hollow).eval()


def _example(case: Case, number: int) -> Float[Tensor, "batch channel height width"]:
    """Return the first training images where the network lies."""
    ids = case.data.train.table.ids[:number].tolist()
    images = torch.cat([batch.images for batch in case.data.train.select(ids)])
    return images.to(device_of(case.model))


def constraint_price(case: Case, texts: Sequence[str], shares: Mapping[str, float]) -> float:
    """Estimate what a training step under constraints costs, from where their layers lie.

    Args:
        case: The prepared case.
        texts: Constraints as texts; those that name no layers are on the last one of the case.
        shares: The share of a forward pass behind each of their layers, as `tail_shares` returns.

    Returns:
        The cost in steps without constraints; more than 1.
    """
    draws, price = case.plan.draws_per_step, 1.0 + PENALTY
    constraints = built_constraints(case, texts)
    layers = list(dict.fromkeys(layer for each in constraints for layer in each.layers))
    if draws == 0 and layers:  # one pass, from the earliest layer on, serves all of them
        layers = [max(layers, key=lambda layer: shares[layer])]
    for layer in layers:
        judges = [each for each in constraints if draws == 0 or layer in each.layers]
        masks_only = all(each.needs_masks for each in judges)
        images = share_drawn(case.plan.annotated_per_batch) if masks_only else 1.0
        price += images * shares[layer] * (PENALTY_TAIL + PENALTY_TAIL_PER_DRAW * max(draws - 1, 0))
    return price


def built_constraints(case: Case, texts: Sequence[str]) -> tuple[Constraint, ...]:
    """Return constraints with their layers, all with weight 0.

    Args:
        case: The prepared case.
        texts: Constraints as texts; those that name no layers are on the last one of the case.

    Returns:
        The constraints, in the order of the texts.

    Raises:
        InputError: If a constraint is on a layer that is not diagnosed.
    """
    settings = case.plan
    built = constraints_named(
        texts,
        layers=case.layers[-1:],
        evidence=settings.evidence,
        scale=settings.scale,
        targets=settings.targets,
        weights=dict.fromkeys([text.partition(" ")[0] for text in texts], 0.0),
    )
    for constraint in built:
        for layer in constraint.layers:
            if layer not in case.layers:
                raise InputError(
                    f"constraint {constraint.name!r} is on layer {layer!r}, which was not diagnosed; "
                    f"diagnosed: {', '.join(case.layers)}"
                )
    return tuple(replace(constraint, weight=0.0) for constraint in built)


def seconds_per_step(case: Case, batch: Batch, *, treated: bool) -> float:
    """Measure the seconds of a training step on one batch, with a copy of the network.

    It is run several times, after as many steps to warm up. A search plans by it; a dry run uses the faster
    `time_one_step`.

    Args:
        case: The prepared case; its network stays as it is.
        batch: A full batch of training images.
        treated: Whether the step has the constraints of the case.

    Returns:
        Seconds by the clock on the wall.
    """
    model = copy_of(case.model)
    course = PLAIN
    if treated:
        if batch.masks is not None:
            batch = replace(batch, annotated=torch.arange(len(batch.labels)) < max(1, len(batch.labels) // 8))
        course = course_on(case, batch, model)
    recipe = replace(case.plan.recipe, epochs=1)

    def run() -> object:
        steps = [batch] * REPEATED
        return fit(model, lambda _epoch: steps, recipe, steps_per_epoch=REPEATED, seed=0, course=course)

    run()
    return timed(run) / REPEATED


def course_on(case: Case, batch: Batch, model: nn.Module) -> Course:
    """Build the constraints on a diagnosis of one batch, which cost the same as those of the real one.

    Args:
        case: The prepared case.
        batch: Training images.
        model: The network that is to be trained.

    Returns:
        A course under the constraints, with weight 0.
    """
    settings = case.plan
    diagnosis = diagnose(case.model, [batch], layers=case.layers, draws=0, confidence=0.0)
    constraints = built_constraints(case, constraints_of(case))
    plan = Prescription(constraints, diagnosis, Noise(settings.draws_per_step), settings.expand_pixels)
    return Course(plan.terms(model, batch.images[:2].to(device_of(model)), 0))
