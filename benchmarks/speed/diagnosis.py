"""Measure the diagnosis against the plain loop and against captum; equality first, then the ratios.

    python benchmarks/speed/diagnosis.py [--nets resnet18 ...] [--out results/speed_diagnosis.jsonl]
    python benchmarks/speed/diagnosis.py --quick --json

Naive: J full forward passes with keyed noise on the map and one gradient each. captum: J calls of
LayerGradientXActivation(multiply_by_inputs=False) under a hook that adds the same noise, then abs and sum.
Both get the same delta as we do, and parameters that need no gradient. `all convolutions`: ours is one
gradient call for all of them without noise, naive one forward pass and one gradient per layer as captum
does it. Ratios are medians of times taken in turn, in one process; `max_rel_error` is of float64 copies,
relative to the row's largest entry, against both.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torchvision
from captum.attr import LayerGradientXActivation
from torch import Tensor, nn

from torchdoctor import Batch, candidate_layers, diagnose
from torchdoctor.diagnosis.settings import DiagnosisSettings
from torchdoctor.evidence.per_image import clean_evidence
from torchdoctor.evidence.probes import NoiseSource, probe
from torchdoctor.network.flops import compute_before
from torchdoctor.network.frozen import FrozenModel, frozen_eval
from torchdoctor.network.outputs import as_logits
from torchdoctor.network.taps import map_shapes
from torchdoctor.randomness import uniform_noise

DRAWS, DELTA, SEED = 10, 0.05, 0
QUICK = ("layer4.1.conv2", "layer4.0.conv1", "layer3")
NETS: dict[str, tuple[int, tuple[str, ...]]] = {
    "resnet18": (96, QUICK),
    "resnet50": (96, ("layer4.2.conv3", "layer4.0.conv1", "layer3")),
    "vgg16": (96, ("features.28", "features.21")),
    "mobilenet_v2": (96, ("features.18.0", "features.13.conv.2")),
    "densenet121": (96, ("features.denseblock4.denselayer16.conv2", "features.denseblock3")),
    "inception_v3": (139, ("Mixed_7c.branch_pool.conv", "Mixed_6e")),
}
Result = dict[str, Tensor]


class Case:
    """One network with a batch of images: the three ways to the same rows."""

    def __init__(self, net: str, size: int, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(SEED)
        extra = {"init_weights": False, "aux_logits": False} if net == "inception_v3" else {}
        self.model: nn.Module = torchvision.models.get_model(net, num_classes=10, **extra)
        _settle(self.model, size)
        self.model = self.model.eval().to(device, dtype)
        self.pixels = torch.randn(batch, 3, size, size, device=device, dtype=dtype)
        self.targets = torch.arange(batch, device=device) % 10
        self.ids = torch.arange(batch, device=device)
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)

    def noise(self, layer: str, draw: int, like: Tensor) -> Tensor:
        """Return one draw of the keyed noise."""
        shape = (like.shape[1], like.shape[2], like.shape[3])
        some = range(draw, draw + 1)
        return DELTA * uniform_noise(self.ids, some, shape, seed=SEED, layer=layer, dtype=like.dtype)[0]

    def naive(self, layer: str) -> Result:
        """Run the whole network once per draw."""
        total = torch.zeros(())
        for draw in range(DRAWS):
            kept: list[Tensor] = []

            def hook(
                _module: nn.Module, _inputs: object, output: Tensor, draw: int = draw, kept: list = kept
            ) -> Tensor:
                kept.append((output + self.noise(layer, draw, output)).requires_grad_(True))
                return kept[0].clone()

            handle = self.model.get_submodule(layer).register_forward_hook(hook)
            logits = as_logits(self.model(self.pixels))
            handle.remove()
            score = logits.gather(1, self.targets[:, None]).sum()
            total = total.to(score) + torch.autograd.grad(score, kept[0])[0].abs().sum((2, 3))
        return {layer: total / DRAWS}

    def captum(self, layer: str) -> Result:
        """Let captum run once per draw."""
        module = self.model.get_submodule(layer)
        attribution = LayerGradientXActivation(self._scores, module, multiply_by_inputs=False)
        total = torch.zeros(())
        for draw in range(DRAWS):

            def hook(_module: nn.Module, _inputs: object, output: Tensor, draw: int = draw) -> Tensor:
                return output + self.noise(layer, draw, output)

            handle = module.register_forward_hook(hook)
            pixels = self.pixels.clone().requires_grad_(True)
            found = attribution.attribute(pixels, target=self.targets)
            handle.remove()
            total = total.to(found) + found.detach().abs().sum((2, 3))
        return {layer: total / DRAWS}

    def _scores(self, pixels: Tensor) -> Tensor:
        return as_logits(self.model(pixels))

    def ours(self, frozen: FrozenModel, layer: str) -> tuple[Callable[[], Result], str]:
        """Return our way to the same rows, chosen once as a diagnosis does, and its name."""
        shape = map_shapes(self.model, self.pixels, [layer])[layer]
        way = probe(frozen, self.pixels, NoiseSource(layer, shape, DRAWS, DELTA, SEED), "gradient")

        def run() -> Result:
            rows = [part.sum((-2, -1)) for part, _ in way.draws(self.pixels, self.targets, self.ids)]
            return {layer: torch.cat(rows).mean(0)}

        run()
        return run, way.path

    def together(self, frozen: FrozenModel, layers: list[str]) -> Result:
        """Take all layers from one gradient call, without noise."""
        found = clean_evidence(frozen, self.pixels, self.targets, layers, "gradient")[0]
        return {layer: one.sum((-2, -1)) for layer, one in found.items()}

    def one_by_one(self, layers: list[str]) -> Result:
        """Run forward and backward once per layer, without noise."""
        rows = {}
        for layer in layers:
            kept: list[Tensor] = []

            def hook(_module: nn.Module, _inputs: object, output: Tensor, kept: list = kept) -> Tensor:
                kept.append(output.detach().requires_grad_(True))
                return kept[0].clone()

            handle = self.model.get_submodule(layer).register_forward_hook(hook)
            logits = as_logits(self.model(self.pixels))
            handle.remove()
            score = logits.gather(1, self.targets[:, None]).sum()
            rows[layer] = torch.autograd.grad(score, kept[0])[0].abs().sum((2, 3))
        return rows


def _settle(model: nn.Module, size: int) -> None:
    """Give batch-norm statistics that belong to the weights: else maps vanish or explode."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    with torch.no_grad():
        model(torch.randn(16, 3, size, size))


