"""Time a treated training step beside a plain one and beside the literal way; equality first.

    python benchmarks/speed/treatment.py [--nets resnet18 ...] [--out results/speed_treatment.jsonl]
    python benchmarks/speed/treatment.py --quick --json

Both constraints are on, an eighth of the images has masks, and the batch-norm policy is the same on all sides
(`--norm`). Literal: the penalty of tests/reference.py, J whole forward passes with two derivatives each. The
layers are those of the network whose tails are nearest to 0, 0.1 and 0.2 of a forward pass. `lazy` = k: of k
steps one is treated; that step and one of the others are timed. Ratios are of medians of times taken in turn,
in one process; `max_rel_error` is of a float64 copy, the largest of both penalties and of the whole gradient.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))

from reference import literal_penalties
from torchdoctor import Batch, Course, Recipe, candidate_layers, classification_terms, diagnose
from torchdoctor.diagnosis.result import Diagnosis
from torchdoctor.network.flops import compute_before
from torchdoctor.network.outputs import as_logits
from torchdoctor.treatment.constraints import constraints_named
from torchdoctor.treatment.loop import Loop
from torchdoctor.treatment.passes import Noise
from torchdoctor.treatment.weighting import Prescription

SEED, PIXELS = 0, 2
WEIGHTS = {"channel": 0.1, "space": 0.1}
NETS = {
    "resnet18": 96,
    "resnet50": 96,
    "vgg16": 96,
    "mobilenet_v2": 96,
    "densenet121": 96,
    "inception_v3": 139,
}
SHARES = (0.0, 0.1, 0.2)
# (share of the tail, draws, lazy): every figure that the targets name, and the same with one draw.
CASES = [(share, draws, 1) for share in SHARES for draws in (10, 1)] + [(0.1, 10, 4), (0.1, 10, 16)]
QUICK = [(0.0, 10, 1), (0.1, 10, 1), (0.1, 10, 4), (0.1, 10, 16), (0.0, 1, 1), (0.1, 1, 1)]


class Case:
    """One network with a batch, and the three ways to take a step."""

    def __init__(self, net: str, batch: int, device: torch.device, dtype: torch.dtype, norm: str) -> None:
        torch.manual_seed(SEED)
        size = NETS[net]
        extra = {"init_weights": False, "aux_logits": False} if net == "inception_v3" else {}
        self.model: nn.Module = torchvision.models.get_model(net, num_classes=10, **extra)
        _settle(self.model, size)
        self.model = self.model.to(device, dtype).eval()
        masks = torch.zeros(batch, 1, size, size, device=device, dtype=dtype)
        masks[:, :, size // 4 : size // 2, size // 4 : size // 2] = 1
        annotated = torch.arange(batch) % 8 == 0
        ids = torch.arange(batch, device=device)
        pixels = torch.randn(batch, 3, size, size, device=device, dtype=dtype)
        self.batch = Batch(pixels, ids % 10, ids, masks, annotated)
        self.recipe = Recipe(learning_rate=1e-6, norm=norm)  # type: ignore[arg-type]

    def diagnosis(self, layer: str) -> Diagnosis:
        """Diagnose on the batch itself, labelled as the network sees it."""
        with torch.no_grad():
            labels = as_logits(self.model(self.batch.images)).argmax(1)
        own = Batch(self.batch.images, labels, self.batch.ids)
        return diagnose(
            self.model,
            [own],
            layers=[layer],
            draws=1,
            confidence=0.0,
            classes=[str(one) for one in range(10)],
        )

    def ours(self, layer: str, diagnosis: Diagnosis, draws: int, lazy: int) -> Course:
        """Return our treated course."""
        constraints = constraints_named(list(WEIGHTS), layers=[layer], scale="share", weights=WEIGHTS)
        plan = Prescription(constraints, diagnosis, Noise(draws=draws), PIXELS, lazy)
        return Course(plan.terms(self.model, self.batch.images, SEED))

    def literal(self, layer: str, diagnosis: Diagnosis, draws: int, lazy: int) -> Course:
        """Return the same course with the penalties of the reference."""
        found = diagnosis.layer(layer)
        correlated = torch.from_numpy(found.correlated).to(self.batch.images.device)

        def terms(model: nn.Module, batch: Batch, step: int) -> Mapping[str, Tensor]:
            parts = classification_terms(model, batch)[1]
            if step % lazy:
                return parts
            modes = [module.training for module in model.modules()]
            model.eval()
            shown = Batch(
                batch.images, batch.labels, batch.ids, batch.masks, batch.annotated.to(batch.images.device)
            )  # type: ignore[union-attr]
            values = literal_penalties(
                model, shown, layer, list(WEIGHTS), correlated=correlated, delta=found.delta, draws=draws,
                pixels=PIXELS, seed=SEED, step=step,
            )  # fmt: skip
            for module, mode in zip(model.modules(), modes, strict=True):
                module.training = mode
            return {**parts, **{name: lazy * WEIGHTS[name] * value for name, value in values.items()}}

        return Course(terms)

    def step(self, course: Course, number: int = 0) -> Callable[[], None]:
        """Return a function that takes a course's step of that number; a lazy one treats multiples of k."""
        loop = Loop(self.model, self.recipe, course, SEED, 1_000_000)

        def run() -> None:
            loop.step = number
            loop.step_on(self.batch)

        return run


