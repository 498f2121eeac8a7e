"""Run one stage of a prepared case and write what it made into the run folder."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchdoctor.courses import Recipe
from torchdoctor.diagnosis import diagnose, state_sha256
from torchdoctor.engine.checkpoints import CheckpointFolder
from torchdoctor.engine.parts import PartsFolder
from torchdoctor.engine.preparation import Case, loading_code
from torchdoctor.engine.records import (
    comparison_record,
    save_diagnosis,
)
from torchdoctor.engine.settings import Settings
from torchdoctor.engine.splits import splits_to_compare
from torchdoctor.engine.storage import read_json, write_json, write_weights
from torchdoctor.engine.trackers import write_trackers
from torchdoctor.evaluation import compare
from torchdoctor.evidence import diagnosis_cost
from torchdoctor.gradients import measuring
from torchdoctor.rows import sparsity
from torchdoctor.sifting import device_of, dtype_of
from torchdoctor.training import accuracy, fit
from torchdoctor.types import Arm, Comparison, Diagnosis, InputError, Progress, Treatment

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


def arm_weights(folder: Path, arm: str = "treated") -> Path:
    """Return where a run keeps an arm's weights of its first seed."""
    return folder / "treatment" / arm / "seed0" / "model.safetensors"


def out_folder(settings: Settings, verb: str) -> Path:
    """Return where the run goes: `--out`, or runs/<verb>-<time>."""
    return Path(settings.out or f"runs/{verb}-{time.strftime('%Y%m%d-%H%M%S')}")


def recipe_of(settings: Settings) -> Recipe:
    """Return the training recipe of filled settings."""
    assert settings.epochs is not None and settings.learning_rate is not None and settings.norm is not None
    return Recipe(
        epochs=settings.epochs,
        optimizer=settings.optimizer,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        norm=settings.norm,
        precision=settings.precision,
    )


def train_stage(
    case: Case,
    folder: Path,
    progress: Progress,
    stop: Callable[[], bool] = lambda: False,
    say: Callable[[str], None] = lambda _text: None,
) -> Outcome:
    """Train the case's model in place and write its weights, card and history; go on where it stood."""
    home = folder / "checkpoints"
    kept = CheckpointFolder(home, label="train", stop=stop, say=say)
    trained = fit(
        case.model,
        lambda epoch: case.data.train.epoch(epoch, case.settings.seed),
        recipe_of(case.settings),
        steps_per_epoch=case.data.train.steps_per_epoch,
        seed=case.settings.seed,
        validation=case.data.validation,
        checkpoints=kept,
        progress=progress,
        stage="train",
    )
    write_json(
        folder / "history.json",
        {
            "epochs": trained.history,
            "steps": trained.steps,
            "seconds": round(trained.seconds, 1),
            "skipped_batches": trained.skipped,
        },
    )
    arm = Arm("train", case.settings.seed, {}, trained.history, trained.steps, trained.seconds)
    write_trackers(folder, Treatment((arm,), ()), tensorboard=case.settings.tensorboard)
    write_json(folder / "model.json", case.card)
    write_weights(folder / "model.safetensors", case.model.state_dict())
    kept.remove()
    return trained_outcome(case, folder)


def trained_outcome(case: Case, folder: Path) -> Outcome:
    """Return what a finished training ends with; the case's model holds its weights."""
    history: Any = read_json(folder / "history.json")
    record = {
        "out": str(folder),
        "weights": str(folder / "model.safetensors"),
        "steps": history["steps"],
        "seconds": history["seconds"],
        "validation_accuracy": accuracy(case.model, case.data.validation),
        "skipped_batches": [case.names_of(ids) for ids in history["skipped_batches"]],
        "images": {"train": len(case.data.train), "validation": len(case.data.validation)},
    }
    code = loading_code(case, folder / "model.safetensors")
    return Outcome(DONE, record, loading_code=code)


def diagnose_stage(case: Case, folder: Path, progress: Progress) -> Diagnosis:
    """Make the diagnosis and save it; what an interrupted run had computed is used."""
    settings = case.settings
    parts = PartsFolder(folder / "diagnosis" / "parts")
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
        annotations_per_category=max(20, settings.masks_per_category or 0),
        seed=settings.seed,
        parts=parts,
        progress=progress,
    )
    save_diagnosis(folder / "diagnosis", diagnosis)
    parts.remove()
    return diagnosis


