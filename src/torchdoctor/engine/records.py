"""Save diagnoses, treatments and comparisons, and read them back exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from torchdoctor.engine.storage import (
    read_json,
    sha256_of,
    weights_bytes,
    write_bytes,
    write_json,
    write_weights,
)
from torchdoctor.types import (
    Arm,
    Comparison,
    Diagnosis,
    InputError,
    LayerDiagnosis,
    Sifting,
    Treatment,
)

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
    arms = ("base", "control", "treated")
    splits = comparison.splits

    def per_arm(arm: str) -> dict[str, object]:
        return {
            name: {
                "accuracy": split.accuracy[arm],
                "per_category": split.per_category[arm],
                "background_share": split.background_share[arm],
            }
            for name, split in splits.items()
        }

    return {
        "verdict": comparison.verdict,
        "reason": comparison.reason,
        "exit_code": exit_code,
        "primary": comparison.primary,
        "max_loss": comparison.max_loss,
        "seeds": comparison.seeds,
        "steps": comparison.steps,
        "seconds": comparison.seconds,
        "classes": comparison.classes,
        "arms": {arm: per_arm(arm) for arm in arms},
        "gain": {
            name: {**asdict(split.gain), "per_category": split.gain_per_category}
            for name, split in splits.items()
        },
        "verdicts": {name: split.verdict for name, split in splits.items()},
        "images": {name: split.images for name, split in splits.items()},
        "repaired": {name: split.repaired for name, split in splits.items()},
        "broken": {name: split.broken for name, split in splits.items()},
    }


def load_comparison(path: Path) -> Comparison:
    """Read `compare.json` back into a Comparison."""
    from torchdoctor.types import Gain, SplitComparison

    found: dict[str, Any] = read_json(path)

    def number(value: float | None) -> float:
        return float("nan") if value is None else value

    splits = {}
    for name in found["gain"]:
        arms = {arm: one[name] for arm, one in found["arms"].items()}
        gain = dict(found["gain"][name])
        per_category = gain.pop("per_category")
        splits[name] = SplitComparison(
            accuracy={arm: tuple(one["accuracy"]) for arm, one in arms.items()},
            per_category={arm: tuple(map(number, one["per_category"])) for arm, one in arms.items()},
            background_share={arm: one["background_share"] for arm, one in arms.items()},
            gain=_bounded(Gain(**gain)),
            gain_per_category=tuple(map(number, per_category)),
            verdict=found["verdicts"][name],
            repaired=tuple(found["repaired"][name]),
            broken=tuple(found["broken"][name]),
            images=found["images"][name],
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
    )


def _bounded(gain: Any) -> Any:
    """Put back the infinite bounds that JSON cannot hold."""
    low = float("-inf") if gain.low is None else gain.low
    high = float("inf") if gain.high is None else gain.high
    return replace(gain, low=low, high=high)
