"""Measure the noise curves."""

from __future__ import annotations

from dataclasses import asdict

from torchdoctor.case.identity import start_run
from torchdoctor.case.outcome import DONE, Outcome
from torchdoctor.case.preparation import prepare
from torchdoctor.case.settings import Settings
from torchdoctor.diagnosis.robustness import (
    RobustnessSettings,
    measure_robustness,
)
from torchdoctor.processes import launched
from torchdoctor.runs.folder import RunFolder
from torchdoctor.types import InputError, Progress, silent
from torchdoctor.verbs.begin import reopen_run, with_facts, written_by_main
from torchdoctor.verbs.causes import write_robustness


def run_robustness(
    settings: Settings,
    run: str | None = None,
    attack: RobustnessSettings | None = None,
    *,
    progress: Progress = silent,
) -> Outcome:
    """Measure how validation images fare under noise, beside their adversarial twins.

    Args:
        settings: What was asked for: network, data, where to write.
        run: A finished run to add to; None: a new run.
        attack: How images are attacked and how much noise is added; None: the defaults.
        progress: Called with stage, done, of how many.

    Returns:
        The curves, and where they were written.

    Raises:
        InputError: A setting is out of range, the run holds curves already, or no image can be attacked.
    """
    if run is not None:
        folder, case, _ = reopen_run(
            run, {"device": settings.device, "workers": settings.workers}, launched()
        )
        if (folder / "robustness.json").exists():
            raise InputError(f"run {run!r} holds {folder / 'robustness.json'} already: give --out instead")
    else:
        case = prepare(settings, "robustness", processes=launched())
        folder = case.folder
    fitted = case.data.preprocessing

    def begin() -> RunFolder:
        return RunFolder(folder) if run is not None else RunFolder.create(folder)

    with written_by_main(case.processes, begin) as place:
        robustness = measure_robustness(
            case.model,
            case.data.validation,
            attack or RobustnessSettings(),
            mean=fitted.mean,
            std=fitted.std,
            seed=case.plan.seed,
            progress=progress,
            processes=case.processes,
        )
        if run is None:
            start_run(place, "robustness", case)
        write_robustness(place, robustness)
    return with_facts(Outcome(DONE, {"out": str(folder), **asdict(robustness)}), case, said=False)