def cost_of(case: Case) -> str:
    """Say what a diagnosis will cost, in forward passes, before it is made."""
    draws = case.settings.draws if case.settings.draws is not None else 10
    pixels = torch.cat([batch.images for batch in case.data.train.select(case.data.train.table.ids[:2])])
    pixels = pixels.to(device_of(case.model), dtype_of(case.model))
    with measuring(case.model):
        passes = diagnosis_cost(case.model, pixels, case.layers, draws)
    sifted = min(len(case.data.train), case.settings.images_per_category * len(case.classes))
    noise = "no noise" if draws == 0 else f"draws: {draws}"
    return (
        f"{len(case.layers)} layer(s), {noise}: about {passes:.1f} forward passes for each of at most "
        f"{sifted:,} sifted images, after one for each of {len(case.data.train):,}"
    )


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
                "path": layer.path,
                "kernels_for_90_percent": sparsity(layer.correlation),
                "agreement": layer.agreement[len(layer.agreement) // 2],
                "flags": layer.flags,
            }
            for layer in diagnosis.layers
        ],
    }


def check_weights(case: Case, diagnosis: Diagnosis, source: str) -> None:
    """Raise InputError unless the case's weights are those that were diagnosed."""
    found = state_sha256(case.model)
    if found != diagnosis.model_sha256:
        raise InputError(
            f"{source} was made of other weights than {case.settings.weights!r} holds now (sha256 "
            f"{diagnosis.model_sha256[:12]}..., found {found[:12]}...): give the weights that were diagnosed"
        )


def compare_stage(
    case: Case, folder: Path, diagnosis: Diagnosis, treatment: Treatment, progress: Progress
) -> Outcome:
    """Compare, write compare.json, and turn the verdict into an exit code."""
    settings = case.settings
    comparison = compare(
        case.model,
        treatment,
        splits_to_compare(case),
        primary=settings.primary,
        classes=case.classes,
        layers=case.layers,
        evidence=settings.evidence or "gradient_x_activation",
        min_gain=settings.min_gain,
        max_loss=settings.max_loss,
        seed=settings.seed,
        arm=arm_of(case),
        progress=progress,
    )
    code = exit_code_of(diagnosis, comparison)
    record = comparison_record(comparison, code)
    write_json(folder / "compare.json", record)
    record = {"out": str(folder), **record}
    return Outcome(code, record, diagnosis, treatment, comparison, lines_of(case, folder))


def arm_of(case: Case, comparison: Comparison | None = None) -> str:
    """Return the arm that verdicts speak of: the one compared first, or the first that was named."""
    if comparison is not None:
        return comparison.arm
    return next((arm for arm in case.settings.arms or () if arm != "control"), "treated")


def exit_code_of(diagnosis: Diagnosis, comparison: Comparison) -> int:
    """Return 0 helped by what was asked, 3 harmed or gained too little, 4 nothing could be said."""
    if diagnosis.inconclusive or comparison.verdict == "no evidence":
        return INCONCLUSIVE
    gain = comparison.splits[comparison.primary].first.gain.mean
    return DONE if comparison.verdict == "helped" and gain >= comparison.min_gain else GATE_NOT_MET


def command_of(folder: Path, verb: str) -> str:
    """Return the command that runs the same again."""
    config, again = shlex.quote(str(folder / "config.yaml")), shlex.quote(f"{folder}-again")
    return f"torchdoctor {verb} --config {config} --out {again}"


def lines_of(case: Case, folder: Path, arm: str | None = None) -> str:
    """Return the lines that load an arm's weights in plain PyTorch."""
    return loading_code(case, arm_weights(folder, arm or arm_of(case)))


def notes_of(diagnosis: Diagnosis) -> list[str]:
    """Return what a reader must know about the diagnosis."""
    most = diagnosis.sifting.images_per_category
    notes = [f"{name}: not diagnosed: 0 of {most}" for name in diagnosis.not_diagnosed]
    for layer in diagnosis.layers:
        notes += [f"{layer.name}: {flag}" for flag in layer.flags]
    return notes
