"""Run one stage of a prepared case and write what it made into the run folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torchdoctor.diagnosis import Progress, diagnose
from torchdoctor.engine.examples import collect_examples
from torchdoctor.engine.preparation import Case, environment, loading_code
from torchdoctor.engine.records import (
    comparison_record,
    load_diagnosis,
    save_arm,
    save_diagnosis,
    save_treatment,
)
from torchdoctor.engine.settings import Settings, settings_record
from torchdoctor.engine.storage import (
    open_run,
    write_bytes,
    write_json,
    write_weights,
    write_yaml,
)
from torchdoctor.evaluation import compare
from torchdoctor.report import render_report
from torchdoctor.training import Recipe, accuracy, fit
from torchdoctor.treatment import treat
from torchdoctor.types import Arm, Comparison, Diagnosis, InputError, Treatment

DONE, GATE_NOT_MET, INCONCLUSIVE = 0, 3, 4


@dataclass(frozen=True)
class Outcome:
    """What a verb ends with: its exit code, what `--json` prints, and the objects behind it."""

    exit_code: int
    record: Mapping[str, object]
    diagnosis: Diagnosis | None = None
    treatment: Treatment | None = None
    comparison: Comparison | None = None
    loading_code: str | None = None


def treated_weights(folder: Path) -> Path:
    """Return where a run keeps the treated weights of its first seed."""
    return folder / "treatment" / "treated" / "seed0" / "model.safetensors"


def out_folder(settings: Settings, verb: str) -> Path:
    """Return where the run goes: `--out`, or runs/<verb>-<time>."""
    return Path(settings.out or f"runs/{verb}-{time.strftime('%Y%m%d-%H%M%S')}")


def start_run(folder: Path, verb: str, settings: Settings) -> None:
    """Write what the run is and where it runs."""
    write_yaml(folder / "config.yaml", settings_record(verb, replace(settings, out=str(folder))))
    write_json(folder / "environment.json", environment())


def recipe_of(settings: Settings) -> Recipe:
    """Return the training recipe of filled settings."""
    assert settings.epochs is not None and settings.learning_rate is not None and settings.norm is not None
    return Recipe(
        epochs=settings.epochs,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        norm=settings.norm,
    )


def train_stage(case: Case, folder: Path, progress: Progress) -> Outcome:
    """Train the case's model in place and write its weights, card, checkpoints and history."""
    history: list[Mapping[str, float]] = []

    def checkpoint(epoch: int, entry: Mapping[str, float]) -> None:
        history.append(entry)
        write_weights(folder / "checkpoints" / "last.safetensors", case.model.state_dict())
        write_json(folder / "checkpoints" / "history.json", {"epochs": history})

    started = time.perf_counter()
    _, steps = fit(
        case.model,
        lambda epoch: case.data.train.epoch(epoch, case.settings.seed),
        recipe_of(case.settings),
        steps_per_epoch=case.data.train.steps_per_epoch,
        seed=case.settings.seed,
        validation=case.data.validation,
        after_epoch=checkpoint,
        progress=progress,
        stage="train",
    )
    write_weights(folder / "model.safetensors", case.model.state_dict())
    write_json(folder / "model.json", case.card)
    record = {
        "out": str(folder),
        "weights": str(folder / "model.safetensors"),
        "steps": steps,
        "seconds": round(time.perf_counter() - started, 1),
        "validation_accuracy": accuracy(case.model, case.data.validation),
        "images": {"train": len(case.data.train), "validation": len(case.data.validation)},
    }
    code = loading_code(case.settings, len(case.classes), folder / "model.safetensors")
    return Outcome(DONE, record, loading_code=code)


def diagnose_stage(case: Case, folder: Path, progress: Progress) -> Diagnosis:
    """Make the diagnosis and save it."""
    settings = case.settings
    assert settings.evidence is not None
    diagnosis = diagnose(
        case.model,
        case.data.train,
        layers=case.layers,
        classes=case.classes,
        evidence=settings.evidence,
        draws=10 if settings.draws is None else settings.draws,
        delta=settings.delta,
        theta=settings.theta,
        images_per_category=settings.images_per_category,
        confidence=settings.confidence,
        annotations_per_category=max(20, settings.masks_per_category),
        seed=settings.seed,
        progress=progress,
    )
    save_diagnosis(folder / "diagnosis", diagnosis)
    return diagnosis


def diagnosis_record(folder: Path, diagnosis: Diagnosis) -> dict[str, object]:
    """Return what `diagnose --json` prints."""
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
                "flags": layer.flags,
            }
            for layer in diagnosis.layers
        ],
    }


