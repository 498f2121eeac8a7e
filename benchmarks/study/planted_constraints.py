"""Plant faults in small networks, treat them, and measure how much of the lost accuracy comes back.

    python benchmarks/study/planted_constraints.py --cache FOLDER [--seeds 2 3 4] [--shard 0/2]
        [--architectures residual plain separable] [--out results/treatment_planted.json]

Every faulty network is diagnosed on its own training images, faults included, and treated with them; only
scrambled kernels, which no training planted, are treated on the clean ones. The prescription is the same for
every fault and was fixed beforehand: the defaults of `diagnose` and `treat`, masks of 20 images per
category, channel-wise and space-wise. Beside it run `dfr`, `swap` and, for scrambled kernels, `aimed`: the
channel-wise constraint on the layer where they were scrambled, alone. All arms of a network have the same
steps, batches and optimiser as its control; one treatment seed per network.

Test images are drawn for this program alone, backgrounds independent of the category, and looked at once.
recovered: (arm - faulty) / (clean - faulty), over the networks that lost at least 2 points. over the control:
arm - control in points, over all networks. Intervals: 95 %, Student's t over the networks;
not corrected for the number of rows, and networks of one seed share their images. Each (fault, architecture,
seed) is one line of the .jsonl beside --out, and is skipped once it is there. `--shard 1/2` does the second
half of the networks.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from benchmarks.study import json_lines
from benchmarks.study import planted_faults as planted
from benchmarks.study.causes import scrambled
from torchdoctor import Course, ModelDoctorError, Recipe, diagnose, treat
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.images.batches import TrainingImages
from torchdoctor.images.masks import default_expansion
from torchdoctor.proof.statistics import LEVEL
from torchdoctor.treatment.constraints import constraints_named
from torchdoctor.treatment.cure import Remedy
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.training import accuracy
from torchdoctor.treatment.weighting import Prescription, example_of, prescribe

FAULTS = ("scrambled", "background", "thinned", "mislabelled", "confused", "over-fitted", "under-fitted")
ARMS = ("control", "treated", "dfr", "swap")
LEAST = 2.0  # points that a network must have lost for a share to mean anything
TAU = 0.3  # treat's own default
MASKS = 20  # per category
SETTINGS = ("epochs", "images", "tested")

Line = dict[str, Any]


def aimed_at(layer: str, recipe: Recipe) -> Remedy:
    """Return the remedy that constrains one layer channel-wise, weighed as `treat` would."""

    def aimed(model: nn.Module, images: TrainingImages, diagnosis: Diagnosis, seed: int) -> Course:
        example = example_of(model, images)
        constraints = constraints_named(["channel scale=share"], layers=[layer])
        plan = Prescription(constraints, diagnosis, Noise(draws=1), default_expansion(example.shape[-1]))
        plan, facts = prescribe(model, images, plan, recipe, TAU)
        return Course(plan.terms(model, example, seed), facts=facts)

    return aimed


def faulty_network(
    clean: nn.Module, architecture: str, fault: str, seed: int, given: argparse.Namespace
) -> tuple[nn.Module, str]:
    """Return the network with the fault, and the layer it was planted in where it was in one."""
    if fault != "scrambled":
        return planted.network(given.cache, architecture, fault, seed, given.images), ""
    images = planted.training_images("clean", seed, given.images)
    found = diagnose(clean, images, layers=planted.ARCHITECTURES[architecture][1])
    hurt = scrambled(clean, found, seed)
    (layer,) = (
        one.name
        for one in found.layers
        if not torch.equal(hurt.get_submodule(one.name).weight, clean.get_submodule(one.name).weight)
    )
    return hurt, layer


def measure(architecture: str, fault: str, seed: int, given: argparse.Namespace) -> Line:
    """Treat one faulty network and return its line."""
    clean = planted.network(given.cache, architecture, "clean", seed, given.images)
    faulty, layer = faulty_network(clean, architecture, fault, seed, given)
    images = planted.training_images("clean" if layer else fault, seed, given.images)
    recipe = Recipe(epochs=given.epochs)
    arms = [*ARMS, *([aimed_at(layer, recipe)] if layer else [])]
    test = planted.images(seed, planted.TEST, given.tested, planted.FAIR)
    line: Line = {
        "fault": fault, "architecture": architecture, "seed": seed,
        **{name: getattr(given, name) for name in SETTINGS},
        "clean": round(accuracy(clean, test), 2), "faulty": round(accuracy(faulty, test), 2),
    }  # fmt: skip
    try:
        diagnosis = diagnose(faulty, images, layers=planted.ARCHITECTURES[architecture][1])
        treatment = treat(
            faulty,
            images,
            diagnosis,
            arms=arms,
            settings=TreatmentSettings(masks_per_category=MASKS, tau=TAU),
            recipe=recipe,
            seeds=1,
            seed=seed,
        )
    except ModelDoctorError as error:  # a training that ends in numbers that are not finite
        return {**line, "failed": str(error)}
    own, line["arms"] = copy.deepcopy(faulty), {}
    for arm in treatment.arms:
        own.load_state_dict(dict(arm.state))
        line["arms"][arm.name] = round(accuracy(own, test), 2)
    line["weights"] = {str(one["constraint"]): one["weight"] for one in treatment.prescription}
    line["not_diagnosed"] = len(diagnosis.not_diagnosed)
    line["steps"] = treatment.arms[0].steps
    line["skipped"] = {arm.name: len(arm.skipped) for arm in treatment.arms}
    line["seconds"] = {arm.name: round(arm.seconds, 1) for arm in treatment.arms}
    return line


def interval(values: Sequence[float]) -> list[float | None]:
    """Return the mean over the networks with its t interval; None where there are too few."""
    if len(values) < 2:
        return [*values, *[None] * 3][:3]
    mean, error = float(np.mean(values)), float(stats.sem(values))
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, len(values) - 1)) * error
    return [mean, mean - reach, mean + reach]


def summary(lines: Sequence[Line]) -> list[Line]:
    """Return one row per fault and arm."""
    rows = []
    for fault in FAULTS:
        cells = [one for one in lines if one["fault"] == fault and "arms" in one]
        lost = [one for one in cells if one["clean"] - one["faulty"] >= LEAST]
        failed = sum(one["fault"] == fault and "failed" in one for one in lines)
        for arm in dict.fromkeys(name for one in cells for name in one["arms"]):
            gained = [one["arms"][arm] - one["arms"]["control"] for one in cells]
            shares = [
                100 * (one["arms"][arm] - one["faulty"]) / (one["clean"] - one["faulty"]) for one in lost
            ]
            rows.append(
                {
                    "fault": fault, "arm": arm, "networks": len(cells), "lost": len(lost), "failed": failed,
                    "clean": float(np.mean([one["clean"] for one in cells])),
                    "faulty": float(np.mean([one["faulty"] for one in cells])),
                    "accuracy": float(np.mean([one["arms"][arm] for one in cells])),
                    "recovered_percent": interval(shares),
                    "over_control_points": interval([] if arm == "control" else gained),
                }
            )  # fmt: skip
    return rows


def shown(found: Sequence[float | None], none: str) -> str:
    """Return a mean with its interval, signed."""
    mean, low, high = (f"{one:+.1f}" if one is not None else "" for one in found)
    return (f"{mean} ({low} to {high})" if low else f"{mean} (one network)") if mean else none


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| fault | networks, of them lost 2 points | clean | faulty | arm | accuracy | recovered, % | "
        "over the control, points |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        networks = f"{one['networks']}, {one['lost']}" + (f", {one['failed']} failed" * bool(one["failed"]))
        lines.append(
            f"| {one['fault']} | {networks} | {one['clean']:.1f} | {one['faulty']:.1f} | {one['arm']} | "
            f"{one['accuracy']:.1f} | {shown(one['recovered_percent'], 'nothing to recover')} | "
            f"{shown(one['over_control_points'], '-')} |"
        )
    return "\n".join(lines)


def kept(file: Path, given: argparse.Namespace) -> dict[tuple[str, str, int], Line]:
    """Return the finished lines that were asked for and measured with these settings."""
    return {
        (one["fault"], one["architecture"], one["seed"]): one
        for one in json_lines.read_finished(file)
        if all(one[name] == getattr(given, name) for name in SETTINGS)
        and one["fault"] in given.faults
        and one["architecture"] in given.architectures
        and one["seed"] in given.seeds
    }


def main() -> None:
    """Measure what is missing of this shard, then print what is known of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[2, 3, 4])
    parser.add_argument("--architectures", nargs="*", default=list(planted.ARCHITECTURES))
    parser.add_argument("--faults", nargs="*", default=list(FAULTS), choices=FAULTS)
    parser.add_argument("--epochs", type=int, default=4, help="of every arm")
    parser.add_argument(
        "--images", type=int, default=planted.IMAGES, help="for training; with a cache of its own"
    )
    parser.add_argument("--tested", type=int, default=2000, help="test images")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th network, from the i-th on")
    parser.add_argument("--out", type=Path, default=Path("results/treatment_planted.json"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    first, step = map(int, given.shard.split("/"))
    file = given.out.with_suffix(".jsonl")
    file.parent.mkdir(parents=True, exist_ok=True)
    done = kept(file, given)
    networks = [(architecture, seed) for seed in given.seeds for architecture in given.architectures]
    for architecture, seed in networks[first::step]:
        for fault in given.faults:
            if (fault, architecture, seed) not in done:
                json_lines.write(measure(architecture, fault, seed, given), file)
    lines = list(kept(file, given).values())
    rows = summary(lines)
    print(table(rows))
    for one in lines:
        if "failed" in one:
            print(f"failed: {one['architecture']} {one['fault']} {one['seed']}: {one['failed']}")
    settings = {name: getattr(given, name) for name in (*SETTINGS, "seeds", "architectures", "faults")}
    given.out.write_text(json.dumps({**settings, "cells": len(lines), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
