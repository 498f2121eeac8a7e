"""Plant faults in trained networks and count how often their errors get the right cause.

    python benchmarks/study/causes.py --cache FOLDER [--seeds 2 3 4 5 6] [--out results/causes.json]

`planted.py` trains the networks (and is called here for those that are missing). A planted error is one
that the clean twin does not make: the fault caused it. Precision of a cause: of the planted errors that
were given it, the share that has it. `strict` also counts every error as wrong that no fault caused (the
networks' natural errors, some of which are truly ambiguous). Recall: of the errors of a fault, the share
that got its cause. The thresholds in causes.py were set on the seeds 0 and 1; the table is of fresh ones.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.study import planted_faults as planted
from torchdoctor import Batch, diagnose
from torchdoctor.diagnosis.causes import find_causes
from torchdoctor.diagnosis.causes_result import Causes
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.network.prediction import predict_logits
from torchdoctor.randomness import key

FAULTS = {
    "scrambled": "wrong kernels",
    "background": "background",
    "thinned": "rare category",
    "flipped": "label looks wrong",
    "confused": "close categories",
    "under-fitted": "under-fitted",
    "over-fitted": "over-fitted",
    "clean": "",
}
SCRAMBLED, FLIPPED = 10, 0.06


def diagnosed(model: nn.Module, architecture: str, fault: str, seed: int) -> Diagnosis:
    """Diagnose a network on its own training images, as a user would."""
    images = planted.training_images(fault, seed)
    layers = planted.ARCHITECTURES[architecture][1]
    return diagnose(
        model,
        images,
        layers=layers,
        draws=0,
        settings=DiagnosisSettings(images_per_category=60),
        confidence=0.5,
    )


def scrambled(model: nn.Module, diagnosis: Diagnosis, seed: int) -> nn.Module:
    """Return the network with a category's ten strongest kernels scrambled, at one of two layers."""
    hurt, layer = copy.deepcopy(model), diagnosis.layers[seed % 2]
    kernels = layer.correlation[planted.thinned_category(seed)].argsort()[::-1][:SCRAMBLED].tolist()
    weight = hurt.get_submodule(layer.name).weight
    generator = torch.Generator().manual_seed(key("scramble", seed) % (1 << 63))
    with torch.no_grad():
        for kernel in kernels:
            order = torch.randperm(weight[kernel].numel(), generator=generator)
            weight[kernel] = weight[kernel].flatten()[order].view_as(weight[kernel])
    return hurt


def flipped(batches: Sequence[Batch], seed: int) -> tuple[list[Batch], set[int]]:
    """Give some images a wrong label; return which."""
    generator = torch.Generator().manual_seed(seed)
    changed, touched = [], set()
    for batch in batches:
        hit = torch.rand(len(batch.ids), generator=generator) < FLIPPED
        other = torch.randint(1, len(planted.CLASSES), (len(batch.ids),), generator=generator)
        changed.append(replace(batch, labels=(batch.labels + other * hit) % len(planted.CLASSES)))
        touched |= set(batch.ids[hit].tolist())
    return changed, touched


def wrong(model: nn.Module, batches: Sequence[Batch]) -> set[int]:
    """Return the ids of the errors."""
    ids, labels, logits = predict_logits(model, batches)
    return set(ids[logits.argmax(1) != labels].tolist())


def one_case(cache: Path, architecture: str, fault: str, seed: int) -> tuple[Causes, set[int]]:
    """Return the causes found in one faulty network, and the errors its fault caused."""
    clean = planted.network(cache, architecture, "clean", seed)
    batches = list(planted.images(seed, planted.VALIDATION, planted.CHECKED, planted.FAIR))
    before = wrong(clean, batches)
    model = clean
    if fault in planted.TRAINED:
        model = planted.network(cache, architecture, fault, seed)
    diagnosis = diagnosed(model, architecture, fault if fault in planted.TRAINED else "clean", seed)
    if fault == "scrambled":
        model = scrambled(clean, diagnosis, seed)
        diagnosis = diagnosed(model, architecture, "clean", seed)
    if fault == "flipped":
        batches, touched = flipped(batches, seed)
        caused = wrong(model, batches) & touched - before
    else:
        caused = wrong(model, batches) - before
    if fault in ("thinned", "confused"):
        rare = planted.thinned_category(seed)
        concerned = torch.tensor([rare] if fault == "thinned" else [rare, (rare + 1) % len(planted.CLASSES)])
        caused &= {int(one) for batch in batches for one in batch.ids[torch.isin(batch.labels, concerned)]}
    if fault == "confused":  # what is taken for a third category is not what was planted
        ids, _, logits = predict_logits(model, batches)
        caused &= set(ids[torch.isin(logits.argmax(1), concerned)].tolist())
    if fault == "clean":
        caused = set()
    return find_causes(model, batches, diagnosis), caused


def table(cases: dict[tuple[str, str, int], tuple[Causes, set[int]]]) -> dict[str, object]:
    """Count precision and recall per cause, over all networks and by architecture."""
    given: dict[str, Counter] = {}
    natural: Counter = Counter()
    by_architecture: dict[str, dict[str, Counter]] = {}
    for (architecture, fault, _), (causes, caused) in cases.items():
        for one in causes.errors:
            if one.id in caused:
                given.setdefault(fault, Counter())[one.cause] += 1
                by_architecture.setdefault(architecture, {}).setdefault(fault, Counter())[one.cause] += 1
            else:
                natural[one.cause] += 1
    rows = {}
    for fault, cause in FAULTS.items():
        if not cause:
            continue
        hits, total = given.get(fault, Counter())[cause], given.get(fault, Counter()).total()
        claimed = sum(one[cause] for one in given.values())
        strict = claimed + natural[cause]
        rows[cause] = {
            "fault": fault,
            "errors": total,
            "precision": hits / claimed if claimed else None,
            "strict_precision": hits / strict if strict else None,
            "recall": hits / total if total else None,
            "recall_by_architecture": {
                name: found[fault][cause] / found[fault].total()
                for name, found in by_architecture.items()
                if fault in found
            },
        }
    return {
        "causes": rows,
        "confusion": {fault: dict(one.most_common()) for fault, one in given.items()},
        "natural_errors": dict(natural.most_common()),
    }


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[2, 3, 4, 5, 6])
    parser.add_argument("--architectures", nargs="*", default=list(planted.ARCHITECTURES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    cases = {}
    for seed in given.seeds:
        for architecture in given.architectures:
            for fault in FAULTS:
                cases[architecture, fault, seed] = one_case(given.cache, architecture, fault, seed)
                causes, caused = cases[architecture, fault, seed]
                found = Counter(one.cause for one in causes.errors if one.id in caused)
                print(f"{architecture} {fault} {seed}: {causes.accuracy:.1f} %, {dict(found)}", flush=True)
    result = {"seeds": given.seeds, "architectures": given.architectures, **table(cases)}
    print("| cause | planted errors | precision | strict precision | recall |\n|---|---|---|---|---|")
    for cause, row in result["causes"].items():
        numbers = (row[name] for name in ("precision", "strict_precision", "recall"))
        shown = " | ".join("-" if one is None or np.isnan(one) else f"{one:.2f}" for one in numbers)
        print(f"| {cause} | {row['errors']} | {shown} |")
    print("given to natural errors:", result["natural_errors"])
    if given.out:
        given.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
