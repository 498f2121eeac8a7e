"""Compare the two batch-norm policies of a further training: statistics kept as they are, or of the batch.

    python benchmarks/study/norm_policy.py --data-root ROOT --cache FOLDER [--out results/norm_policy.jsonl]
        [--sets scenes mini_imagenet30 tiny_imagenet20] [--epochs 2] [--limit 200]

ROOT holds the folders mini_imagenet30 and tiny_imagenet20 (parquet). On every set a small residual network is
trained from scratch (always with batch statistics; kept in --cache), diagnosed, and trained further under
each policy and learning rate: control, and treated with the defaults. A seed gives a network and its further
trainings. Accuracies are of the validation split: this chooses a default, so no test split is looked at.

An arm that is not finite in ten steps in a row has broken off; skipped steps are counted. Each (set, seed,
policy, rate) is one line of --out, and is skipped once it is there.
"""

from __future__ import annotations

import argparse
import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.study import json_lines
from benchmarks.study.planted_faults import keep
from torchdoctor import InputError, ModelDoctorError, Recipe, diagnose, load_data, load_model
from torchdoctor.data.load import Splits
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.treatment.result import Arm
from torchdoctor.treatment.settings import TreatmentSettings
from torchdoctor.treatment.training import accuracy, fit
from torchdoctor.treatment.treat import trial_of

SETS = {  # name: what load_data is given beside the limit, {root} filled in
    "scenes": {"spec": "scenes"},
    "mini_imagenet30": {"spec": "parquet:{root}/mini_imagenet30", "classes": 10},
    "tiny_imagenet20": {"spec": "parquet:{root}/tiny_imagenet20"},
}
POLICIES = ("frozen", "train")
ARMS = ("control", "treated")
MASKS = 20  # per category
SETTINGS = ("epochs", "limit", "base_epochs")

Line = dict[str, Any]


@dataclass
class Kept:
    """The arms that are over, so that the treated one is still trained where the control broke off."""

    arms: dict[str, Arm] = field(default_factory=dict)

    def finished(self, name: str, seed: int) -> Arm | None:
        """Return an arm that is over, or None."""
        del seed
        return self.arms.get(name)

    def checkpoints(self, name: str, seed: int) -> None:
        """Keep no state of an arm under way."""

    def save(self, arm: Arm) -> None:
        """Keep an arm."""
        self.arms[arm.name] = arm


def base_network(name: str, data: Splits, seed: int, given: argparse.Namespace) -> nn.Module:
    """Return the network that is trained further, from the cache where it is there."""
    file = given.cache / f"norm-{name}-{seed}-{given.limit}-{given.base_epochs}.safetensors"
    torch.manual_seed(seed)
    model = load_model("small_resnet", len(data.classes), image_size=data.preprocessing.image_size)
    if file.is_file():
        model.load_state_dict(load_file(file))
        return model.eval()
    fit(
        model,
        lambda epoch: data.train.epoch(epoch, seed),
        Recipe(epochs=given.base_epochs, learning_rate=0.1),
        steps_per_epoch=data.train.steps_per_epoch,
        seed=seed,
    )
    keep(model, file)
    return model.eval()


def trained_further(
    model: nn.Module, data: Splits, diagnosis: Diagnosis, recipe: Recipe, seed: int
) -> dict[str, Line]:
    """Return what became of each arm; an accuracy of None says that it broke off."""
    store, broken = Kept(), {}
    while len(store.arms) < len(ARMS):
        try:
            trial = trial_of(
                model,
                data.train,
                diagnosis,
                settings=TreatmentSettings(masks_per_category=MASKS),
                recipe=recipe,
                seed=seed,
            )
            trial.run(seeds=1, store=store)
        except InputError:
            raise
        except ModelDoctorError as error:
            name = next(one for one in ARMS if one not in store.arms)
            broken[name] = str(error)
            store.save(Arm(name, 0, {}, (), 0, 0.0))
    own, found = copy.deepcopy(model), dict[str, Line]()
    for name in ARMS:
        arm = store.arms[name]
        if name in broken:
            found[name] = {"accuracy": None, "broken_off": broken[name]}
            continue
        own.load_state_dict(dict(arm.state))
        found[name] = {
            "accuracy": round(accuracy(own, data.validation), 2),
            "skipped": len(arm.skipped), "steps": arm.steps, "loss": arm.history[-1]["loss"],
            "seconds": round(arm.seconds, 1),
        }  # fmt: skip
    return found


