"""Train every classifier of the catalogue for a few steps on CIFAR-10 and print what it costs and reaches.

    python -m benchmarks.study.catalogue --data cifar10@ROOT [--out FILE.jsonl] [--models vgg16 ...]

Each line is written when it is measured; a second run goes on where the first one ended. The time of a
step is the ratio to the plain torchvision or timm network's own step on the same images (a bare forward,
backward and SGD step), medians of steps taken in turn. A small-image stem does more arithmetic than the
plain network, whose first layers throw most of a 32-pixel image away: `arithmetic` is that ratio.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.study import json_lines
from torchdoctor import Batch, diagnose, load_data, load_model, treat
from torchdoctor.data.loader import Loader
from torchdoctor.models.catalogue import MODELS
from torchdoctor.network.outputs import as_logits
from torchdoctor.treatment.recipe import Recipe
from torchdoctor.treatment.training import fit


def plain(name: str, classes: int) -> nn.Module | None:
    """Build the network as torchvision or timm has it, None where neither does."""
    source = MODELS[name].source
    return load_model(source, classes) if source.startswith(("torchvision:", "timm:")) else None


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> float:
    """Take one bare training step; return its seconds."""
    started = time.perf_counter()
    loss = nn.functional.cross_entropy(as_logits(model(batch.images)), batch.labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def flops(model: nn.Module, images: torch.Tensor) -> int:
    """Count the operations of one forward pass."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(images)
    model.train()
    return counter.get_total_flops()


def measure(name: str, train: Loader, classes: int, steps: int, device: str) -> dict[str, object]:
    """Train, diagnose and treat one classifier; return its line of the table."""
    torch.manual_seed(0)
    batch = train.first_batch(0)
    batch = Batch(batch.images.to(device), batch.labels.to(device), batch.ids)
    size, channels = batch.images.shape[-1], batch.images.shape[1]
    ours = load_model(name, classes, channels=channels, image_size=size).to(device).train()
    theirs = plain(name, classes)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    networks = {"ours": ours}
    line: dict[str, object] = {"model": name, "parameters": sum(one.numel() for one in ours.parameters())}
    if theirs is not None:
        try:
            theirs = theirs.to(device).train()
            theirs(batch.images)
            networks["plain"] = theirs
            line["arithmetic"] = flops(ours, batch.images[:1]) / flops(theirs, batch.images[:1])
        except RuntimeError as error:
            line["plain_fails"] = str(error).splitlines()[0]
    optimizers = {key: torch.optim.SGD(one.parameters(), lr=1e-3) for key, one in networks.items()}
    for _ in range(steps + 1):
        for key, one in networks.items():
            times[key].append(step(one, optimizers[key], batch))
    medians = {key: statistics.median(values[1:]) for key, values in times.items() if values}
    line["seconds_per_step"] = medians["ours"]
    line["ratio_to_plain"] = medians["ours"] / medians["plain"] if "plain" in medians else None
    del theirs, networks, optimizers

    torch.manual_seed(0)
    model = load_model(name, classes, channels=channels, image_size=size).to(device)
    trained = fit(
        model,
        lambda _epoch: [batch] * steps,
        Recipe(epochs=1, learning_rate=0.01),
        steps_per_epoch=steps,
        seed=0,
    )
    line["loss"] = trained.history[-1]["loss"]
    small = Batch(batch.images[:16], batch.labels[:16], batch.ids[:16])
    layers = MODELS[name].layers
    diagnosis = diagnose(model, [small], layers=layers, draws=1, confidence=0.0)

    def reached(chosen: tuple[str, ...]) -> Mapping[str, object]:
        return treat(
            model, [small], diagnosis, constraints=["channel"], layers=chosen, seeds=0, recipe=recipe
        ).prescription[0]

    found = reached(layers)
    line["layers"] = list(layers)
    line["reached"] = found["parameters_reached"]
    line["trainable"] = found["parameters_trainable"]
    line["live"] = {layer: reached((layer,))["parameters_reached"] for layer in layers}
    return line


def table(lines: list[dict]) -> str:
    """Return the lines as a Markdown table."""
    rows = [
        "| model | parameters, M | s / step | x plain | arithmetic x plain | constraint reaches | by layer |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in lines:
        ratio = (
            f"{one['ratio_to_plain']:.2f}"
            if one["ratio_to_plain"]
            else ("fails" if "plain_fails" in one else "-")
        )
        work = f"{one['arithmetic']:.1f}" if "arithmetic" in one else "-"
        places = ", ".join(f"{layer} {number}" for layer, number in one["live"].items())
        rows.append(
            f"| {one['model']} | {one['parameters'] / 1e6:.2f} | {one['seconds_per_step']:.2f} | {ratio} "
            f"| {work} | {one['reached']} of {one['trainable']} | {places} |"
        )
    return "\n".join(rows)


def main() -> None:
    """Measure what is asked for and not measured yet, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "catalogue.jsonl")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    data = load_data(given.data, batch_size=given.batch_size, limit=200, image_size=given.image_size)
    lines = json_lines.read_finished(given.out)
    for name in given.models:
        if name in [one["model"] for one in lines]:
            continue
        lines.append(measure(name, data.train, len(data.classes), given.steps, given.device))
        json_lines.append(lines[-1], given.out)
    print(table([one for one in lines if one["model"] in given.models]))


if __name__ == "__main__":
    main()