def error(ours: Result, theirs: Result) -> float:
    """Return the largest difference, relative to the largest entry of each image's row."""
    worst = 0.0
    for layer, mine in ours.items():
        top = theirs[layer].abs().amax(1, keepdim=True).clamp(min=torch.finfo(mine.dtype).tiny)
        found = float(((mine - theirs[layer]).abs() / top).max())
        worst = max(worst, found if math.isfinite(found) and bool(mine.any()) else math.inf)
    return worst


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Time one run, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def medians(ways: dict[str, Callable[[], object]], times: int, device: torch.device) -> dict[str, float]:
    """Return the median seconds of each way, taken in turn after one turn that does not count.

    Within a turn ours runs five times, so that it too is measured in its own steady state, as batch
    follows batch in a diagnosis: right after a way that takes ten times as long its memory is not at hand.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(times + 1):
        for name, run in ways.items():
            took = statistics.median(seconds(run, device) for _ in range(5 if name == "ours" else 1))
            if turn:
                found[name].append(took)
    return {name: statistics.median(values) for name, values in found.items()}


def peak(device: torch.device) -> float:
    """Return the peak memory in MiB: of the GPU where there is one, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def noisy(net: str, layer: str, size: int, batch: int, times: int, device: torch.device) -> dict[str, object]:
    """Measure one layer with noise."""
    exact = Case(net, size, 2, device, torch.float64)
    with frozen_eval(exact.model) as frozen:
        run, path = exact.ours(frozen, layer)
        mine = run()
        worst = max(error(mine, exact.naive(layer)), error(mine, exact.captum(layer)))
        before = compute_before(exact.model, exact.pixels[:1], [layer])[0]
    case = Case(net, size, batch, device, torch.float32)
    with frozen_eval(case.model) as frozen:
        run, path = case.ours(frozen, layer)
        ways = {"ours": run, "naive": lambda: case.naive(layer), "captum": lambda: case.captum(layer)}
        took = medians(ways, times, device)
    return {
        "case": f"{net} {size} px, batch {batch}, J = {DRAWS}",
        "layer": layer,
        "rho": round(1 - before[layer] / before[""], 4),
        "path": path,
        "ratio_naive": round(took["naive"] / took["ours"], 2),
        "ratio_captum": round(took["captum"] / took["ours"], 2),
        "seconds": round(took["ours"], 4),
        "peak_mib": round(peak(device)),
        "max_rel_error": worst,
    }