def treat_stage(case: Case, folder: Path, progress: Progress) -> tuple[Diagnosis, Treatment]:
    """Diagnose (or take over a diagnosis), treat, and save each arm as it ends."""
    settings = case.settings
    if settings.diagnosis is None:
        diagnosis = diagnose_stage(case, folder, progress)
    else:
        diagnosis = _taken_over(settings, case)
        save_diagnosis(folder / "diagnosis", diagnosis)
    assert settings.evidence is not None

    def save(arm: Arm) -> None:
        save_arm(folder / "treatment", arm, case.card)

    treatment = treat(
        case.model,
        case.data.train,
        diagnosis,
        constraints=settings.constraints,
        layers=case.layers,
        evidence=settings.evidence,
        scale=settings.scale,
        weight=settings.weights_by_constraint,  # type: ignore[arg-type]
        tau=settings.tau,
        draws=1 if settings.draws is None else settings.draws,
        targets=settings.targets,
        masks_per_category=settings.masks_per_category,
        annotated_per_batch=settings.annotated_per_batch,
        expand_pixels=settings.expand_pixels,
        recipe=recipe_of(settings),
        seeds=settings.seeds,
        validation=case.data.validation,
        save_arm=save,
        progress=progress,
    )
    save_treatment(folder / "treatment", treatment)
    return diagnosis, treatment


def _taken_over(settings: Settings, case: Case) -> Diagnosis:
    """Read the diagnosis of another run; InputError where it speaks of other categories or layers."""
    source = open_run(Path(str(settings.diagnosis)))
    diagnosis = load_diagnosis(source / "diagnosis")
    if diagnosis.classes != case.classes:
        raise InputError(
            f"--diagnosis {settings.diagnosis!r} is of {len(diagnosis.classes)} categories; the data has "
            f"{len(case.classes)}"
        )
    known = [layer.name for layer in diagnosis.layers]
    missing = [layer for layer in case.layers if layer not in known]
    if missing:
        raise InputError(
            f"--diagnosis {settings.diagnosis!r} has no layer {', '.join(missing)}; it has "
            f"{', '.join(known)}: give --layers out of these, or diagnose again"
        )
    return diagnosis


def compare_stage(
    case: Case, folder: Path, diagnosis: Diagnosis, treatment: Treatment, progress: Progress
) -> Outcome:
    """Compare, write compare.json, and turn the verdict into an exit code."""
    settings = case.settings
    comparison = compare(
        case.model,
        treatment,
        case.data.tests,
        primary=settings.primary,
        classes=case.classes,
        layers=case.layers,
        evidence=settings.evidence or "gradient_x_activation",
        max_loss=settings.max_loss,
        seed=settings.seed,
        progress=progress,
    )
    code = exit_code_of(diagnosis, comparison)
    record = comparison_record(comparison, code)
    write_json(folder / "compare.json", record)
    weights = treated_weights(folder)
    lines = loading_code(settings, len(case.classes), weights)
    return Outcome(code, {"out": str(folder), **record}, diagnosis, treatment, comparison, lines)


def exit_code_of(diagnosis: Diagnosis, comparison: Comparison) -> int:
    """Return 0 helped, 3 harmed, 4 no evidence either way or too little diagnosed to tell."""
    if diagnosis.inconclusive or comparison.verdict == "no evidence":
        return INCONCLUSIVE
    return DONE if comparison.verdict == "helped" else GATE_NOT_MET


def report_stage(
    case: Case,
    folder: Path,
    target: Path,
    diagnosis: Diagnosis,
    treatment: Treatment | None,
    comparison: Comparison | None,
    progress: Progress,
    verb: str = "checkup",
) -> None:
    """Collect the images behind the errors and write the page."""
    progress("report", 0, 1)
    examples = collect_examples(case, treatment, comparison)
    weights = treated_weights(folder)
    page = render_report(
        title=f"{case.settings.model} on {case.settings.data}",
        diagnosis=diagnosis,
        comparison=comparison,
        examples=examples,
        prescription=treatment.prescription if treatment else (),
        settings=settings_record(verb, case.settings),
        environment=environment(),
        command=command_of(folder, verb),
        loading_code=loading_code(case.settings, len(case.classes), weights),
        notes=notes_of(diagnosis),
    )
    write_bytes(target, page.encode())
    progress("report", 1, 1)


def command_of(folder: Path, verb: str) -> str:
    """Return the command that runs the same again."""
    return f"torchdoctor {verb} --config {folder / 'config.yaml'} --out {folder}-again"


def notes_of(diagnosis: Diagnosis) -> list[str]:
    """Return what a reader must know about the diagnosis."""
    most = diagnosis.sifting.images_per_category
    notes = [f"{name}: not diagnosed: 0 of {most}" for name in diagnosis.not_diagnosed]
    for layer in diagnosis.layers:
        notes += [f"{layer.name}: {flag}" for flag in layer.flags]
    return notes


def checkup_stages(case: Case, folder: Path, progress: Progress, verb: str = "checkup") -> Outcome:
    """Run the stages of a checkup in a folder."""
    diagnosis, treatment = treat_stage(case, folder, progress)
    outcome = compare_stage(case, folder, diagnosis, treatment, progress)
    report = folder / "report.html"
    report_stage(case, folder, report, diagnosis, treatment, outcome.comparison, progress, verb)
    return replace(outcome, record={**outcome.record, "report": str(report)})
