"""Save diagnoses, treatments and comparisons, and read them back exactly."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from torchdoctor.diagnosis.result import Diagnosis, LayerDiagnosis, Sifting
from torchdoctor.proof.result import ArmComparison, Comparison, Gain, SplitComparison
from torchdoctor.runs.files import read_json, sha256_of, weights_bytes, write_bytes, write_json, write_weights
from torchdoctor.treatment.result import Arm, Treatment
from torchdoctor.types import InputError

ARRAYS = (
    "correlation", "variance", "interval", "quantiles", "activation", "level", "correlated", "agreement",
    "background_share", "drift",
)  # fmt: skip


def save_diagnosis(folder: Path, diagnosis: Diagnosis) -> None:
    """Write `diagnosis.safetensors` (arrays in float64) and `diagnosis.json` (everything else)."""
    tensors = {
        "counts": torch.from_numpy(diagnosis.counts),
        "confusion": torch.from_numpy(diagnosis.confusion),
    }
    layers = []
    for number, layer in enumerate(diagnosis.layers):
        for name in ARRAYS:
            tensors[f"{number}.{name}"] = torch.from_numpy(np.ascontiguousarray(getattr(layer, name)))
        layers.append(
            {
                "name": layer.name,
                "delta": layer.delta,
                "standard_deviation": layer.standard_deviation,
                "path": layer.path,
                "flags": layer.flags,
                "correlated_kernels": layer.correlated.sum(1),
                "background_share": layer.background_share,
            }
        )
    write_weights(folder / "diagnosis.safetensors", tensors)
    write_json(
        folder / "diagnosis.json",
        {
            "classes": diagnosis.classes,
            "layers": layers,
            "counts": diagnosis.counts,
            "accuracy": diagnosis.accuracy,
            "not_diagnosed": diagnosis.not_diagnosed,
            "evidence": diagnosis.evidence,
            "draws": diagnosis.draws,
            "theta": diagnosis.theta,
            "seed": diagnosis.seed,
            "model_sha256": diagnosis.model_sha256,
            "sifting": asdict(diagnosis.sifting),
        },
    )


def load_diagnosis(folder: Path) -> Diagnosis:
    """Read a saved diagnosis; InputError names the file that is missing or broken."""
    file = folder / "diagnosis.safetensors"
    found: dict[str, Any] = read_json(folder / "diagnosis.json")
    try:
        tensors = {name: value.numpy() for name, value in load_file(file).items()}
        layers = tuple(
            LayerDiagnosis(
                name=layer["name"],
                delta=layer["delta"],
                standard_deviation=layer["standard_deviation"],
                path=layer["path"],
                flags=tuple(layer["flags"]),
                **{name: tensors[f"{number}.{name}"] for name in ARRAYS},
            )
            for number, layer in enumerate(found["layers"])
        )
        sifting = found["sifting"]
        return Diagnosis(
            classes=tuple(found["classes"]),
            layers=layers,
            sifting=Sifting(
                tuple(map(tuple, sifting["high"])),
                tuple(map(tuple, sifting["low"])),
                sifting["confidence"],
                sifting["images_per_category"],
            ),
            counts=tensors["counts"],
            confusion=tensors["confusion"],
            **{name: found[name] for name in ("evidence", "draws", "theta", "seed", "model_sha256")},
        )
    except (OSError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(f"{str(folder)!r} holds no readable diagnosis ({error!r})") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":
            raise
        raise InputError(f"{str(file)!r} is damaged ({error})") from error


def save_arm(home: Path, arm: Arm, card: Mapping[str, object]) -> None:
    """Write one arm: how its training went, the card, and last the weights that say it is finished."""
    content = weights_bytes(arm.state)
    write_json(home / "model.json", card)
    write_json(
        home / "history.json",
        {
            "epochs": arm.history,
            "steps": arm.steps,
            "seconds": round(arm.seconds, 3),
            "skipped_batches": arm.skipped,
            "sha256": hashlib.sha256(content).hexdigest(),
        },
    )
    write_bytes(home / "model.safetensors", content)


def load_arm(home: Path, name: str, seed: int) -> Arm:
    """Read an arm; InputError where a file is missing or the weights are not those that were written."""
    history: dict[str, Any] = read_json(home / "history.json")
    file = home / "model.safetensors"
    if not file.is_file() or sha256_of(file) != history.get("sha256"):
        raise InputError(f"{str(file)!r} is missing or damaged (its sha256 differs)")
    return Arm(
        name,
        seed,
        load_file(file),
        tuple(history["epochs"]),
        history["steps"],
        history["seconds"],
        tuple(map(tuple, history["skipped_batches"])),
    )


def load_treatment(folder: Path) -> Treatment:
    """Read the arms and the prescription of a run; InputError if there are none."""
    if not folder.is_dir():
        raise InputError(f"{str(folder.parent)!r} holds no treatment: give a run of treat or checkup")
    prescription: dict[str, Any] = read_json(folder / "prescription.json")
    homes = [(one.parent.name, int(one.name[4:]), one) for one in folder.glob("*/seed*")]
    order = list(prescription["arms"])
    arms = [
        load_arm(home, name, seed)
        for name, seed, home in sorted(homes, key=lambda one: (one[1], order.index(one[0])))
    ]
    if not arms:
        raise InputError(f"{str(folder)!r} holds no arm: run treat first")
    return Treatment(tuple(arms), tuple(prescription["constraints"]))


def save_treatment(folder: Path, treatment: Treatment) -> None:
    """Write what each constraint weighed and reached; the arms were written as they ended."""
    names = list(dict.fromkeys(arm.name for arm in treatment.arms))
    write_json(folder / "prescription.json", {"constraints": treatment.prescription, "arms": names})


def comparison_record(comparison: Comparison, exit_code: int) -> dict[str, object]:
    """Return what `compare.json` holds."""
    splits = comparison.splits
    arms = list(next(iter(splits.values())).accuracy)

    def per_arm(arm: str) -> dict[str, object]:
        return {
            name: {
                "accuracy": split.accuracy[arm],
                "per_category": split.per_category[arm],
                "worst_category": split.worst_category[arm],
                "background_share": split.background_share.get(arm),
                "calibration_error": split.calibration_error.get(arm),
            }
            for name, split in splits.items()
        }

    return {
        "verdict": comparison.verdict,
        "reason": comparison.reason,
        "exit_code": exit_code,
        "arm": comparison.arm,
        "primary": comparison.primary,
        "min_gain": comparison.min_gain,
        "max_loss": comparison.max_loss,
        "seeds": comparison.seeds,
        "steps": comparison.steps,
        "seconds": comparison.seconds,
        "classes": comparison.classes,
        "worst_group": comparison.worst_group,
        "images": {name: split.images for name, split in splits.items()},
        "arms": {arm: per_arm(arm) for arm in arms},
        "against_control": {
            name: {arm: asdict(one) for arm, one in split.arms.items()} for name, split in splits.items()
        },
    }


def load_comparison(path: Path) -> Comparison:
    """Read `compare.json` back into a Comparison."""
    found: dict[str, Any] = read_json(path)
    splits = {}
    for name, against in found["against_control"].items():
        arms = {arm: one[name] for arm, one in found["arms"].items()}
        splits[name] = SplitComparison(
            accuracy={arm: tuple(one["accuracy"]) for arm, one in arms.items()},
            per_category={arm: tuple(map(_number, one["per_category"])) for arm, one in arms.items()},
            background_share={arm: one["background_share"] for arm, one in arms.items()},
            arms={arm: _arm_comparison(one) for arm, one in against.items()},
            images=found["images"][name],
            calibration_error={
                arm: value for arm, one in arms.items() if (value := one["calibration_error"]) is not None
            },
        )
    return Comparison(
        classes=tuple(found["classes"]),
        splits=splits,
        primary=found["primary"],
        verdict=found["verdict"],
        reason=found["reason"],
        max_loss=found["max_loss"],
        seeds=tuple(found["seeds"]),
        seconds={arm: tuple(values) for arm, values in found["seconds"].items()},
        steps=found["steps"],
        arm=found["arm"],
        min_gain=found["min_gain"],
    )


def _arm_comparison(found: Mapping[str, Any]) -> ArmComparison:
    """Read one arm's comparison; JSON holds neither NaN nor infinite bounds."""
    gain = {**found["gain"], **{name: _number(found["gain"][name]) for name in ("p_adjusted",)}}
    low, high, least = gain["low"], gain["high"], gain["detectable"]
    gain["low"] = -math.inf if low is None else low
    gain["high"] = math.inf if high is None else high
    gain["detectable"] = math.inf if least is None else least
    return ArmComparison(
        gain=Gain(**gain),
        gain_per_category=tuple(map(_number, found["gain_per_category"])),
        verdict=found["verdict"],
        repaired=tuple(found["repaired"]),
        broken=tuple(found["broken"]),
        mcnemar=tuple(found["mcnemar"]),
    )


def _number(value: float | None) -> float:
    """Return a number that JSON could not hold as NaN."""
    return math.nan if value is None else value