def _settle(model: nn.Module, size: int) -> None:
    """Give batch-norm the statistics of random images, as training would, and switch drop-out off."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model(torch.randn(16, 3, size, size))


def layers_at(net: str, shares: Sequence[float]) -> dict[float, tuple[str, float]]:
    """Return for each share of a forward pass the convolution whose tail is nearest, and its own share."""
    case = Case(net, 2, torch.device("cpu"), torch.float32, "frozen")
    names = [one.name for one in candidate_layers(case.model, case.batch.images)]
    before, _ = compute_before(case.model, case.batch.images, names)
    rho = {name: 1 - before[name] / before[""] for name in names}
    # Ties (two convolutions side by side) go to the one that is run last.
    nearest = {
        share: min(reversed(names), key=lambda name, share=share: abs(rho[name] - share)) for share in shares
    }
    return {share: (name, rho[name]) for share, name in nearest.items()}


def error(net: str, layer: str, draws: int, device: torch.device) -> float:
    """Return the largest relative difference of both penalties and their gradient, in float64."""
    case = Case(net, 2, device, torch.float64, "frozen")
    diagnosis = case.diagnosis(layer)
    found = []
    for course in (case.ours(layer, diagnosis, draws, 1), case.literal(layer, diagnosis, draws, 1)):
        terms = course.terms(case.model, case.batch, 3)
        total = terms["channel"] + terms["space"]
        parameters = [one for one in case.model.parameters() if one.requires_grad]
        gradient = torch.autograd.grad(total, parameters, allow_unused=True)
        pairs = zip(gradient, parameters, strict=True)
        flat = torch.cat([(torch.zeros_like(one) if g is None else g).flatten() for g, one in pairs])
        found.append((terms["channel"].item(), terms["space"].item(), flat))
    (one, two, three), (first, second, third) = found
    worst = max(abs(one - first) / abs(first), abs(two - second) / max(abs(second), 1e-30))
    return max(worst, float((three - third).norm() / third.norm()))


def medians(ways: Mapping[str, Callable[[], None]], times: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of a step each way, in turn; the first turn does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(times + 1):
        for name, run in ways.items():
            took = _seconds(run, device)
            if turn:
                found[name].append(took)
    return {name: statistics.median(values) for name, values in found.items()}


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    """Time one step, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measure(
    net: str, cases: Sequence[tuple[float, int, int]], given: argparse.Namespace
) -> Iterator[dict[str, object]]:
    """Measure a network's cases, one line each."""
    device = torch.device(given.device)
    places = layers_at(net, sorted({share for share, _, _ in cases}))
    checked: dict[tuple[str, int], float] = {}
    literal: dict[tuple[str, int], float] = {}
    for share, draws, lazy in cases:
        layer, rho = places[share]
        if (layer, draws) not in checked:
            checked[layer, draws] = error(net, layer, draws, device)
        case = Case(net, given.batch_size, device, torch.float32, given.norm)
        diagnosis = case.diagnosis(layer)
        course = case.ours(layer, diagnosis, draws, lazy)
        ways = {"plain": case.step(Course()), "ours": case.step(course)}
        if lazy > 1:
            ways["between"] = case.step(course, 1)
        if (layer, draws) not in literal:
            ways["literal"] = case.step(case.literal(layer, diagnosis, draws, 1))
        took = medians(ways, given.times, device)
        if "literal" in took:
            literal[layer, draws] = took["literal"] / took["plain"]
        slow = (literal[layer, draws] + lazy - 1) / lazy
        ratio = (took["ours"] + (lazy - 1) * took.get("between", 0.0)) / (lazy * took["plain"])
        yield {
            "case": f"{net} {NETS[net]} px, batch {given.batch_size}, batch-norm {given.norm}",
            "layer": layer,
            "rho": round(rho, 4),
            "draws": draws,
            "lazy": lazy,
            "ratio_plain_step": round(ratio, 3),
            "ratio_literal": round(slow / ratio, 2),
            "seconds_plain_step": round(took["plain"], 4),
            "max_rel_error": checked[layer, draws],
        }
        del case, ways
        gc.collect()


def main() -> None:
    """Measure what is asked for; each line is written when it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--norm", choices=("frozen", "train"), default="train")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--shares", type=float, nargs="*", default=list(SHARES), choices=SHARES, help="only these tails"
    )
    parser.add_argument("--quick", action="store_true", help="ResNet-18 alone, in under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.quick:
        given.nets, given.times = ["resnet18"], 3
    for net in given.nets:
        cases = [case for case in (QUICK if given.quick else CASES) if case[0] in given.shares]
        for line in measure(net, cases, given):
            if given.json:
                print(json.dumps(line), flush=True)
            else:
                print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
            if given.out:
                with given.out.open("a") as file:
                    file.write(
                        json.dumps({**line, "device": given.device, "torch": torch.__version__}) + "\n"
                    )


if __name__ == "__main__":
    main()
