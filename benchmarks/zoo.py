"""Try torchdoctor on a zoo of networks: torchvision, timm, transformers, and nasty hand-made ones.

Each network goes, in a process of its own, through check_model, diagnose at J = 0 and J = 10, treat, explain
and compare on a few random images. Its evidence is compared with a plain autograd loop of this program, and
the layer that differs most is named.
Outcomes: `works`; `refused` (an InputError that names what is the matter); `wrong` (a value differs from the
loop's, or check_model passes what a verb refuses); `crash` (any other error, or no time left).

    python -m benchmarks.zoo --quick --json          nine networks, under 4 minutes
    python -m benchmarks.zoo --out zoo.jsonl         all; what is in the file is not tried again
    python -m benchmarks.zoo --only 'timm:*' --out zoo.jsonl

Each line is {name, outcome, layer, layers, max_rel_error, seconds, message}.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

QUICK = {
    "mnasnet": ("torchvision:mnasnet0_5", 64, {}),
    "mobilenet_v3_small": ("torchvision:mobilenet_v3_small", 64, {}),
    "convnext": ("timm:convnext_atto", 64, {}),
    "swin": (
        "timm:swin_tiny_patch4_window7_224",
        64,
        {"img_size": 64, "window_size": 2, "depths": (2, 2, 2, 1)},
    ),
    "vit": ("timm:vit_tiny_patch16_224", 64, {"img_size": 64}),
    "levit": ("timm:levit_128s", 128, {"img_size": 128}),
    "mvitv2": ("timm:mvitv2_tiny", 64, {"img_size": 64}),
    "efficientformer": ("timm:efficientformer_l1", 224, {}),
    "squeezenet": ("torchvision:squeezenet1_1", 64, {}),
}
MOST_PARAMETERS = 32_000_000
AGREES = 1e-3  # largest difference from the loop, relative to the largest value, in float32
SECONDS = 240  # of processor time for one network
CATEGORIES, IMAGES = 3, 3


def torchvision_names() -> list[str]:
    """Return the smallest classifier of each family of torchvision."""
    import torchvision

    families: dict[str, tuple[int, str]] = {}
    for name in torchvision.models.list_models(module=torchvision.models):
        make = torchvision.models.get_model_builder(name)
        family = make.__module__
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            size = sum(parameter.numel() for parameter in torchvision.models.get_model(name).parameters())
        families[family] = min(families.get(family, (size, name)), (size, name))
    return [f"torchvision:{name}" for _, name in sorted(families.values(), key=lambda each: each[1])]


def timm_names() -> list[str]:
    """Return the smallest network under 32 million parameters of each family of timm."""
    import timm
    from timm.models import _registry

    names = []
    for family in timm.list_modules():
        sizes = []
        for name in sorted(_registry._module_to_models[family]):
            try:
                with torch.device("meta"):
                    network = timm.create_model(name, num_classes=CATEGORIES)
            except Exception:  # some count on real tensors while they are built
                continue
            sizes.append((sum(parameter.numel() for parameter in network.parameters()), name))
        if sizes and min(sizes)[0] < MOST_PARAMETERS:
            names.append(f"timm:{min(sizes)[1]}")
    return names


def transformers_makers() -> dict[str, Callable[[], nn.Module]]:
    """Return tiny image classifiers of transformers, by name; none where it is not installed."""
    try:
        import transformers
    except ImportError:
        return {}
    small = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    images = {"image_size": 64, "patch_size": 16, "num_labels": CATEGORIES}

    def maker(kind: str, **settings: Any) -> Callable[[], nn.Module]:
        config = getattr(transformers, f"{kind}Config")
        network = getattr(transformers, f"{kind}ForImageClassification")
        return lambda: network(config(**settings))

    return {
        "transformers:vit": maker("ViT", **small, **images),
        "transformers:deit": maker("DeiT", **small, **images),
        "transformers:beit": maker("Beit", **small, **images),
        "transformers:dinov2": maker("Dinov2", **small, **images),
        "transformers:resnet": maker(
            "ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CATEGORIES
        ),
        "transformers:convnext": maker(
            "ConvNext", hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 2, 1], num_labels=CATEGORIES
        ),
        "transformers:swin": maker(
            "Swin", image_size=64, patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4,
            num_labels=CATEGORIES,
        ),
    }  # fmt: skip


class Nasty(nn.Module):
    """A small network; `between` and `last` are what is nasty in each kind."""

    def __init__(self) -> None:
        """Make three convolutions and a head."""
        super().__init__()
        self.a, self.b, self.c = (
            nn.Sequential(nn.Conv2d(inside, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()) for inside in (3, 8, 8)
        )
        self.fc = nn.Linear(8, CATEGORIES)

    def between(self, maps: Tensor) -> Tensor:
        """Return the maps as they are."""
        return maps

    def forward(self, images: Tensor) -> Any:
        """Return the logits."""
        return self.fc(self.c(self.between(self.b(self.a(images)))).mean((2, 3)))


def nasty_makers() -> dict[str, Callable[[], nn.Module]]:
    """Return hand-made networks, by name."""

    def kind(between: Callable[[Nasty, Tensor], Tensor], name: str) -> Callable[[], nn.Module]:
        return type(name, (Nasty,), {"between": between})

    functional = torch.nn.functional
    steps: dict[str, Callable[[Nasty, Tensor], Tensor]] = {
        "in_place": lambda _n, m: m.relu_(),
        "channels_last": lambda _n, m: m.contiguous(memory_format=torch.channels_last),
        "permuted": lambda _n, m: m.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
        "hardswish": lambda _n, m: functional.hardswish(m),
        "hardsigmoid": lambda _n, m: m * functional.hardsigmoid(m),
        "grid_sample": lambda _n, m: functional.grid_sample(
            m, functional.affine_grid(torch.eye(2, 3, dtype=m.dtype).expand(len(m), -1, -1), list(m.shape))
        ),
        "fft": lambda _n, m: torch.fft.irfft2(torch.fft.rfft2(m), s=m.shape[2:]),
        "unit_norm": lambda _n, m: functional.normalize(m, dim=1),
        "detached": lambda _n, m: m.detach(),
        "no_grad": lambda _n, m: torch.no_grad()(lambda: m * 1)(),
        "numpy": lambda _n, m: torch.from_numpy(m.detach().numpy()),
        "noise": lambda _n, m: m + torch.randn_like(m),
        "batch": lambda _n, m: m - m.mean(0, keepdim=True),
        "twice": lambda n, m: n.c[1](m) + m,
    }
    made = {f"nasty:{name}": kind(step, name) for name, step in steps.items()}
    outputs = {
        "dict": lambda logits: {"logits": logits},
        "tuple": lambda logits: (logits, None),
        "softmax": lambda logits: logits.softmax(1),
        "one_score": lambda logits: logits[:, 0],
    }
    for name, change in outputs.items():
        forward = lambda self, images, change=change: change(Nasty.forward(self, images))  # noqa: E731
        made[f"nasty:{name}"] = type(name, (Nasty,), {"forward": forward})
    wraps = {
        "weight_norm": lambda n: setattr(n, "fc", nn.utils.parametrizations.weight_norm(n.fc)) or n,
        "spectral_norm": lambda n: setattr(n, "fc", nn.utils.parametrizations.spectral_norm(n.fc)) or n,
        "bfloat16": lambda n: n.bfloat16(),
        "double": lambda n: n.double(),
        "frozen": lambda n: n.requires_grad_(False),
        "zero_head": lambda n: nn.init.zeros_(n.fc.weight) is None or n,
    }
    for name, wrap in wraps.items():
        made[f"nasty:{name}"] = lambda wrap=wrap: wrap(Nasty())
    return made


def network_of(name: str, settings: Mapping[str, Any]) -> nn.Module:
    """Build a network with new weights."""
    source, _, kind = name.partition(":")
    if source == "torchvision":
        import torchvision

        extra = {"init_weights": True} if kind in ("googlenet", "inception_v3") else {}
        return torchvision.models.get_model(kind, num_classes=CATEGORIES, **extra)
    if source == "timm":
        import timm

        return timm.create_model(kind, num_classes=CATEGORIES, **settings)
    return {**transformers_makers(), **nasty_makers()}[name]()


def sizes_to_try(name: str) -> list[int]:
    """Return image sizes, the one to try first in front."""
    if not name.startswith("timm:"):
        return [64, 224, 299]
    import timm

    return [
        64,
        128,
        timm.create_model(name.partition(":")[2], pretrained=False).default_cfg["input_size"][-1],
    ]


def loop(network: nn.Module, layer: str, images: Tensor, labels: Tensor) -> Tensor:
    """Return abs(dy/dm) of a layer's output summed over all positions, by autograd, for each image.

    The images run together with themselves: PyTorch's derivative is wrong for some images alone.
    """
    module, rows = network.get_submodule(layer), []
    for image, label in zip(images, labels, strict=True):
        kept: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: object, output: Any, kept: list[Tensor] = kept) -> Any:
            value = output[0] if isinstance(output, tuple) else output
            kept.append(value if value.requires_grad else value.detach().requires_grad_(True))
            copied = kept[0].clone()
            return (copied, *output[1:]) if isinstance(output, tuple) else copied

        handle = module.register_forward_hook(keep)
        output = network(torch.stack([image, image]))
        handle.remove()
        output = output if isinstance(output, Tensor) else getattr(output, "logits", None)
        score = output[0, label]
        rows.append(torch.autograd.grad(score, kept[0])[0][0].abs())
    return torch.stack(rows)


def largest_difference(
    diagnosis: Any, network: nn.Module, images: Tensor, labels: Tensor
) -> tuple[str | None, float]:
    """Compare a diagnosis with the loop; return the layer that differs most, and by how much.

    The difference is relative to the largest value of a category; infinite where no value could be compared.
    """
    differences: list[tuple[float, str]] = []
    for layer in diagnosis.layers:
        by_position = loop(network, layer.name, images, labels).double()
        kernels = layer.correlation.shape[1]
        axis = 1 if by_position.ndim == 4 and by_position.shape[1] == kernels else by_position.ndim - 1
        by_kernel = by_position.sum([each for each in range(1, by_position.ndim) if each != axis])
        for category, chosen in enumerate(diagnosis.sifting.high):
            wanted = by_kernel[list(chosen)].mean(0).numpy() if len(chosen) else None
            if wanted is not None and wanted.any():
                off = abs(layer.correlation[category] - wanted).max() / abs(wanted).max()
                differences.append((float(off), layer.name))
    worst = max(differences, default=(float("inf"), None))
    return worst[1], worst[0]


def try_network(name: str, size: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Try one network and return what came of it."""
    import torchdoctor as td

    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    network = network_of(name, settings).eval()
    dtype = next(network.parameters()).dtype
    images, passed = torch.randn(IMAGES, 3, size, size, dtype=dtype), False
    masks = torch.zeros(IMAGES, 1, size, size)
    masks[:, :, : size // 2] = 1
    line: dict[str, Any] = {"layer": None, "layers": [], "max_rel_error": None, "message": ""}
    try:
        found = td.check_model(network, images[:2])
        passed = not any(each.level == "error" for each in found)
        line["message"] = "; ".join(each.message for each in found)[:300]
        if not passed:
            return {**line, "outcome": "refused"}
        with torch.no_grad():
            output = network(images)
        logits = output if isinstance(output, Tensor) else next(iter(dict(output).values()))
        labels = logits.argmax(1)  # every image counts as right, so that all are measured
        batch = td.Batch(images, labels, torch.arange(IMAGES), masks, torch.ones(IMAGES, dtype=torch.bool))
        clean = td.diagnose(network, [batch], draws=0, confidence=0.0, evidence="gradient")
        line["layers"] = [layer.name for layer in clean.layers]
        line["layer"], line["max_rel_error"] = largest_difference(clean, network, images, labels)
        diagnosis = td.diagnose(network, [batch], draws=10, confidence=0.0)
        treated = td.treat(
            network, [batch], diagnosis, constraints=["channel", "space"], recipe=td.Recipe(epochs=1), seeds=1
        )
        td.compare(network, treated, {"test": [batch]}, layers=line["layers"])
        td.explain(network, images[0], diagnosis, mask=masks[0])
    except td.InputError as error:
        return {**line, "outcome": "wrong" if passed else "refused", "message": str(error)[:300]}
    except Exception as error:
        return {**line, "outcome": "crash", "message": f"{type(error).__name__}: {error}"[:300]}
    tolerance = AGREES if dtype in (torch.float32, torch.float64) else 0.1
    return {**line, "outcome": "works" if line["max_rel_error"] <= tolerance else "wrong"}


def in_own_process(label: str, name: str, size: int | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Try one network in a process of its own."""
    started = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.zoo", "--one", json.dumps([name, size, settings])]
    line: dict[str, Any] = {"outcome": "crash", "layer": None, "max_rel_error": None}
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.stdout.strip():
        line = json.loads(done.stdout.strip().splitlines()[-1])
    elif done.returncode == -signal.SIGXCPU:
        line["message"] = f"not done after {SECONDS} seconds of processor time"
    else:
        line["message"] = (done.stderr.strip().splitlines() or ["no answer"])[-1][:300]
    return {"name": label, **line, "seconds": round(time.monotonic() - started, 1)}


def one(name: str, size: int | None, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Try one network at the size given, or at the first that it takes."""
    if size is None:
        for each in sizes_to_try(name):
            try:
                with torch.no_grad():
                    network = network_of(name, settings).eval()
                    network(torch.zeros(2, 3, each, each, dtype=next(network.parameters()).dtype))
            except Exception:  # the next size may do
                continue
            size = each
            break
    return try_network(name, size or 64, settings)


def main() -> None:
    """Read the command line and try the networks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="nine networks only")
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each network")
    parser.add_argument("--out", type=Path, help="a file of JSON lines to add to; it is gone on with")
    parser.add_argument("--only", default="*", help="a pattern of names")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 10))
        name, size, settings = json.loads(arguments.one)
        print(json.dumps(one(name, size, settings)))
        return
    if arguments.quick:
        todo = [(label, *parts) for label, parts in QUICK.items()]
    else:
        names = [*torchvision_names(), *timm_names(), *transformers_makers(), *nasty_makers()]
        todo = [(name, name, None, {}) for name in names]
    done = {}
    if arguments.out and arguments.out.exists():
        done = {line["name"]: line for line in map(json.loads, arguments.out.read_text().splitlines())}
    outcomes: Counter[str] = Counter()
    for label, name, size, settings in todo:
        if not fnmatchcase(label, arguments.only):
            continue
        line = done.get(label) or in_own_process(label, name, size, settings)
        if arguments.out and label not in done:
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
        outcomes[line["outcome"]] += 1
        if arguments.json:
            print(json.dumps({key: line.get(key) for key in ("name", "outcome", "layer", "max_rel_error")}))
        else:
            print(f"{line['name']:40} {line['outcome']:8} {line.get('layer')}  {line.get('message', '')}")
        sys.stdout.flush()
    if not arguments.json:
        print(", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items())))


if __name__ == "__main__":
    main()