def kept(given: argparse.Namespace) -> dict[tuple[str, int, str, float], Line]:
    """Return the finished lines that were measured with these settings."""
    return {
        (one["set"], one["seed"], one["norm"], one["learning_rate"]): one
        for one in json_lines.read_finished(given.out)
        if all(one[name] == getattr(given, name) for name in SETTINGS)
    }


def measure(name: str, seed: int, given: argparse.Namespace) -> None:
    """Measure what is missing of one network and append it to the file."""
    done = kept(given)
    plan = [(norm, rate) for norm in POLICIES for rate in given.rates]
    plan = [(norm, rate) for norm, rate in plan if (name, seed, norm, rate) not in done]
    if not plan:
        return
    options = dict(SETS[name])
    spec = str(options.pop("spec")).format(root=given.data_root)
    data = load_data(spec, limit=given.limit, **options)
    model = base_network(name, data, seed, given)
    base, diagnosis = accuracy(model, data.validation), diagnose(model, data.train)
    for norm, rate in plan:
        recipe = Recipe(epochs=given.epochs, learning_rate=rate, norm=norm)
        line = {
            "set": name, "seed": seed, "norm": norm, "learning_rate": rate,
            **{one: getattr(given, one) for one in SETTINGS},
            "validation_images": len(data.validation), "base": round(base, 2),
            **trained_further(model, data, diagnosis, recipe, seed),
        }  # fmt: skip
        json_lines.write(line, given.out)


def shown(lines: Sequence[Line], arm: str) -> str:
    """Return the mean accuracy of an arm over its seeds, with what went wrong on the way."""
    fine = [one[arm] for one in lines if one[arm]["accuracy"] is not None]
    text = f"{statistics.mean(one['accuracy'] for one in fine):.1f}" if fine else "-"
    skipped, broken = sum(one["skipped"] for one in fine), len(lines) - len(fine)
    return text + f", {skipped} skipped" * bool(skipped) + f", {broken} broken off" * bool(broken)


def table(lines: Sequence[Line]) -> str:
    """Return the Markdown table: a row per set and learning rate, a column per policy and arm."""
    columns = [(arm, norm) for arm in ARMS for norm in POLICIES]
    heads = ["set", "rate", "seeds", "base", *(f"{arm}, {norm}" for arm, norm in columns)]
    rows = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    places = {(one["set"], one["learning_rate"]) for one in lines}
    for name, rate in sorted(places, key=lambda one: (list(SETS).index(one[0]), one[1])):
        here = [one for one in lines if one["set"] == name and one["learning_rate"] == rate]
        base = {one["seed"]: one["base"] for one in here}
        cells = [shown([one for one in here if one["norm"] == norm], arm) for arm, norm in columns]
        rows.append(
            f"| {name} | {rate:g} | {len(base)} | {statistics.mean(base.values()):.1f} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(), help="not needed for scenes")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("results/norm_policy.jsonl"))
    parser.add_argument("--sets", nargs="*", default=list(SETS), choices=list(SETS))
    parser.add_argument("--rates", type=float, nargs="*", default=[0.001, 0.003, 0.01, 0.03])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--epochs", type=int, default=2, help="of every arm")
    parser.add_argument("--limit", type=int, default=200, help="training images per category")
    parser.add_argument("--base-epochs", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    for name in given.sets:
        for seed in given.seeds:
            measure(name, seed, given)
    asked = [
        one
        for (name, seed, _, rate), one in kept(given).items()
        if name in given.sets and seed in given.seeds and rate in given.rates
    ]
    print(table(asked))


if __name__ == "__main__":
    main()
