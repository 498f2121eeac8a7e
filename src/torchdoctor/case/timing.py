"""Time a step of training on a copy of the network, to say beforehand how long a run takes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from torchdoctor.case.preparation import Case
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.images.batches import Batch
from torchdoctor.network.prediction import device_of
from torchdoctor.treatment.constraints import constraints_named
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.recipe import PLAIN, Course
from torchdoctor.treatment.training import fit
from torchdoctor.treatment.weighting import Prescription

TRIED = 3  # steps that are really run to measure the time of one


def constraints_of(case: Case) -> Sequence[str]:
    """Return the names of the constraints of a treatment."""
    return case.plan.constraints


def timed(action: Callable[[], object]) -> float:
    """Return the seconds an action takes, the GPU's work included."""
    started = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def seconds_per_step(case: Case, batch: Batch, *, treated: bool) -> float:
    """Time a few steps on one batch with a copy of the network."""
    model = copy.deepcopy(case.model)
    course = PLAIN
    if treated:
        if batch.masks is not None:
            batch = replace(batch, annotated=torch.arange(len(batch.labels)) < max(1, len(batch.labels) // 8))
        course = _course(case, batch, model)
    recipe = replace(case.plan.recipe, epochs=1)

    def run() -> object:
        steps = [batch] * TRIED
        return fit(model, lambda _epoch: steps, recipe, steps_per_epoch=TRIED, seed=0, course=course)

    run()
    return timed(run) / TRIED


def _course(case: Case, batch: Batch, model: torch.nn.Module) -> Course:
    """Build the constraints on a diagnosis of one batch, which cost the same as those of the real one."""
    settings = case.plan
    diagnosis = diagnose(case.model, [batch], layers=case.layers, draws=0, confidence=0.0)
    names = [one.partition(" ")[0] for one in constraints_of(case)]
    constraints = constraints_named(
        constraints_of(case),
        layers=case.layers[-1:],
        evidence=settings.evidence,
        scale=settings.scale,
        targets=settings.targets,
        weights=dict.fromkeys(names, 0.0),
    )
    fixed = tuple(replace(one, weight=0.0) for one in constraints)
    plan = Prescription(fixed, diagnosis, Noise(settings.draws_per_step), settings.expand_pixels)
    return Course(plan.terms(model, batch.images[:2].to(device_of(model)), 0))