def all_convolutions(net: str, size: int, batch: int, times: int, device: torch.device) -> dict[str, object]:
    """Measure all convolutions of a network without noise."""
    exact = Case(net, size, 2, device, torch.float64)
    layers = [one.name for one in candidate_layers(exact.model, exact.pixels)]
    with frozen_eval(exact.model) as frozen:
        worst = error(exact.together(frozen, layers), exact.one_by_one(layers))
    case = Case(net, size, batch, device, torch.float32)
    with frozen_eval(case.model) as frozen:
        ways = {"ours": lambda: case.together(frozen, layers), "naive": lambda: case.one_by_one(layers)}
        took = medians(ways, times, device)
    return {
        "case": f"{net} {size} px, batch {batch}, no noise",
        "layer": f"all {len(layers)} convolutions",
        "path": "one gradient call",
        "ratio_naive": round(took["naive"] / took["ours"], 2),
        "ratio_captum": None,
        "seconds": round(took["ours"], 4),
        "peak_mib": round(peak(device)),
        "max_rel_error": worst,
    }


class Drawn:
    """Images made when they are asked for, so that only what a diagnosis keeps can grow."""

    def __init__(self, number: int, size: int) -> None:
        self.number, self.size = number, size

    def __iter__(self) -> Iterator[Batch]:
        """Yield the same batches each time."""
        for start in range(0, self.number, 16):
            ids = torch.arange(start, min(start + 16, self.number))
            pixels = torch.randn(
                len(ids), 3, self.size, self.size, generator=torch.Generator().manual_seed(start)
            )
            yield Batch(pixels, ids % 10, ids)


def memory(number: int) -> None:
    """Diagnose ResNet-18 on so many images, 20 of a category measured, and print the peak memory in MiB."""
    case = Case("resnet18", 64, 2, torch.device("cpu"), torch.float32)
    images = Drawn(number, 64)
    labels = {}
    for batch in images:
        for image, label in zip(batch.ids.tolist(), case.model(batch.images).argmax(1).tolist(), strict=True):
            labels[image] = label

    class Labelled(Drawn):
        def __iter__(self) -> Iterator[Batch]:
            for batch in super().__iter__():
                own = torch.tensor([labels[image] for image in batch.ids.tolist()])
                yield Batch(batch.images, own, batch.ids)

    found = diagnose(
        case.model,
        Labelled(number, 64),
        layers=QUICK,
        draws=4,
        settings=DiagnosisSettings(delta=DELTA, images_per_category=20),
        confidence=0.0,
    )
    print(json.dumps({"images": int(found.counts.sum()), "peak_mib": round(peak(torch.device("cpu")))}))


def main() -> None:
    """Measure what is asked for; each line is written when it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="ResNet-18 alone, in under a minute")
    parser.add_argument("--json", action="store_true", help="one JSON object per line")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--memory", type=int, metavar="IMAGES", help="peak memory of one whole diagnosis")
    given = parser.parse_args()
    if given.memory:
        memory(given.memory)
        return
    device = torch.device(given.device)
    todo: list[Callable[[], dict[str, object]]] = []
    for net in ["resnet18"] if given.quick else given.nets:
        size, layers = NETS[net]
        shared = (size, given.batch_size, 3 if given.quick else given.times, device)
        todo += [lambda n=net, one=layer, s=shared: noisy(n, one, *s) for layer in layers]  # type: ignore[misc]
        if not given.quick:
            todo.append(lambda n=net, s=shared: all_convolutions(n, *s))  # type: ignore[misc]
    for measure in todo:
        line = measure()
        gc.collect()
        if given.json:
            print(json.dumps(line), flush=True)
        else:
            print("  ".join(f"{name} {value}" for name, value in line.items()), flush=True)
        if given.out:
            with given.out.open("a") as file:
                file.write(json.dumps({**line, "device": str(device), "torch": torch.__version__}) + "\n")


if __name__ == "__main__":
    main()
