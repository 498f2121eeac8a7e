"""Diagnose a classifier, and find the causes of its errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from torchdoctor.case.outcome import DONE, INCONCLUSIVE, Outcome, check_weights
from torchdoctor.case.preparation import Case, prepare
from torchdoctor.case.settings import Plan, Settings
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.diagnose import diagnose
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.diagnosis.sparsity import sparsity
from torchdoctor.diagnosis.suspects_result import FILE as SUSPECTS
from torchdoctor.diagnosis.suspects_result import Suspects
from torchdoctor.display.counts import count_of
from torchdoctor.evidence.per_image import diagnosis_cost
from torchdoctor.network.prediction import device_of, dtype_of
from torchdoctor.processes import launched
from torchdoctor.runs.folder import open_run
from torchdoctor.runs.parts import PartsFolder
from torchdoctor.treatment.next_steps import NextStep
from torchdoctor.types import Progress, silent
from torchdoctor.verbs.begin import (
    Say,
    is_done,
    open_run_folder,
    refuse_without_out,
    silent_text,
    with_facts,
)
from torchdoctor.verbs.causes import causes_stage, figures_stage
from torchdoctor.verbs.next_steps import read_steps, steps_record, steps_stage
from torchdoctor.verbs.suspects import suspects_record, suspects_stage


def diagnose_stage(case: Case, folder: Path, progress: Progress) -> Diagnosis:
    """Make the diagnosis and save it; what an interrupted run had computed is used.

    Args:
        case: The prepared case.
        folder: The run's folder; the diagnosis goes into its folder `diagnosis`.
        progress: Called with stage, done, of how many.

    Returns:
        The diagnosis.

    Raises:
        InputError: No training image of any category could be diagnosed, or the network cannot be.
    """
    settings, processes = case.plan, case.processes
    # The parts of all processes are in the run's own folder: one that dies costs no more than it had to do.
    parts = PartsFolder((folder if processes.main else case.folder) / "diagnosis" / "parts")
    diagnosis = diagnose(
        case.model,
        case.data.train,
        layers=case.layers,
        classes=case.classes,
        seed=settings.seed,
        settings=_diagnosis_settings(settings),
        parts=parts,
        progress=progress,
        processes=processes,
    )
    diagnosis.save(folder / "diagnosis")
    if processes.main:
        parts.remove()
    return diagnosis


def _diagnosis_settings(plan: Plan) -> DiagnosisSettings:
    """Return the settings of the diagnosis; it proposes at least as many masks as a treatment would use."""
    masks = 0 if plan.masks_per_category == "all" else plan.masks_per_category
    return plan.part(DiagnosisSettings).but(
        annotations_per_category=max(plan.annotations_per_category, masks)
    )


def passes_of(case: Case) -> float:
    """Return what the evidence of one image costs, by trying the network out.

    Args:
        case: The prepared case.

    Returns:
        The cost of one image in forward passes.
    """
    draws = case.plan.diagnosis_draws
    pixels = torch.cat([batch.images for batch in case.data.train.select(case.data.train.table.ids[:2])])
    pixels = pixels.to(device_of(case.model), dtype_of(case.model))
    return diagnosis_cost(case.model, pixels, case.layers, draws)


def cost_of(case: Case, passes: float | None = None) -> str:
    """Say what a diagnosis will cost, in forward passes, before it is made.

    Args:
        case: The prepared case.
        passes: The cost of one image in forward passes; None: found by trying the network out.

    Returns:
        One sentence.
    """
    draws = case.plan.diagnosis_draws
    passes = passes_of(case) if passes is None else passes
    sifted = min(len(case.data.train), case.plan.images_per_category * len(case.classes))
    noise = "no noise" if draws == 0 else f"draws: {draws}"
    return (
        f"{count_of(len(case.layers), 'layer')}, {noise}: about {passes:.1f} forward passes for each "
        "of at most "
        f"{sifted:,} sifted images, after 1 for each of {len(case.data.train):,}"
    )


def diagnosis_record(folder: Path, diagnosis: Diagnosis) -> dict[str, object]:
    """Return what `diagnose --json` prints.

    Args:
        folder: The run's folder.
        diagnosis: The diagnosis.

    Returns:
        Values by name; of each layer, numbers without the arrays.
    """
    return {
        "out": str(folder),
        "classes": diagnosis.classes,
        "evidence": diagnosis.evidence,
        "draws": diagnosis.draws,
        "images_per_category": diagnosis.counts,
        "not_diagnosed": [
            f"{name}: not diagnosed: 0 of {diagnosis.sifting.images_per_category}"
            for name in diagnosis.not_diagnosed
        ],
        "accuracy": diagnosis.accuracy,
        "layers": [
            {
                "name": layer.name,
                "kernels": layer.correlation.shape[1],
                "correlated_kernels": layer.correlated.sum(1),
                "background_share": layer.background_share,
                "delta": layer.delta,
                "path": layer.path,
                "kernels_for_90_percent": sparsity(layer.correlation),
                "agreement": layer.agreement[len(layer.agreement) // 2],
                "flags": layer.flags,
            }
            for layer in diagnosis.layers
        ],
    }


def run_diagnose(
    settings: Settings,
    progress: Progress = silent,
    *,
    resume: bool = False,
    say: Say = silent_text,
) -> Outcome:
    """Diagnose the classifier on its training images, and find the causes of its validation errors.

    Args:
        settings: What was asked for.
        progress: Called with stage, done, of how many.
        resume: Whether to go on with an unfinished run in the same folder; a finished run is only read.
        say: Receives a sentence about the cost before anything is computed.

    Returns:
        The outcome: exit code 0, or 4 where the diagnosis is inconclusive.

    Raises:
        InputError: A setting does not fit the network or the data, or the folder cannot be used.
    """
    refuse_without_out(settings, resume)
    case = prepare(settings, "diagnose", processes=launched())
    folder = case.folder
    if resume and is_done(folder, case.processes):
        diagnosis = Diagnosis.load(open_run(folder) / "diagnosis")
        check_weights(case, diagnosis, f"run {str(folder)!r}")
        suspects = Suspects.load(folder) if (folder / SUSPECTS).is_file() else None
        return _diagnosed(case, folder, diagnosis, Causes.load(folder), suspects, read_steps(folder))
    for remark in case.remarks:
        say(remark)
    say(cost_of(case))
    with open_run_folder(case, "diagnose", resume, say) as place:
        diagnosis = diagnose_stage(case, place, progress)
        causes = causes_stage(case, place, diagnosis, progress)
        suspects = suspects_stage(case, place, progress)
        if case.processes.main:
            figures_stage(case, place / "figures", diagnosis)
        steps = steps_stage(case, place, diagnosis, causes, suspects)
        return _diagnosed(case, place, diagnosis, causes, suspects, steps)


def _diagnosed(
    case: Case,
    folder: Path,
    diagnosis: Diagnosis,
    causes: Causes,
    suspects: Suspects | None,
    steps: Sequence[NextStep],
) -> Outcome:
    """Return what a diagnosis ends with; runs of earlier versions have no suspects."""
    code = INCONCLUSIVE if diagnosis.inconclusive else DONE
    record = {
        **diagnosis_record(folder, diagnosis),
        "validation_accuracy": causes.accuracy,
        **({"second_opinion": dict(causes.others)} if causes.others else {}),
        "causes": causes.counts,
        **({"suspects": suspects_record(folder, suspects)} if suspects else {}),
        "figures": str(folder / "figures"),
        **steps_record(steps),
    }
    return with_facts(Outcome(code, record, diagnosis), case)
