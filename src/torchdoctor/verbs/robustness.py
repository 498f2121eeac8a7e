"""Measure the noise curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from torchdoctor.case.identity import start_run
from torchdoctor.case.outcome import DONE, Outcome
from torchdoctor.case.preparation import prepare
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.robustness import (
    RANDOM_LAYER,
    RANGES,
    RobustnessSettings,
    measure_robustness,
)
from torchdoctor.diagnosis.robustness_result import Units
from torchdoctor.runs.folder import RunFolder
from torchdoctor.types import InputError, Progress, silent
from torchdoctor.verbs.begin import reopened, with_facts
from torchdoctor.verbs.causes import write_robustness


def run_robustness(
    settings: Settings,
    run: str | None = None,
    *,
    layer: str = RANDOM_LAYER,
    ranges: Sequence[float] = RANGES,
    units: Units = "absolute",
    number: int = 100,
    repeats: int = 10,
    epsilon: float = 8 / 255,
    progress: Progress = silent,
) -> Outcome:
    """Measure the noise curves on validation images, into a new run or into a finished one (`run`)."""
    if run is not None:
        folder, case, _ = reopened(run, {"device": settings.device, "workers": settings.workers})
        if (folder / "robustness.json").exists():
            raise InputError(f"run {run!r} holds {folder / 'robustness.json'} already: give --out instead")
    else:
        case = prepare(settings, "robustness")
        folder = case.folder
    fitted = case.data.preprocessing
    with RunFolder(folder) if run is not None else RunFolder.create(folder) as place:
        found = measure_robustness(
            case.model,
            case.data.validation,
            RobustnessSettings(layer, ranges, units, number, repeats, epsilon),
            mean=fitted.mean,
            std=fitted.std,
            seed=case.plan.seed,
            progress=progress,
        )
        if run is None:
            start_run(place.path, "robustness", case)
        write_robustness(place.path, found)
    return with_facts(Outcome(DONE, {"out": str(folder), **asdict(found)}), case)
